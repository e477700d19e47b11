"""SimCLR: finds the other view of an image among all views of the batch."""

import keras

from keras_ssl import layers, losses, metrics
from keras_ssl.arguments import check_integers, check_positive
from keras_ssl.ops import recipes
from keras_ssl.pretext import PretextModel
from keras_ssl.tasks.contrastive.views import cosine, embed, preview, two_views
from keras_ssl.training import optimizers


@keras.saving.register_keras_serializable(package="keras_ssl")
class SimCLR(PretextModel):
    """Embeds two random views of an image closer to each other than to the views of other images.

    The label of a view is the other view of its image, among all views of the batch. To find it after a crop,
    a flip and a change of colors, the network has to recognize what is in the image. Color jitter and
    grayscale are essential: two crops of an image can be matched by their color histograms (section 3.1,
    figure 6). More images in a batch mean more negatives, and so a harder task.

    The projection head is used for training only. The features before it are better, since the loss makes the
    embeddings invariant to colors and positions, which downstream tasks may need (section 4.2).

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D).
        temperature: float; 0.5 for CIFAR, 0.1 for ImageNet. Smaller values are better in short training runs.
        dimensions: int, of the embedding.
        depth: int, dense layers of the projection head; 3 in SimCLR v2.
        recipe: augmentation of both views, a Recipe or the name of one: "SIMCLR_SMALL" for small images,
            "SIMCLR" for images of about 224 pixels, which are blurred, too.
        **kwargs: passed to keras.Model.

    Shapes:
        x: (B, 2, H, W, 3) float32 in 0..255, two views. y: (B,) int64, the ids, which are not used.
        Prediction: (B, 2, dimensions) float32 embeddings.

    Raises:
        ValueError: `temperature` is not positive, `dimensions` or `depth` is less than 1, or `recipe` is
            unknown.

    Reference: Chen, Kornblith, Norouzi & Hinton, "A Simple Framework for Contrastive Learning of Visual
    Representations", ICML 2020.

    Example:
        >>> import keras_ssl as kssl
        >>> task = kssl.tasks.SimCLR(kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1, 1)))
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    min_batch_size = 2
    weight_decay = 1e-4

    def __init__(
        self, encoder, temperature=0.5, dimensions=128, depth=2, recipe="SIMCLR_SMALL", **kwargs
    ):
        super().__init__(encoder, **kwargs)
        recipes.find(recipe)
        check_integers(1, dimensions=dimensions, depth=depth)
        self.temperature = check_positive("temperature", temperature)
        self.dimensions, self.depth, self.recipe = dimensions, depth, recipe
        self.head = layers.projection(
            encoder.output_shape[-1], dimensions, depth, normalized="all", name="head"
        )

    def pretext(self, batch, seed):
        return two_views(batch["image"], seed, self.recipe, self.recipe), batch["id"]

    def call(self, x, training=False):
        return embed(self.encoder, self.head, x, training)

    def default_loss(self):
        return losses.NTXent(self.temperature)

    def default_metrics(self):
        return [metrics.Contrast(name) for name in metrics.CONTRAST]

    def default_optimizer(self, steps, learning_rate=6.0):
        return optimizers.lars_cosine(learning_rate, steps, self.weight_decay)

    def preview(self, x, y, y_pred=None):
        return preview(x, None if y_pred is None else cosine(y_pred[:, 0], y_pred[:, 1]))
