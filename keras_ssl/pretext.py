"""The one base class of the zoo: a Keras model that makes its own labels."""

import keras
import tensorflow as tf

from keras_ssl import data, optimizers
from keras_ssl.callbacks import Finite

SHUFFLE_BYTES = (
    2**30
)  # the shuffle buffer holds decoded pictures; more would not fit small machines


@keras.saving.register_keras_serializable(package="keras_ssl")
class PretextModel(keras.Model):
    """Encoder plus head, trained on labels that are made from the pictures themselves.

    A task derives from this class in one file and writes, in the order in which data flows:

    - `pretext(batch, seed)`: pictures to `(x, y)`, in tf.data, before the network;
    - `call(x, training)`: `x` to the prediction, through `self.encoder` and its own head;
    - `late_labels(x, y, y_pred)`: only where the labels need state of the model;
    - `default_loss()`, `default_metrics()` and, for its own arguments, `get_config()`.

    Axis 0 of `x` and `y` is always the image: several versions of one image (rotations, tiles,
    views) go on axis 1, because `tf.distribute` splits axis 0.

    Args:
        encoder: functional keras.Model from (B, H, W, C) pixels in 0..255 to (B, D) features, as
            `keras_ssl.encoders` makes them.
        **kwargs: of keras.Model (name, dtype).

    Raises:
        ValueError: `encoder` is not such a model.
    """

    reader = staticmethod(data.from_folder)  # what the command reads a folder with

    def __init__(self, encoder, **kwargs):
        super().__init__(**kwargs)
        shape = getattr(encoder, "input_shape", None)
        if not isinstance(shape, tuple) or len(shape) != 4 or len(encoder.output_shape) != 2:
            raise ValueError(
                "encoder must be a functional keras.Model from (B, H, W, C) to (B, D), got "
                f"{encoder!r}; keras_ssl.encoders.from_keras makes one from any Keras model"
            )
        self.encoder = encoder

    def pretext(self, batch, seed):
        """Makes the labels that are known before the network.

        Args:
            batch: dict of tensors with the image on axis 0: `image` (B, H, W, C) uint8 or float32
                in 0..255, `id` (B,) int64, and what else the reader has.
            seed: (B, 2) int64, one seed per image for the `tf.random.stateless_*` functions, the
                only ones allowed here.

        Returns:
            (x, y): tensors, or structures of them, with the image on axis 0.
        """
        raise NotImplementedError(f"{type(self).__name__} must define pretext(batch, seed)")

    def late_labels(self, x, y, y_pred):
        """Makes the labels that need the model's state (pseudo-labels, momentum targets).

        Called for the loss and again for the metrics: it may read the state, not change it.

        Args:
            x, y: of the batch, as `pretext` made them.
            y_pred: the prediction for `x`.

        Returns:
            (y, sample_weight) for the loss and the metrics; sample_weight (B,) or None.
        """
        return y, None

    def default_loss(self):
        """The loss that `compile` uses: a keras.losses.Loss with one value per image or more."""
        raise NotImplementedError(f"{type(self).__name__} must define default_loss()")

    def default_metrics(self):
        """The list of metrics that `compile` uses."""
        return []

    def default_optimizer(self, steps, learning_rate=0.1):
        """What `keras-ssl pretrain` trains with.

        Args:
            steps: int, optimiser steps of the whole training.
            learning_rate: float, the peak.

        Returns:
            keras.optimizers.Optimizer.
        """
        return optimizers.sgd_cosine(learning_rate, steps)

    def default_callbacks(self, images):
        """The callbacks without which the task cannot be fitted, for `fit(callbacks=...)`.

        Args:
            images: the dataset that the task is fitted on, as given to `dataset`.

        Returns:
            list of keras.callbacks.Callback; a task with a method `relabel` needs a
            `callbacks.Relabel`.
        """
        return []

    def features(self, images):
        """Features of whole pictures: what export, serving and evaluation use.

        Args:
            images: (B, H, W, C) pixels in 0..255, uint8 or float.

        Returns:
            (B, D) float32 tensor.
        """
        return tf.cast(self.encoder(images, training=False), tf.float32)

    def prediction(self, images):
        """What the task predicts for whole pictures: the `pretext` signature of the export.

        Args:
            images: (B, H, W, C) pixels in 0..255.

        Returns:
            dict of tensors with the image on axis 0, or None where the task says nothing about a
            single picture.
        """
        return None

    def preview(self, x, y, y_pred=None):
        """What the network sees and its labels, for people: `keras-ssl preview` draws it.

        Args:
            x, y: a batch as `pretext` made it, as arrays.
            y_pred: the prediction for it, to be shown beside the labels, or None.

        Returns:
            list with one entry per image: a list of ((H, W, C) pixels in 0..255, caption).
        """
        raise NotImplementedError(f"{type(self).__name__} must define preview(x, y)")

    def dataset(self, images, batch_size, epochs=1, first_epoch=0, shuffle=True, seed=0):
        """Training data for `fit`: all epochs in one dataset, labels made on the way.

        Every random number follows from (seed, epoch, image id), so a job resumed with
        `first_epoch=k` sees bit for bit what the uninterrupted one would have seen.

        Args:
            images: tf.data.Dataset of dicts with `image` (H, W, C) and `id`, of known length, as
                the readers in `keras_ssl.data` make it.
            batch_size: int, images per batch over all replicas; the last batch may be smaller.
            epochs: int, the epoch to stop before, as in `fit(epochs=...)`.
            first_epoch: int, the epoch to start with, as in `fit(initial_epoch=...)`.
            shuffle: bool, a new order every epoch.
            seed: int.

        Returns:
            tf.data.Dataset of (x, y), with the attribute `steps_per_epoch` that `fit` reads.

        Raises:
            ValueError: `images` has no `image` and `id`, no known length, no picture or pictures of
                another size than the encoder's; `batch_size` is less than 1 or cannot be shared
                among the replicas of the strategy; `first_epoch` is not before `epochs`.
        """
        spec = images.element_spec
        if not isinstance(spec, dict) or not {"image", "id"} <= set(spec):
            raise ValueError(f"images must yield dicts with `image` and `id`, got {spec}")
        number = int(images.cardinality())
        if number <= 0:
            raise ValueError(
                "images must have a known length of at least 1, got cardinality "
                f"{number}; use a reader of keras_ssl.data, or tf.data.experimental.assert_cardinality"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        replicas = self.distribute_strategy.num_replicas_in_sync
        # Keras builds the model from a batch that all replicas share evenly, and TensorFlow's
        # convolutions give wrong shapes for a replica that gets no image at all.
        if min(batch_size, number) % replicas or 0 < number % batch_size < replicas:
            raise ValueError(
                f"batch_size {batch_size} cannot share {number} images among {replicas} replicas: "
                f"the first batch must be a multiple of {replicas}, the last have at least that many"
            )
        if not 0 <= first_epoch < epochs:
            raise ValueError(f"first_epoch must be in 0..epochs-1, got {first_epoch} of {epochs}")
        shape = spec["image"].shape
        expected = tf.TensorShape(self.encoder.input_shape[1:])
        if not expected.is_compatible_with(shape):
            raise ValueError(f"images are {shape}, but the encoder takes {expected}")

        image_bytes = (shape.num_elements() or SHUFFLE_BYTES) * spec["image"].dtype.size
        buffer = min(number, max(batch_size, SHUFFLE_BYTES // image_bytes))

        def one_epoch(epoch):
            epoch_seed = tf.random.stateless_uniform(
                (), tf.stack([tf.cast(seed, tf.int64), epoch]), None, None, tf.int64
            )

            def label(batch):
                ids = tf.cast(batch["id"], tf.int64)
                return self.pretext(batch, tf.stack([tf.fill(tf.shape(ids), epoch_seed), ids], 1))

            # Of this function's graph: the order must not follow from the global seed as well.
            tf.compat.v1.set_random_seed(1)
            data = images.shuffle(buffer, seed=epoch_seed) if shuffle else images
            return data.batch(batch_size).map(label, tf.data.AUTOTUNE)

        steps = -(-number // batch_size)
        data = tf.data.Dataset.range(first_epoch, epochs).flat_map(one_epoch)
        data = data.apply(
            tf.data.experimental.assert_cardinality(steps * (epochs - first_epoch))
        ).prefetch(tf.data.AUTOTUNE)
        data.steps_per_epoch = steps
        return data

    def compile(self, optimizer="adam", loss="auto", metrics="auto", jit_compile="auto", **kwargs):
        """Keras' compile; "auto" takes the task's own loss and metrics.

        Args:
            optimizer: as in Keras.
            loss: as in Keras, or "auto" for `default_loss()`.
            metrics: as in Keras, or "auto" for `default_metrics()`.
            jit_compile: as in Keras; "auto" compiles with XLA unless there is only a CPU, where it
                halves the throughput of narrow convolutional networks.
            **kwargs: as in Keras.
        """
        if jit_compile == "auto" and not tf.config.list_physical_devices("GPU"):
            jit_compile = False
        super().compile(
            optimizer,
            loss=self.default_loss() if loss == "auto" else loss,
            metrics=self.default_metrics() if metrics == "auto" else metrics,
            jit_compile=jit_compile,
            **kwargs,
        )

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        *args,
        initial_epoch=0,
        steps_per_epoch=None,
        **kwargs,
    ):
        """Keras' fit; a dataset made by `dataset` knows how many steps its epochs have.

        Raises:
            ValueError: the dataset was made for another number of epochs, or a clustering task has no
                `callbacks.Relabel`.
            FloatingPointError: the loss or a metric is no longer finite; the message names the step.
        """
        if hasattr(self, "relabel") and not any(hasattr(c, "relabel") for c in callbacks or []):
            raise ValueError(
                f"callbacks must hold a Relabel, or {type(self).__name__} has no labels: add "
                "callbacks=[keras_ssl.callbacks.Relabel(images)] with the images of the dataset"
            )
        if callbacks is None or isinstance(callbacks, list | tuple):
            callbacks = list(callbacks or [])
            if not any(isinstance(c, keras.callbacks.TerminateOnNaN) for c in callbacks):
                callbacks.append(Finite())
        if isinstance(x, tf.data.Dataset):
            kwargs["shuffle"] = False  # it is shuffled already; Keras would warn
        if hasattr(x, "steps_per_epoch") and steps_per_epoch is None:
            steps_per_epoch = x.steps_per_epoch
            made, asked = int(x.cardinality()) // steps_per_epoch, epochs - initial_epoch
            if made != asked:
                raise ValueError(
                    f"fit(epochs={epochs}, initial_epoch={initial_epoch}) runs {asked} epochs, but "
                    f"the dataset holds {made}: give dataset() and fit() the same epochs"
                )
        kwargs.update(initial_epoch=initial_epoch, steps_per_epoch=steps_per_epoch)
        return super().fit(x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        y, weight = self.late_labels(x, y, y_pred)
        return super().compute_loss(
            x, y, y_pred, sample_weight if weight is None else weight, training
        )

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        y, weight = self.late_labels(x, y, y_pred)
        return super().compute_metrics(x, y, y_pred, sample_weight if weight is None else weight)

    def compile_from_config(self, config):
        # Keras skips this for models that override compile.
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    def get_config(self):
        encoder = keras.saving.serialize_keras_object(self.encoder)
        return {**super().get_config(), "encoder": encoder}

    @classmethod
    def from_config(cls, config):
        encoder = keras.saving.deserialize_keras_object(config["encoder"])
        return cls(**{**config, "encoder": encoder})
