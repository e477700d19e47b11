"""Supervised contrastive learning: finds the views of all images of the same class in the batch."""

import keras
import tensorflow as tf

from keras_ssl import layers, losses, metrics
from keras_ssl.arguments import check_integer
from keras_ssl.ops import recipes
from keras_ssl.pretext import PretextModel
from keras_ssl.tasks.contrastive.views import cosine, embed, preview, two_views
from keras_ssl.training import distribute


@keras.saving.register_keras_serializable(package="keras_ssl")
class SupCon(PretextModel):
    """Embeds the views of all images of a class closer to each other than to those of other classes.

    It is SimCLR with more positives, for labeled images. It shows what a contrastive loss achieves with true
    labels, as an upper bound for self-supervised labels. It is the only task that reads `label`. A view whose
    class has no other image in the batch still has the other view of its image.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D).
        temperature: float.
        mean: "outside" for the mean over the positives of the logarithms (L_out), as in the paper, or
            "inside" for the logarithm of the mean (L_in).
        dimensions: int, of the embedding.
        recipe: augmentation of both views, a Recipe or the name of one: "SUPCON_SMALL" for small images,
            "SIMCLR" for images of about 224 pixels.
        **kwargs: passed to keras.Model.

    Shapes:
        x: (B, 2, H, W, 3) float32 in 0..255, two views. y: (B,) integers, the classes. Prediction:
        (B, 2, dimensions) float32 embeddings.

    Raises:
        ValueError: `temperature` is not positive, `mean` or `recipe` is unknown, or `dimensions` is less
            than 1; in `dataset`, the images have no labels.

    Reference: Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020.

    Example:
        >>> import keras_ssl as kssl
        >>> task = kssl.tasks.SupCon(kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1, 1)))
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    needs = ("image", "label")
    min_batch_size = 2
    weight_decay = 1e-4
    label_name = "class"

    def __init__(
        self, encoder, temperature=0.1, mean="outside", dimensions=128, recipe="SUPCON_SMALL",
        **kwargs,
    ):  # fmt: skip
        super().__init__(encoder, **kwargs)
        recipes.find(recipe)
        check_integer("dimensions", dimensions, 1)
        losses.SupervisedContrastive(temperature, mean)  # checks both
        self.temperature, self.mean = temperature, mean
        self.dimensions, self.recipe = dimensions, recipe
        # With the paper's head, which has no normalization, the initial embeddings are nearly all alike.
        self.head = layers.projection(
            encoder.output_shape[-1], dimensions, normalized="hidden", name="head"
        )

    def pretext(self, batch, seed):
        return two_views(batch["image"], seed, self.recipe, self.recipe), batch["label"]

    def call(self, x, training=False):
        return embed(self.encoder, self.head, x, training)

    def late_labels(self, x, y, y_pred):
        # Keras converts labels to float32, which cannot distinguish large ones. So each label is replaced by
        # the place of the first image of its class in the batch.
        labels = tf.reshape(y, [-1])
        same = labels[:, None] == distribute.all_gather(labels)
        return tf.argmax(tf.cast(same, tf.int32), axis=1), None

    def default_loss(self):
        return losses.SupervisedContrastive(self.temperature, self.mean)

    def default_metrics(self):
        return [metrics.Contrast(name, by_label=True) for name in metrics.CONTRAST]

    def default_optimizer(self, steps, learning_rate=0.3):
        return super().default_optimizer(steps, learning_rate)

    def preview(self, x, y, y_pred=None):
        rows = preview(x, None if y_pred is None else cosine(y_pred[:, 0], y_pred[:, 1]))
        return [
            [(image, f"class {label}, {caption}") for image, caption in row]
            for row, label in zip(rows, y, strict=True)
        ]
