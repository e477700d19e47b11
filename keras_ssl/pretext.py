"""The base class of all tasks: a Keras model that computes its own labels."""

import keras
import tensorflow as tf

from keras_ssl import data, encoders, fitting, plotting
from keras_ssl.training import configuration, dataset_arguments, distribute, loss_scale, optimizers


@keras.saving.register_keras_serializable(package="keras_ssl")
class PretextModel(keras.Model):
    """Trains an encoder and a head on labels that are computed from the images themselves.

    A task derives from this class in one file and defines, in the order in which data flows:

    - `pretext(batch, seed)`: a batch to `(x, y)`, in tf.data, before the network;
    - `call(x, training)`: `x` to the prediction, through `self.encoder` and its own head;
    - `late_labels(x, y, y_pred)`: only if labels need the model's state;
    - `default_loss()`, `default_metrics()`: only if cross-entropy and accuracy do not fit.

    Axis 0 of `x` and `y` is always the image: rotations, tiles, views and frames of an image go on axis 1,
    because `tf.distribute` splits axis 0. State that follows from the forward pass (momentum twins, queues,
    memory banks) changes inside `call(training=True)`, in layers that own it, as in batch normalization. Each
    argument of the constructor is kept in an attribute of the same name, where `get_config` finds it.

    Args:
        encoder: functional keras.Model from (B, H, W, C) pixels in 0..255 to (B, D) features, as
            created by `keras_ssl.encoders`.
        **kwargs: passed to keras.Model (name, dtype).

    Attributes:
        needs: names of the columns that `pretext` reads in addition to `id`: "image", "frames", "depth", ...
            It gets no other columns, and "label" only if it is listed here.
        networks: names of the constructor's arguments that are models.
        reader: function by which the command reads a folder.
        architecture: function by which the command builds the encoder, such as `encoders.resnet`.
        whole_batches: whether `pretext` mixes the images of a batch.
        min_batch_size: int, 2 if an image is compared with other images of its batch.
        label_name: name of a label in previews.
        weight_decay: float, of the default optimizer.

    Raises:
        ValueError: `encoder` is not such a model, or `needs` or `networks` of the class is a str.

    Warns:
        UserWarning: the encoder has a layer whose gradients TensorFlow may compute wrongly on CPUs.
    """

    needs = ("image",)
    networks = ("encoder",)
    reader = staticmethod(data.from_folder)
    architecture = staticmethod(encoders.resnet)
    whole_batches = False
    min_batch_size = 1
    label_name = "label"
    weight_decay = 0.0

    def __init__(self, encoder, **kwargs):
        super().__init__(**kwargs)
        # 16 bits would round pixels; the layers first rescale them in float32.
        self.autocast = False
        encoders.check_encoder(encoder)
        for name in ("needs", "networks"):
            if isinstance(text := getattr(self, name), str):  # a sequence of letters
                raise ValueError(
                    f"{type(self).__name__}.{name} must be a tuple of names, got {text!r}: write {(text,)!r}"
                )
        self.encoder = encoder

    def pretext(self, batch, seed):
        """Computes the labels that are known before the network runs.

        Args:
            batch: dict of tensors with the image on axis 0: `id` (B,) int64 and the columns in `needs`, such
                as `image` (B, H, W, C) uint8 or float32 in 0..255.
            seed: (B, 2) int64, one seed per image; `keras_ssl.ops.random.split` derives independent ones.

        Returns:
            (x, y): tensors, or structures of them, with the image on axis 0.
        """
        raise NotImplementedError(f"{type(self).__name__} must define pretext(batch, seed)")

    def late_labels(self, x, y, y_pred):
        """Computes the labels that need the model's state, such as pseudo-labels.

        Called for the loss and again for the metrics, so it may read state but not change it.

        Args:
            x, y: a batch of `pretext`.
            y_pred: the prediction for `x`.

        Returns:
            (y, sample_weight) for the loss and the metrics; sample_weight (B,) or None.
        """
        return y, None

    def default_loss(self):
        """Returns the loss of `compile`, at least one value per image, or a dict of losses by output."""
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def default_metrics(self):
        """Returns the list of metrics that `compile` uses, or a dict of lists by output."""
        return [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]

    def default_optimizer(self, steps, learning_rate=0.1):
        """Returns the optimizer of `keras-ssl pretrain` for a number of steps and a peak learning rate."""
        return optimizers.sgd_cosine(learning_rate, steps, self.weight_decay)

    def default_callbacks(self, images):
        """Returns the list of callbacks that `fit` needs, for the dataset `images` to train on."""
        return []

    def features(self, images):
        """Computes features of whole images, for export, serving and evaluation.

        Args:
            images: (B, H, W, C) pixels in 0..255, uint8 or float.

        Returns:
            (B, D) float32 tensor.
        """
        return tf.cast(self.encoder(images, training=False), tf.float32)

    def prediction(self, images):
        """Computes the task's prediction for whole images: the `pretext` signature of the export.

        Args:
            images: (B, H, W, C) pixels in 0..255.

        Returns:
            dict of tensors with the image on axis 0, or None if a single image has no prediction.
        """
        return None

    def label_text(self, label):
        """Names the class `label`, an int, in previews."""
        return str(label)

    def preview(self, x, y, y_pred=None):
        """Returns inputs and labels as captioned images, which `keras-ssl preview` draws.

        Args:
            x, y: a batch of `pretext`, as arrays: here (B, H, W, C) or (B, V, H, W, C), with
                one label per image or per view.
            y_pred: the prediction for it, or None.

        Returns:
            list with one entry per image: a list of ((H, W, C) pixels in 0..255, caption).
        """
        return plotting.labeled_views(x, y, y_pred, self.label_name, self.label_text)

    def dataset(
        self, images, batch_size, epochs=1, first_epoch=0, shuffle=True, seed=0, service=None
    ):
        """Creates the training data for `fit`: one dataset of all epochs, which computes the labels.

        Every random number follows from (seed, epoch, image id), so a run resumed with `first_epoch=k` gets
        the batches of an uninterrupted run, bit for bit, and several workers get those of a single worker.

        Args:
            images: tf.data.Dataset of dicts with `id` and the columns that the task `needs`, such as
                `image` (H, W, C), of known length, as returned by the readers in `keras_ssl.data`.
            batch_size: int, images per batch over all replicas; the last batch may be smaller.
            epochs: int, the epoch to stop before, as in `fit(epochs=...)`.
            first_epoch: int, the epoch to start with, as in `fit(initial_epoch=...)`.
            shuffle: bool, a new order every epoch.
            seed: int.
            service: address such as "grpc://host:port" of a tf.data service (`keras-ssl data-service`)
                that computes the same batches, or None.

        Returns:
            tf.data.Dataset of (x, y), with the attribute `steps_per_epoch` that `fit` reads.

        Raises:
            ValueError: `images` is not a dataset, lacks a column that the task needs, has no known length, is
                empty, or has images of another size than the encoder's; a number is not an integer;
                `batch_size` is too small or cannot be split among the replicas; `first_epoch` is not before
                `epochs`; `service` is not an address, or `images` has no random access.

        Warns:
            UserWarning: `images` has no random access, since `.take()`, `.map()` and the like drop it.
        """
        dataset_arguments.check(images, self, batch_size, epochs, first_epoch, seed, service)
        return fitting.all_epochs(
            images, self, batch_size, epochs, first_epoch, shuffle, seed, service
        )

    def compile(self, optimizer="adam", loss="auto", metrics="auto", jit_compile="auto", **kwargs):
        """Compiles as Keras does; "auto" takes the task's own loss and metrics.

        Args:
            optimizer: as in Keras; with `mixed_float16` it is wrapped in a `loss_scale.LossScale`.
            loss: as in Keras, or "auto" for `default_loss()`.
            metrics: as in Keras, or "auto" for `default_metrics()`, weighted as the loss is.
            jit_compile: as in Keras; "auto" compiles with XLA unless there is only a CPU, where XLA halves
                the throughput of narrow convolutional networks.
            **kwargs: passed to Keras' compile.

        Raises:
            ValueError: `jit_compile` is True under a strategy with several replicas.
        """
        self._jit_compile_argument = jit_compile
        jit_compile = fitting.resolve_jit_compile(self, jit_compile)
        if self.dtype_policy.name == "mixed_float16" and kwargs.get("auto_scale_loss", True):
            optimizer = loss_scale.with_loss_scale(optimizer)
        loss = self.default_loss() if loss == "auto" else loss
        if metrics == "auto":
            metrics, kwargs = None, {"weighted_metrics": self.default_metrics(), **kwargs}
        super().compile(optimizer, loss, metrics=metrics, jit_compile=jit_compile, **kwargs)

    def fit(
        self, x=None, y=None, batch_size=None, epochs=1, verbose="auto", callbacks=None,
        validation_split=0.0, validation_data=None, *args, initial_epoch=0, steps_per_epoch=None,
        **kwargs,
    ):  # fmt: skip
        """Trains as Keras' fit does, with the number of steps per epoch of the dataset.

        With a `callbacks.Checkpoint` it resumes from the newest checkpoint, even in the middle of an epoch.

        Raises:
            ValueError: the dataset was made for another number of epochs; a task that relabels has no
                `callbacks.Relabel`; the checkpoint does not fit; steps per execution do not divide the epoch.
            FloatingPointError: the loss or a metric is no longer finite; the message names the step.
            RuntimeError: another worker failed.
        """
        callbacks, checkpoint = fitting.complete_callbacks(self, callbacks)
        if isinstance(x, tf.data.Dataset):
            kwargs["shuffle"] = False  # already shuffled; Keras would warn
        with (
            distribute.lost_worker(self.distribute_strategy, checkpoint),
            fitting.released(checkpoint),
        ):
            if hasattr(x, "steps_per_epoch") and steps_per_epoch is None:
                steps_per_epoch = x.steps_per_epoch
                fitting.check_epochs(x, epochs, initial_epoch, self.steps_per_execution)
                if checkpoint is not None:
                    x, callbacks, initial_epoch = fitting.resume(
                        self, x, callbacks, checkpoint, epochs, initial_epoch, verbose
                    )
                    if initial_epoch == epochs:
                        return keras.callbacks.History()
            kwargs.update(initial_epoch=initial_epoch, steps_per_epoch=steps_per_epoch)
            return super().fit(
                fitting.per_worker(self, x), y, batch_size, epochs, verbose, callbacks, validation_split,
                fitting.per_worker(self, validation_data), *args, **kwargs,
            )  # fmt: skip

    def evaluate(self, x=None, *args, **kwargs):
        """Evaluates as Keras does; a dataset made by `dataset` is split among several workers."""
        with distribute.lost_worker(self.distribute_strategy):
            return super().evaluate(fitting.per_worker(self, x), *args, **kwargs)

    def predict(self, x, *args, **kwargs):
        """Predicts as Keras does; several workers return all rows in the order of the dataset."""
        with distribute.lost_worker(self.distribute_strategy):
            y = super().predict(fitting.per_worker(self, x), *args, **kwargs)
        return fitting.in_order(self, x, y)

    def state(self):
        """Returns the list of all keras.Variable that training changes, except those of metrics."""
        optimizer = getattr(self, "optimizer", None)  # None before `compile`
        return [*self.variables, *(optimizer.variables if optimizer is not None else [])]

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Keras would build from the mean of the replicas' first batches. This fails if they differ in size,
        # as at the end of an epoch, where training may resume.
        strategy = self.distribute_strategy
        if iterator is None or strategy.num_replicas_in_sync == 1:
            return super()._maybe_symbolic_build(iterator, data_batch)
        with strategy.scope():
            self._symbolic_build(data_batch=distribute.first_replica(strategy, iterator))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        y, weight = self.late_labels(x, y, y_pred)
        weight = sample_weight if weight is None else weight
        loss = super().compute_loss(x, y, y_pred, weight, training)
        return distribute.balance(loss, tf.nest.flatten(x)[0])

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        y, weight = self.late_labels(x, y, y_pred)
        return super().compute_metrics(x, y, y_pred, sample_weight if weight is None else weight)

    def get_compile_config(self):
        # Not the value of "auto" here: a task saved on one GPU may be loaded on several, or on a CPU.
        config = super().get_compile_config()
        return {**config, "jit_compile": self._jit_compile_argument} if config else config

    def compile_from_config(self, config):
        # Keras skips this for models that override compile.
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    def get_config(self):
        return {**super().get_config(), **configuration.arguments_of(self)}

    @classmethod
    def from_config(cls, config):
        return cls(**configuration.restored(config))
