"""BYOL's loss: the squared distance between normalized predictions and targets."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="keras_ssl")
class SquaredDistance(keras.losses.Loss):
    """Computes the squared distance between the prediction for a view and the target of the other view.

    Both are normalized first, so each of the two terms is 2 - 2 cos. No gradient flows into the targets.

    Args:
        **kwargs: passed to keras.losses.Loss.

    Shapes:
        y_true: not used. y_pred: (B, 2, 2, D), for each image the predictions of both views, then the
        targets of both views. The loss: (B,) float32 in 0..8: 0 if each prediction has the direction of the
        other view's target, 4 if both are orthogonal to it, 8 if both are opposite.

    Raises:
        ValueError: `y_pred` is not (B, 2, 2, D).

    Reference: Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020, equation 2, symmetrized.

    Example:
        >>> predictions, targets = tf.eye(2), tf.eye(2)                 # of views 1 and 2
        >>> float(SquaredDistance()([0], tf.stack([predictions, targets])[None]))
        4.0
    """

    def call(self, y_true, y_pred):
        if len(y_pred.shape) != 4 or y_pred.shape[1:3] != (2, 2):
            raise ValueError(
                f"y_pred must be (B, 2, 2, D), predictions and targets of two views, got {y_pred.shape}"
            )
        normalized = tf.math.l2_normalize(tf.cast(y_pred, tf.float32), axis=-1)
        predictions, targets = normalized[:, 0], tf.stop_gradient(normalized[:, 1, ::-1])
        return tf.reduce_sum(tf.math.squared_difference(predictions, targets), axis=[1, 2])
