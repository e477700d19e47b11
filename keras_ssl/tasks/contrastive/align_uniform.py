"""Alignment and uniformity: views of an image coincide on the sphere, and images spread over it."""

import keras

from keras_ssl import layers, losses, metrics
from keras_ssl.arguments import check_integer
from keras_ssl.ops import recipes
from keras_ssl.pretext import PretextModel
from keras_ssl.tasks.contrastive.views import cosine, embed, preview, two_views


@keras.saving.register_keras_serializable(package="keras_ssl")
class AlignUniform(PretextModel):
    """Embeds two views of an image at the same place of the unit sphere, and all images evenly over it.

    With many negatives, the contrastive loss approaches the two terms of this loss: the views of an image
    attract each other (alignment), and all images of the batch repel each other (uniformity). Without
    uniformity, all images would get the same embedding. Uniformity is computed for each view alone; over the
    union of both, the two views of an image would repel each other.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D).
        alpha: float, power of the distance between views.
        t: float, how fast the repulsion decreases with the squared distance.
        alignment: float, weight of the alignment.
        uniformity: float, weight of the uniformity.
        dimensions: int, of the embedding.
        recipe: augmentation of both views, a Recipe or the name of one: "SIMCLR_SMALL", or "ALIGN_UNIFORM",
            the authors' recipe for images of 64 pixels.
        **kwargs: passed to keras.Model.

    Shapes:
        x: (B, 2, H, W, 3) float32 in 0..255, two views. y: (B,) int64, the ids, which are not used.
        Prediction: (B, 2, dimensions) float32 embeddings.

    Raises:
        ValueError: `alpha` or `t` is not positive, a weight is negative, `dimensions` is less than 1, or
            `recipe` is unknown.

    Reference: Wang & Isola, "Understanding Contrastive Representation Learning through Alignment and
    Uniformity on the Hypersphere", ICML 2020.

    Example:
        >>> import keras_ssl as kssl
        >>> task = kssl.tasks.AlignUniform(kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1, 1)))
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    min_batch_size = 2
    weight_decay = 1e-4

    def __init__(
        self, encoder, alpha=2.0, t=2.0, alignment=1.0, uniformity=1.0, dimensions=128,
        recipe="SIMCLR_SMALL", **kwargs,
    ):  # fmt: skip
        super().__init__(encoder, **kwargs)
        recipes.find(recipe)
        check_integer("dimensions", dimensions, 1)
        losses.AlignmentUniformity(alpha, t, alignment, uniformity)  # checks them
        self.alpha, self.t, self.alignment, self.uniformity = alpha, t, alignment, uniformity
        self.dimensions, self.recipe = dimensions, recipe
        self.head = layers.projection(
            encoder.output_shape[-1], dimensions, normalized="hidden", name="head"
        )

    def pretext(self, batch, seed):
        return two_views(batch["image"], seed, self.recipe, self.recipe), batch["id"]

    def call(self, x, training=False):
        return embed(self.encoder, self.head, x, training)

    def default_loss(self):
        return losses.AlignmentUniformity(self.alpha, self.t, self.alignment, self.uniformity)

    def default_metrics(self):
        # One value per image: a mean would count a small last batch, or a replica, as much as a full batch.
        terms = {
            "alignment": losses.Alignment(self.alpha, reduction="none"),
            "uniformity": losses.Uniformity(self.t, reduction="none"),
        }
        return [
            *(metrics.Contrast(name) for name in metrics.CONTRAST),
            *(keras.metrics.MeanMetricWrapper(term, name) for name, term in terms.items()),
        ]

    def default_optimizer(self, steps, learning_rate=0.3):
        return super().default_optimizer(steps, learning_rate)

    def preview(self, x, y, y_pred=None):
        return preview(x, None if y_pred is None else cosine(y_pred[:, 0], y_pred[:, 1]))
