"""Two networks, two optimisers, one step: what the tasks with a discriminator share."""

import keras
import tensorflow as tf

from keras_ssl.pretext import PretextModel
from keras_ssl.training import optimizers

MOST = 60.0  # logits beyond: exp(60) is still a float32, and such a gradient is zero anyway


def discriminator(height, width, channels=3, filters=16, code=0, dtype=None):
    """The network that tells real pictures from made ones, with spectral normalisation.

    DCGAN's discriminator, 4x4 convolutions with stride 2 until 4x4 pixels are left, but with spectral
    instead of batch normalisation. That bounds how fast its output can change, which keeps the training
    finite, and makes the logit of a picture independent of the rest of its batch, which `AdversarialModel`
    relies on.

    Args:
        height, width, channels: int, of the pictures, whose values are in -1..1.
        filters: int, of the first convolution; doubled by each further one.
        code: int, the length of a vector that is judged together with the picture, or 0.
        dtype: policy of the layers, as in Keras; by default the global one. The logits are float32.

    Returns:
        keras.Model from a list of (B, height, width, channels) and, where `code` is not 0, (B, code)
        to (B, 1) logits, positive for real.

    Raises:
        ValueError: `filters` below 1.

    Reference: Radford et al., ICLR 2016; Miyato et al., "Spectral Normalization for Generative Adversarial
    Networks", ICLR 2018; the joint judgement: Donahue et al., "Adversarial Feature Learning", ICLR 2017.

    Example:
        >>> discriminator(32, 32, filters=8).output_shape
        (None, 1)
    """
    if filters < 1:
        raise ValueError(f"filters must be at least 1, got {filters!r}")

    def normalized(layer, x):
        # In float32, since it normalises the weights themselves: in mixed precision it would round them to 8
        # or 11 bits in every step. `layer` still gets x as it is.
        return keras.layers.SpectralNormalization(layer, dtype="float32", autocast=False)(x)

    inputs = [keras.Input((height, width, channels), name="picture")]
    x = inputs[0]
    while max(x.shape[1:3]) > 4:
        x = normalized(keras.layers.Conv2D(filters, 4, 2, "same", dtype=dtype), x)
        x = keras.layers.LeakyReLU(0.2, dtype=dtype)(x)
        filters *= 2
    x = keras.layers.Flatten(dtype=dtype)(x)
    if code:
        inputs.append(keras.Input((code,), name="code"))
        x = keras.layers.Concatenate(dtype=dtype)([x, inputs[1]])
        x = normalized(keras.layers.Dense(filters, dtype=dtype), x)
        x = keras.layers.LeakyReLU(0.2, dtype=dtype)(x)
    last = keras.layers.Dense(1, dtype="float32")
    x = keras.layers.SpectralNormalization(last, dtype="float32")(x)
    return keras.Model(inputs, x, name="discriminator")


class AdversarialModel(PretextModel):
    """A pretext model that is also trained to deceive a discriminator, with an optimiser of its own.

    A task sets `self.discriminator`, or leaves it None to be trained as any other, and defines
    `compare(x, y, y_pred)`. The discriminator minimises its cross-entropy, the other networks the
    non-saturating loss of Goodfellow et al. (2014), both in one step. Every network runs forward once and
    backward once in it: the slopes of the two losses at a picture's logit differ by a factor, and so do
    all gradients behind that logit.

    With `mixed_float16` each optimiser scales the loss of its side by a dynamic scale of its own, and leaves
    out a step where its gradients overflow, whatever the other does. The discriminator then runs backward
    twice, once for each side: float16 does not have the range for the factor (a gradient of e^-16 is 0).

    Args:
        encoder: of PretextModel.
        adversarial: float in 0..1, the weight of deceiving the discriminator in the loss of the other
            networks, 1 - adversarial that of the task's own loss.
        **kwargs: of keras.Model.

    Metrics: `loss`, what the networks of the task are trained on; `discriminator_loss` (log 4 = 1.39 when it
    guesses) and `generator_loss` (log 2 = 0.69).

    Raises:
        ValueError: `adversarial` is not in 0..1.
    """

    discriminator = None
    # Whether the task's networks have a part in the real examples too (the codes of a BiGAN).
    makes_real = False

    def __init__(self, encoder, adversarial, **kwargs):
        super().__init__(encoder, **kwargs)
        if not 0 <= adversarial <= 1:
            raise ValueError(f"adversarial must be in 0..1, got {adversarial!r}")
        self.adversarial = adversarial
        if adversarial:
            self.trackers = [
                keras.metrics.Mean(name=f"{who}_loss") for who in ("discriminator", "generator")
            ]

    def compare(self, x, y, y_pred):
        """What the discriminator is to tell apart.

        Args:
            x, y: a batch as `pretext` made it.
            y_pred: the prediction for `x`.

        Returns:
            (real, fake): lists of tensors, one for each input of the discriminator.
        """
        raise NotImplementedError(f"{type(self).__name__} must define compare(x, y, y_pred)")

    def compile(self, optimizer="adam", *args, discriminator_optimizer="auto", **kwargs):
        """Compiles as `PretextModel.compile` does, with a second optimiser.

        Args:
            optimizer: as in Keras, for all networks but the discriminator.
            *args, **kwargs: as `PretextModel.compile`.
            discriminator_optimizer: as in Keras; "auto" for one like `optimizer`. Where that scales its loss
                (with `mixed_float16`), this one does too.
        """
        super().compile(optimizer, *args, **kwargs)
        if self.discriminator is None:
            return
        if discriminator_optimizer == "auto":
            optimizer = keras.optimizers.serialize(self.optimizer)
            discriminator_optimizer = keras.optimizers.deserialize(optimizer)
        other = keras.optimizers.get(discriminator_optimizer)
        scaled = keras.optimizers.LossScaleOptimizer
        if isinstance(self.optimizer, scaled) and not isinstance(other, scaled):
            other = optimizers.LossScale(other)
        self.discriminator_optimizer = other
        with self.distribute_strategy.scope():
            self.discriminator_optimizer.build(self.discriminator.trainable_variables)
            # Else Keras would build it for the discriminator's variables too.
            self.optimizer.build(self.generator_variables())

    def generator_variables(self):
        """The trainable variables that `optimizer` trains: all but those of the discriminator."""
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
        else:  # `compile` builds the optimisers; a second time one that scales would have two scales
            self.compile(**keras.saving.deserialize_keras_object(config))

    def judge(self, real, fake, training=False):
        """Runs the discriminator once, for the losses of both sides and in training their gradients.

        Args:
            real, fake: what `compare` gives.
            training: bool.

        Returns:
            (losses, gradients, pairs): `losses` the discriminator's and the generator's, means over the
            pictures. In training also the gradients of the discriminator's variables by its loss,
            and pairs of a tensor of `fake` or `real` and the generator's gradient by it; both as shares
            of the sum over the replicas, scaled as the optimiser of their side scales its loss.
        """
        shown = [tf.concat(both, axis=0) for both in zip(real, fake, strict=True)]
        with tf.GradientTape(persistent=True, watch_accessed_variables=training) as tape:
            tape.watch(shown if training else [])
            logits = self.discriminator(shown, training=training)
            is_real, is_fake = tf.split(logits, 2)
            loss = tf.reduce_mean(tf.nn.softplus(-is_real) + tf.nn.softplus(is_fake))
            deceived = tf.nn.softplus(-is_fake)
            if self.makes_real:
                deceived += tf.nn.softplus(is_real)
            losses = loss, tf.reduce_mean(deceived)
            if not training:
                return losses, None, None
            shares = [one / self.distribute_strategy.num_replicas_in_sync for one in losses]
            sides = self.discriminator_optimizer, self.optimizer
            scaled = [o.scale_loss(one) for o, one in zip(sides, shares, strict=True)]
        variables = self.discriminator.trainable_variables
        if any(a is not b for a, b in zip(scaled, shares, strict=True)):
            gradients, by_shown = (
                tape.gradient(scaled[0], variables),
                tape.gradient(scaled[1], shown),
            )
        else:
            gradients, by_shown = tape.gradient(shares[0], (variables, shown))
            # Of a fake picture the discriminator has softplus(l), the generator softplus(-l). Their slopes
            # at the logit l differ by -exp(-l), and so do all gradients behind it, which depend on no other
            # picture. Of a real one the sign of l is the other.
            factor = tf.concat([is_real, -is_fake], axis=0)[:, 0]
            factor = -tf.exp(tf.clip_by_value(factor, -MOST, MOST))
            by_shown = [g * tf.reshape(factor, [-1] + [1] * (len(g.shape) - 1)) for g in by_shown]
        pairs = []
        for r, f, gradient in zip(real, fake, by_shown, strict=True):
            of_real, of_fake = tf.split(gradient, 2)
            pairs += [(f, of_fake)] + ([(r, of_real)] if self.makes_real else [])
        return losses, gradients, pairs

    def train_step(self, data):
        if self.discriminator is None:
            return super().train_step(data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            own = self.compute_loss(x, y, y_pred, sample_weight)
            own_share = self.optimizer.scale_loss((1 - self.adversarial) * own)
            real, fake = self.compare(x, y, y_pred)
        losses, gradients, pairs = self.judge(real, fake, training=True)
        made = [tensor for tensor, _ in pairs]
        upstream = [self.adversarial * gradient for _, gradient in pairs]
        variables = self.generator_variables()
        own_gradients = tape.gradient(
            [own_share, *made], variables, output_gradients=[tf.ones_like(own_share), *upstream]
        )
        self.optimizer.apply(own_gradients, variables)
        self.discriminator_optimizer.apply(gradients, self.discriminator.trainable_variables)
        self._track(own, losses, y)
        return self.compute_metrics(x, y, y_pred, sample_weight)

    def test_step(self, data):
        if self.discriminator is None:
            return super().test_step(data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = self(x, training=False)
        own = self.compute_loss(x, y, y_pred, sample_weight, training=False)
        losses, _, _ = self.judge(*self.compare(x, y, y_pred))
        self._track(own, losses, y)
        return self.compute_metrics(x, y, y_pred, sample_weight)

    def _track(self, own, losses, y):
        # compute_loss gives shares of the sum over the replicas.
        own *= self.distribute_strategy.num_replicas_in_sync
        total = (1 - self.adversarial) * own + self.adversarial * losses[1]
        number = tf.shape(tf.nest.flatten(y)[0])[0]
        for tracker, loss in zip(
            [self._loss_tracker, *self.trackers], [total, *losses], strict=True
        ):
            tracker.update_state(loss, sample_weight=number)
