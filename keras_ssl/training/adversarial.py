"""Adversarial training: the discriminator, and the base class of tasks that have one."""

import keras
import tensorflow as tf

from keras_ssl import layers
from keras_ssl.pretext import PretextModel
from keras_ssl.training import distribute, loss_scale, optimizers

MAX_LOGIT = (
    60.0  # larger logits are clipped: exp(60) is a finite float32, and their gradient is zero
)


def discriminator(height, width, channels=3, filters=16, code=0, dtype=None):
    """Builds a discriminator of real and generated images, with spectral normalization.

    It is DCGAN's discriminator, 4x4 convolutions with stride 2 until at most 4x4 pixels are left, but with
    spectral instead of batch normalization. Spectral normalization bounds its Lipschitz constant, which keeps
    training stable, and makes the logit of an image independent of the other images in the batch, as
    `AdversarialModel` requires.

    Args:
        height, width, channels: int, of the images, whose values are in -1..1.
        filters: int, of the first convolution; doubled in each further one.
        code: int, length of the code that is classified together with the image, or 0.
        dtype: policy of the layers, as in Keras; by default the global one. The logits are float32.

    Returns:
        keras.Model from a list of (B, height, width, channels) and, if `code` is not 0, (B, code) to
        (B, 1) logits, positive for real.

    Raises:
        ValueError: `filters` is below 1.

    Reference: Radford et al., ICLR 2016; Miyato et al., "Spectral Normalization for Generative Adversarial
    Networks", ICLR 2018; pairs of image and code: Donahue et al., "Adversarial Feature Learning", ICLR 2017.

    Example:
        >>> discriminator(32, 32, filters=8).output_shape
        (None, 1)
    """
    if filters < 1:
        raise ValueError(f"filters must be at least 1, got {filters!r}")

    inputs = [keras.Input((height, width, channels), name="image")]
    x = inputs[0]
    while max(x.shape[1:3]) > 4:
        convolution = keras.layers.Conv2D(filters, 4, 2, "same", dtype=dtype)
        x = layers.SpectralNormalization(convolution)(x)
        x = keras.layers.LeakyReLU(0.2, dtype=dtype)(x)
        filters *= 2
    x = keras.layers.Flatten(dtype=dtype)(x)
    if code:
        inputs.append(keras.Input((code,), name="code"))
        x = keras.layers.Concatenate(dtype=dtype)([x, inputs[1]])
        x = layers.SpectralNormalization(keras.layers.Dense(filters, dtype=dtype))(x)
        x = keras.layers.LeakyReLU(0.2, dtype=dtype)(x)
    x = layers.SpectralNormalization(keras.layers.Dense(1, dtype="float32"))(x)
    return keras.Model(inputs, x, name="discriminator")


class AdversarialModel(PretextModel):
    """Trains a pretext task together with a discriminator, which has its own optimizer.

    A task sets `self.discriminator` (None trains without a discriminator) and defines
    `discriminator_inputs(x, y, y_pred)`. In one step the discriminator minimizes its cross-entropy, and the
    other networks minimize the non-saturating loss of Goodfellow et al. (2014). Every network runs forward
    once and backward once: the derivatives of the two losses with respect to the logit of an image differ by
    a factor, so all gradients with respect to that image differ by the same factor.

    With `mixed_float16` each optimizer scales its loss by its own dynamic scale, and skips a step if its
    gradients overflow, independently of the other. The discriminator then runs backward twice, once for
    each loss, since the range of float16 is too small for the factor (a gradient of e^-16 is 0).

    Args:
        encoder: as in PretextModel.
        adversarial: float, weight of the adversarial loss in the loss of the task's networks, in 0..1 unless
            `task_weight` is given.
        task_weight: float, weight of the task's own loss; by default 1 - adversarial.
        **kwargs: passed to keras.Model.

    Attributes:
        discriminator: keras.Model, or None.
        discriminator_rate: float, learning rate of the discriminator relative to that of the other networks.
        encodes_real: bool, whether the real examples contain outputs of the task's networks, as the codes
            of a BiGAN do. Then the gradients of the adversarial loss flow through the real examples too.

    Metrics: `loss`, the loss of the task's networks; `discriminator_loss` (log 4 = 1.39 at chance) and
    `generator_loss` (log 2 = 0.69 at chance).

    Raises:
        ValueError: `adversarial` is not in 0..1, and there is no `task_weight`.
    """

    discriminator = None
    discriminator_rate = 1.0
    encodes_real = False

    def __init__(self, encoder, adversarial, task_weight=None, **kwargs):
        super().__init__(encoder, **kwargs)
        if task_weight is None and not 0 <= adversarial <= 1:
            raise ValueError(f"adversarial must be in 0..1, got {adversarial!r}")
        self.adversarial = adversarial
        self.task_weight = 1 - adversarial if task_weight is None else task_weight
        if adversarial:
            self.trackers = [
                keras.metrics.Mean(name=f"{name}_loss") for name in ("discriminator", "generator")
            ]

    def discriminator_inputs(self, x, y, y_pred):
        """Returns the real and the fake examples for the discriminator.

        Args:
            x, y: a batch of `pretext`.
            y_pred: the prediction for `x`.

        Returns:
            (real, fake): lists of tensors, one for each input of the discriminator.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must define discriminator_inputs(x, y, y_pred)"
        )

    def compile(self, optimizer="adam", *args, discriminator_optimizer="auto", **kwargs):
        """Compiles as `PretextModel.compile` does, with a second optimizer.

        Args:
            optimizer: as in Keras, for all networks except the discriminator.
            *args, **kwargs: passed to `PretextModel.compile`.
            discriminator_optimizer: as in Keras; "auto" for a copy of `optimizer`, with `discriminator_rate`
                times its learning rate. If `optimizer` scales its loss (with `mixed_float16`), the copy does,
                too.
        """
        super().compile(optimizer, *args, **kwargs)
        if self.discriminator is None:
            return
        if discriminator_optimizer == "auto":
            discriminator_optimizer = optimizers.with_rate(self.optimizer, self.discriminator_rate)
        other = keras.optimizers.get(discriminator_optimizer)
        scaled = keras.optimizers.LossScaleOptimizer
        if isinstance(self.optimizer, scaled) and not isinstance(other, scaled):
            other = loss_scale.LossScale(other)
        self.discriminator_optimizer = other
        with self.distribute_strategy.scope():
            self.discriminator_optimizer.build(self.discriminator.trainable_variables)
            # Otherwise Keras would build it for the discriminator's variables too.
            self.optimizer.build(self.generator_variables())

    def generator_variables(self):
        """Returns the variables that `optimizer` trains: all trainable ones except the discriminator's."""
        others = {id(v) for v in self.discriminator.trainable_variables}
        return [v for v in self.trainable_variables if id(v) not in others]

    def state(self):
        if self.discriminator is None:
            return super().state()
        return [*super().state(), *self.discriminator_optimizer.variables]

    def get_compile_config(self):
        config = super().get_compile_config()
        if self.discriminator is not None and self.compiled:
            optimizer = keras.saving.serialize_keras_object(self.discriminator_optimizer)
            config = {**config, "discriminator_optimizer": optimizer}
        return config

    def compile_from_config(self, config):
        if self.discriminator is None:
            super().compile_from_config(config)
        else:  # `compile` builds the optimizers; building a LossScale twice would give it two scales
            self.compile(**keras.saving.deserialize_keras_object(config))

    def discriminate(self, real, fake, training=False):
        """Runs the discriminator once, for both losses and, in training, their gradients.

        Args:
            real, fake: as `discriminator_inputs` returns them.
            training: bool.

        Returns:
            (losses, gradients, pairs): `losses` are those of the discriminator and of the generator, as means
            over the images. In training, `gradients` are those of the discriminator's loss with respect to
            its variables, and `pairs` is a list of (tensor, gradient): a tensor of `fake` or `real`, and the
            gradient of the generator's loss with respect to it. Gradients are summed over the replicas, so
            that sum is the mean over all images, and scaled as the respective optimizer scales its loss.
            Otherwise `gradients` and `pairs` are None.
        """
        inputs = [tf.concat(both, axis=0) for both in zip(real, fake, strict=True)]
        with tf.GradientTape(persistent=True, watch_accessed_variables=training) as tape:
            tape.watch(inputs if training else [])
            logits = self.discriminator(inputs, training=training)
            real_logits, fake_logits = tf.split(logits, 2)
            loss = tf.reduce_mean(tf.nn.softplus(-real_logits) + tf.nn.softplus(fake_logits))
            generator_loss = tf.nn.softplus(-fake_logits)
            if self.encodes_real:
                generator_loss += tf.nn.softplus(real_logits)
            losses = loss, tf.reduce_mean(generator_loss)
            if not training:
                return losses, None, None
            replicas = self.distribute_strategy.num_replicas_in_sync
            parts = [distribute.balance(one, fake[0]) / replicas for one in losses]
            both = self.discriminator_optimizer, self.optimizer
            scaled = [o.scale_loss(one) for o, one in zip(both, parts, strict=True)]
        variables = self.discriminator.trainable_variables
        if any(a is not b for a, b in zip(scaled, parts, strict=True)):
            gradients = tape.gradient(scaled[0], variables)
            input_gradients = tape.gradient(scaled[1], inputs)
        else:
            gradients, input_gradients = tape.gradient(parts[0], (variables, inputs))
            factor = _gradient_ratio(real_logits, fake_logits)
            input_gradients = [
                g * tf.reshape(factor, [-1] + [1] * (len(g.shape) - 1)) for g in input_gradients
            ]
        pairs = []
        for r, f, gradient in zip(real, fake, input_gradients, strict=True):
            real_gradient, fake_gradient = tf.split(gradient, 2)
            pairs += [(f, fake_gradient)] + ([(r, real_gradient)] if self.encodes_real else [])
        return losses, gradients, pairs

    def train_step(self, data):
        if self.discriminator is None:
            return super().train_step(data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            task_loss = self.compute_loss(x, y, y_pred, sample_weight)
            scaled = self.optimizer.scale_loss(self.task_weight * task_loss)
            real, fake = self.discriminator_inputs(x, y, y_pred)
        losses, gradients, pairs = self.discriminate(real, fake, training=True)
        generated = [tensor for tensor, _ in pairs]
        upstream = [self.adversarial * gradient for _, gradient in pairs]
        variables = self.generator_variables()
        generator_gradients = tape.gradient(
            [scaled, *generated], variables, output_gradients=[tf.ones_like(scaled), *upstream]
        )
        self.optimizer.apply(generator_gradients, variables)
        self.discriminator_optimizer.apply(gradients, self.discriminator.trainable_variables)
        self._track(task_loss, losses, y)
        return self.compute_metrics(x, y, y_pred, sample_weight)

    def test_step(self, data):
        if self.discriminator is None:
            return super().test_step(data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = self(x, training=False)
        task_loss = self.compute_loss(x, y, y_pred, sample_weight, training=False)
        losses, _, _ = self.discriminate(*self.discriminator_inputs(x, y, y_pred))
        self._track(task_loss, losses, y)
        return self.compute_metrics(x, y, y_pred, sample_weight)

    def _track(self, task_loss, losses, y):
        # compute_loss divides by the number of replicas.
        task_loss *= self.distribute_strategy.num_replicas_in_sync
        total = self.task_weight * task_loss + self.adversarial * losses[1]
        number = tf.shape(tf.nest.flatten(y)[0])[0]
        for tracker, loss in zip(
            [self._loss_tracker, *self.trackers], [total, *losses], strict=True
        ):
            tracker.update_state(loss, sample_weight=number)


def _gradient_ratio(real_logits, fake_logits):
    """Computes the ratio of the generator's to the discriminator's gradients, per image.

    For a fake image with the logit l, the loss of the discriminator is softplus(l), and the loss of the
    generator is softplus(-l). Their derivatives differ by the factor -exp(-l), and so do all gradients with
    respect to the image, since no other logit depends on it. For a real image the sign of l is reversed.

    Args:
        real_logits, fake_logits: (B, 1) float tensors.

    Returns:
        (2 * B,) float tensor, for the real and then for the fake images.
    """
    logits = tf.concat([real_logits, -fake_logits], axis=0)[:, 0]
    return -tf.exp(tf.clip_by_value(logits, -MAX_LOGIT, MAX_LOGIT))
