"""Spectral normalization, whose gradient includes the gradient of the spectral norm."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="keras_ssl")
class SpectralNormalization(keras.layers.SpectralNormalization):
    """Divides the kernel of a layer by its spectral norm, in the forward pass.

    The kernel W, as a matrix with one column per output channel, is replaced by W / sigma, where sigma = v' W
    u is its largest singular value, and u and v are the singular vectors. One power iteration per training
    step updates u. Since u and v are constants in the gradient, the gradient of a loss L with respect to W is
    (G - <G, W / sigma> v u') / sigma with G = dL / d(W / sigma) (equation 12 of the paper). The second term
    removes the part of the gradient that would only change the scale of W.

    Keras' layer overwrites the variable by W / sigma in each training step instead, and its gradient
    is G, without the second term. Here only the optimizer changes the variable. In mixed precision the
    variable and sigma stay in float32.

    Args:
        layer: keras.layers.Layer with a `kernel`.
        power_iterations: int, per training step.
        **kwargs: passed to keras.layers.Wrapper.

    Call arguments:
        inputs: passed to `layer`.
        training: bool, whether to update u.

    Returns:
        The output of `layer`, in its compute dtype.

    Reference: Miyato, Kataoka, Koyama & Yoshida, "Spectral Normalization for Generative Adversarial
    Networks", ICLR 2018.

    Example:
        >>> layer = SpectralNormalization(keras.layers.Dense(4, use_bias=False), power_iterations=50)
        >>> layer.build((None, 4))
        >>> _ = layer.layer.kernel.assign(tf.linalg.diag([8.0, 4.0, 2.0, 2.0]))
        >>> layer(tf.eye(4), training=True).numpy().diagonal().round(3).tolist()
        [1.0, 0.5, 0.25, 0.25]
    """

    def __init__(self, layer, power_iterations=1, **kwargs):
        # `layer` gets the inputs as they are, and casts them itself.
        super().__init__(
            layer, power_iterations, **{"dtype": "float32", "autocast": False, **kwargs}
        )

    def call(self, inputs, training=False):
        kernel = tf.convert_to_tensor(self.kernel)
        weights = tf.reshape(kernel, [-1, kernel.shape[-1]])
        constant = tf.stop_gradient(weights)
        u = tf.convert_to_tensor(self.vector_u)[0]
        if training:
            for _ in range(self.power_iterations):
                v = tf.math.l2_normalize(tf.linalg.matvec(constant, u))
                u = tf.math.l2_normalize(tf.linalg.matvec(constant, v, transpose_a=True))
            self.vector_u.assign(u[None])
        v = tf.math.l2_normalize(tf.linalg.matvec(constant, u))
        # A u that is not normalized, as at the start, would scale sigma.
        sigma = tf.tensordot(v, tf.linalg.matvec(weights, tf.math.l2_normalize(u)), 1)
        with keras.StatelessScope([(self.kernel, tf.math.divide_no_nan(kernel, sigma))]):
            return self.layer(inputs)
