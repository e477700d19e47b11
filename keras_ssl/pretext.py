"""The one base class of the zoo: a Keras model that makes its own labels."""

import keras
import tensorflow as tf

from keras_ssl import data
from keras_ssl.callbacks import Checkpoint, Finite
from keras_ssl.callbacks.checkpoint import Resumed
from keras_ssl.training import distribute, optimizers, pipeline


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
    whole_batches = False  # whether `pretext` mixes the pictures of a batch

    def __init__(self, encoder, **kwargs):
        super().__init__(**kwargs)
        self.autocast = (
            False  # 16 bits would round pixels, which the layers rescale in float32 first
        )
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

    def dataset(
        self, images, batch_size, epochs=1, first_epoch=0, shuffle=True, seed=0, service=None
    ):
        """Training data for `fit`: all epochs in one dataset, labels made on the way.

        Every random number follows from (seed, epoch, image id), so a job resumed with
        `first_epoch=k` sees bit for bit what the uninterrupted one would have seen. Under a strategy
        with several workers each gets its share of every batch: all of them together what one would get.

        Args:
            images: tf.data.Dataset of dicts with `image` (H, W, C) and `id`, of known length, as
                the readers in `keras_ssl.data` make it.
            batch_size: int, images per batch over all replicas; the last batch may be smaller.
            epochs: int, the epoch to stop before, as in `fit(epochs=...)`.
            first_epoch: int, the epoch to start with, as in `fit(initial_epoch=...)`.
            shuffle: bool, a new order every epoch.
            seed: int.
            service: address such as "grpc://host:port" of a tf.data service (`keras-ssl data-service`)
                whose workers load the pictures and make the labels, the same ones in the same order; or
                None.

        Returns:
            tf.data.Dataset of (x, y), with the attribute `steps_per_epoch` that `fit` reads.

        Raises:
            ValueError: `images` has no `image` and `id`, no known length, no picture or pictures of
                another size than the encoder's; `batch_size` is less than 1 or cannot be shared
                among the replicas of the strategy; `first_epoch` is not before `epochs`; a `service`
                that is no address, or for pictures that cannot be asked for by their place.
        """
        strategy = self.distribute_strategy
        pipeline.check(images, self.encoder, batch_size, epochs, first_epoch, strategy, service)

        def from_step(step):
            return pipeline.batches(
                images, self.pretext, batch_size, epochs, step, shuffle, seed,
                distribute.worker(strategy), self.whole_batches, service,
            )  # fmt: skip

        steps = -(-int(images.cardinality()) // batch_size)
        length = tf.data.experimental.assert_cardinality(steps * (epochs - first_epoch))
        batches = from_step(first_epoch * steps).apply(length)
        batches.steps_per_epoch, batches.from_step = steps, from_step
        return batches

    def compile(self, optimizer="adam", loss="auto", metrics="auto", jit_compile="auto", **kwargs):
        """Keras' compile; "auto" takes the task's own loss and metrics.

        Args:
            optimizer: as in Keras; with `mixed_float16` it gets an `optimizers.LossScale` around it.
            loss: as in Keras, or "auto" for `default_loss()`.
            metrics: as in Keras, or "auto" for `default_metrics()`.
            jit_compile: as in Keras; "auto" compiles with XLA unless there is only a CPU, where it
                halves the throughput of narrow convolutional networks.
            **kwargs: as in Keras.
        """
        if jit_compile == "auto" and not tf.config.list_physical_devices("GPU"):
            jit_compile = False
        if self.dtype_policy.name == "mixed_float16" and kwargs.get("auto_scale_loss", True):
            optimizer = keras.optimizers.get(optimizer)
            if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
                # Under Keras' name, so that variables keep their paths.
                optimizer = optimizers.LossScale(optimizer, name="loss_scale_optimizer")
        super().compile(
            optimizer,
            loss=self.default_loss() if loss == "auto" else loss,
            metrics=self.default_metrics() if metrics == "auto" else metrics,
            jit_compile=jit_compile,
            **kwargs,
        )

    def fit(
        self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None, *args,
        initial_epoch=0, steps_per_epoch=None, **kwargs,
    ):  # fmt: skip
        """Keras' fit; a dataset made by `dataset` knows how many steps its epochs have.

        With a `callbacks.Checkpoint` it goes on where the newest checkpoint was saved, be it in the middle
        of an epoch.

        Raises:
            ValueError: the dataset was made for another number of epochs, or a clustering task has no
                `callbacks.Relabel`; the checkpoint does not fit the task or the steps of an execution.
            FloatingPointError: the loss or a metric is no longer finite; the message names the step.
            RuntimeError: another worker is gone.
        """
        if hasattr(self, "relabel") and not any(hasattr(c, "relabel") for c in callbacks or []):
            raise ValueError(
                f"callbacks must hold a Relabel, or {type(self).__name__} has no labels: add "
                "callbacks=[keras_ssl.callbacks.Relabel(images)] with the images of the dataset"
            )
        checkpoint = None
        if callbacks is None or isinstance(callbacks, list | tuple):
            callbacks = list(callbacks or [])
            checkpoint = next((c for c in callbacks if isinstance(c, Checkpoint)), None)
            if not any(isinstance(c, keras.callbacks.TerminateOnNaN) for c in callbacks):
                callbacks.append(Finite(checkpoint))
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
            executed = self.steps_per_execution
            if steps_per_epoch % executed:
                raise ValueError(
                    f"steps_per_execution {executed} must divide the {steps_per_epoch} steps of an epoch"
                )
            if checkpoint is not None:
                step = max(checkpoint.restore(self, x), initial_epoch * steps_per_epoch)
                if step == epochs * steps_per_epoch:
                    return keras.callbacks.History()  # it is done
                if step > initial_epoch * steps_per_epoch:
                    callbacks = Resumed(self, callbacks, step, epochs, steps_per_epoch, verbose)
                    x, initial_epoch = x.from_step(step), step // steps_per_epoch
            x = distribute.share(self.distribute_strategy, x)
        kwargs.update(initial_epoch=initial_epoch, steps_per_epoch=steps_per_epoch)
        with distribute.lost_worker(self.distribute_strategy, checkpoint):
            return super().fit(x, y, batch_size, epochs, verbose, callbacks, *args, **kwargs)

    def evaluate(self, x=None, *args, **kwargs):
        """Keras' evaluate; with several workers of a dataset made by `dataset`, over all of them."""
        if hasattr(x, "from_step"):
            x = distribute.share(self.distribute_strategy, x)
        with distribute.lost_worker(self.distribute_strategy):
            return super().evaluate(x, *args, **kwargs)

    def state(self):
        """Every variable that a training changes, but those of the metrics.

        Returns:
            list of keras.Variable.
        """
        return [*self.variables, *self.optimizer.variables]

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Keras would build from the mean of the replicas' first batches, which fails where these differ in
        # size, as at the end of an epoch, where a training may be resumed.
        strategy = self.distribute_strategy
        if iterator is None or strategy.num_replicas_in_sync == 1:
            return super()._maybe_symbolic_build(iterator, data_batch)
        batch = next(next(iter(iterator))[2])
        first = tf.nest.map_structure(lambda v: strategy.experimental_local_results(v)[0], batch)
        with strategy.scope():
            self._symbolic_build(data_batch=first)

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
