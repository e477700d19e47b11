"""BYOL: predicts the embedding that a momentum encoder gives the other view of an image."""

import keras
import tensorflow as tf

from keras_ssl import fitting, layers, losses, metrics
from keras_ssl.arguments import check_bool, check_fraction, check_integers
from keras_ssl.ops import recipes
from keras_ssl.pretext import PretextModel
from keras_ssl.tasks.contrastive.views import cosine, preview, two_views
from keras_ssl.training.momentum import UNKNOWN_STEPS, CountSteps, follow, risen, twin


@keras.saving.register_keras_serializable(package="keras_ssl")
class BYOL(PretextModel):
    """Predicts from one view of an image the embedding of its other view, without negatives.

    The targets come from a momentum encoder, a moving average of the network itself. A constant embedding
    would be a perfect prediction. Two things prevent this collapse: only the online network has a predictor,
    and no gradient flows into the targets (section 3.2 and appendix). Without the predictor
    (`predictor=False`) the embedding collapses.

    The momentum rises from `momentum` to 1 along a cosine over the steps of `fit`. The recipes of the two
    views differ, so the loss is symmetric: each view is predicted from the other.

    Args:
        encoder: functional keras.Model from (B, H, W, 3) to (B, D), with batch normalization.
        momentum: float in [0, 1], of the target network at the first step; 0.996 for 1,000 epochs of
            ImageNet, 0.97 for 40.
        dimensions: int, of the embedding.
        hidden: int, width of the hidden layers of projector and predictor; 4096 in the paper.
        predictor: bool, False only to see the collapse.
        recipe: augmentation of the first view, a Recipe or the name of one: "BYOL_1_SMALL" for small
            images, "BYOL_1" for images of about 224 pixels, which are blurred, too.
        other_recipe: augmentation of the second view: "BYOL_2_SMALL" or "BYOL_2".
        **kwargs: passed to keras.Model.

    Shapes:
        x: (B, 2, H, W, 3) float32 in 0..255, two views. y: (B,) int64, the ids, which are not used.
        Prediction: (B, 2, 2, dimensions) float32, the predictions for both views, then the targets.

    Raises:
        ValueError: `momentum` is not in [0, 1], a number is less than 1, or a recipe is unknown.

    Reference: Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", NeurIPS
    2020.

    Example:
        >>> import keras_ssl as kssl
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1, 1))
        >>> task = kssl.tasks.BYOL(encoder, hidden=32)
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(kssl.data.digits("test"), batch_size=60), verbose=0)
    """

    min_batch_size = 2  # batch normalization makes the embeddings of a single image constant
    weight_decay = 1e-4

    def __init__(
        self, encoder, momentum=0.97, dimensions=256, hidden=1024, predictor=True,
        recipe="BYOL_1_SMALL", other_recipe="BYOL_2_SMALL", **kwargs,
    ):  # fmt: skip
        super().__init__(encoder, **kwargs)
        for name in (recipe, other_recipe):
            recipes.find(name)
        check_integers(1, dimensions=dimensions, hidden=hidden)
        self.momentum = check_fraction("momentum", momentum)
        self.dimensions, self.hidden = dimensions, hidden
        self.predictor = check_bool("predictor", predictor)
        self.recipe, self.other_recipe = recipe, other_recipe
        shape = {"depth": 2, "hidden": hidden, "normalized": "hidden"}
        self.head = layers.projection(
            encoder.output_shape[-1], dimensions, **shape, name="projector"
        )
        self.predict_target = None
        if predictor:
            self.predict_target = layers.projection(
                dimensions, dimensions, **shape, name="predictor"
            )
        self.target_encoder, self.target_head = twin(encoder), twin(self.head)
        # Number of steps so far, and of the whole run. `fit` sets the latter; otherwise the momentum is
        # constant.
        self.step, self.steps = (
            self.add_weight(
                name=name, shape=(), dtype="int32", trainable=False,
                initializer=keras.initializers.Constant(value),
            )
            for name, value in (("step", 0), ("steps", UNKNOWN_STEPS))
        )  # fmt: skip

    def pretext(self, batch, seed):
        return two_views(batch["image"], seed, self.recipe, self.other_recipe), batch["id"]

    def call(self, x, training=False):
        if training:
            # After the optimizer step of the previous call; in the first call both networks are equal.
            follow(self.target_encoder, self.encoder, self._momentum_now())
            follow(self.target_head, self.head, self._momentum_now())
            self.step.assign(tf.convert_to_tensor(self.step) + 1)
        views = tf.unstack(x, 2, axis=1)
        # Each view in a separate batch, as in the authors' code.
        online = [self.head(self.encoder(v, training=training), training=training) for v in views]
        if self.predict_target is not None:
            online = [self.predict_target(z, training=training) for z in online]
        targets = [
            self.target_head(self.target_encoder(v, training=training), training=training)
            for v in views
        ]
        return tf.stack([tf.stack(online, 1), tf.stop_gradient(tf.stack(targets, 1))], axis=1)

    def _momentum_now(self):
        """Returns the momentum of this step, which rises to 1 at the end of `fit` (section 3.3)."""
        # The update after the first step, which `call` makes in the second, is number 0.
        return risen(self.momentum, tf.convert_to_tensor(self.step) - 1, self.steps)

    def fit(
        self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, *args,
        **kwargs,
    ):  # fmt: skip
        callbacks = fitting.as_list(callbacks)
        if isinstance(callbacks, list):
            callbacks = [*callbacks, CountSteps()]
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs)

    fit.__doc__ = PretextModel.fit.__doc__

    def default_loss(self):
        return losses.SquaredDistance()

    def default_metrics(self):
        return [metrics.Contrast(name) for name in metrics.CONTRAST]

    def preview(self, x, y, y_pred=None):
        return preview(x, None if y_pred is None else cosine(y_pred[:, 0, 0], y_pred[:, 1, 1]))
