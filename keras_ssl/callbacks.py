"""Callbacks for `fit`."""

import io
import math

import keras
import numpy as np
import tensorflow as tf


class Finite(keras.callbacks.Callback):
    """Stops a training whose loss or metrics are no longer finite, with an error that names the step.

    `PretextModel.fit` adds it, unless a `keras.callbacks.TerminateOnNaN` is given.

    Raises:
        FloatingPointError: in `fit`; the weights are then useless.

    Example:
        >>> Finite().on_train_batch_end(4, {"loss": 0.5})
    """

    async_safe = True  # the step need not wait for it
    epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        for name, value in (logs or {}).items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{name} became {value} in step {batch + 1} of epoch {self.epoch + 1}: train anew "
                    "with a smaller learning rate, or look for pictures that are not in 0..255"
                )


class Pictures(keras.callbacks.Callback):
    """Draws what the network sees, its labels and what it predicts, for TensorBoard, after each epoch.

    Args:
        log_dir: directory of the logs, as of `keras.callbacks.TensorBoard`; the pictures go to its
            subdirectory `pictures`.
        images: tf.data.Dataset of dicts with `image` and `id`, some of which are drawn: always the same.
        number: int, images to draw.

    Raises:
        ValueError: `number` below 1.

    Example:
        >>> pictures_of_digits = Pictures("logs", images=[])                    # doctest: +SKIP
        >>> task.fit(dataset, callbacks=[pictures_of_digits])                   # doctest: +SKIP
    """

    def __init__(self, log_dir, images, number=6):
        super().__init__()
        if number < 1:
            raise ValueError(f"number must be at least 1, got {number!r}")
        self.log_dir, self.images, self.number = log_dir, images, number

    def on_train_begin(self, logs=None):
        replicas = self.model.distribute_strategy.num_replicas_in_sync
        number = replicas * -(-self.number // replicas)
        self.x, self.y = next(iter(self.model.dataset(self.images, number)))
        self.writer = tf.summary.create_file_writer(f"{self.log_dir}/pictures")

    def on_epoch_end(self, epoch, logs=None):
        from keras_ssl import pictures  # matplotlib, only where something is drawn

        figure = pictures.grid(predicted(self.model, self.x, self.y))
        encoded = io.BytesIO()
        figure.savefig(encoded, format="png")
        with self.writer.as_default():
            picture = tf.io.decode_png(encoded.getvalue(), channels=3)
            tf.summary.image("predictions", picture[None], step=epoch)
        self.writer.flush()

    def on_train_end(self, logs=None):
        self.writer.close()


def predicted(task, x, y):
    """The rows of `task.preview`, with what the task predicts.

    Args:
        task: PretextModel.
        x, y: a batch as its `pretext` made it.

    Returns:
        list of lists of (pixels, caption), for `pictures.grid`.
    """
    found = tf.nest.map_structure(np.asarray, (x, y, task(x, training=False)))
    return task.preview(*found)


class Relabel(keras.callbacks.Callback):
    """Lets a clustering task make its labels anew from the features of all images.

    When it is time, the features of the whole data set are extracted, without augmentation, and given
    to `task.relabel(features)`, which writes the task's weight `labels`. What became of the labels
    goes to the logs of each epoch, and so to History and, where its callback comes after this one,
    TensorBoard: `nmi`, the normalised mutual information with the labels before, and `clusters`,
    `smallest` and `largest`, the number of clusters with members and their sizes (all over all heads).

    Args:
        images: tf.data.Dataset of dicts with `image` and `id`, those that the task is fitted on.
        when: int, at the start of every so many epochs; "once", only while there are no labels;
            ("linear", n) or ("quadratic", n), n times in the whole training, evenly or more often at
            the start: step `steps * (i / n) ** 2` (SeLa's schedule).
        teacher: functional keras.Model, an encoder whose features are clustered instead of the task's
            own. With `when="once"` that is knowledge transfer: what another task has taught the teacher
            becomes the labels of a fresh encoder, which may be smaller (Noroozi et al., "Boosting
            Self-Supervised Learning via Knowledge Transfer", CVPR 2018).
        batch_size: int, images at a time.
        verbose: 1 shows the progress of the features, 0 does not, "auto" where `fit` shows its own.

    Raises:
        ValueError: an unknown `when`; a `teacher` that is not called with pictures or for a task that
            does not cluster features; the ids of `images` are not 0 to task.num_images - 1.

    Example:
        >>> import keras_ssl as kssl
        >>> images = kssl.data.digits("test")
        >>> encoder = kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1,))
        >>> task = kssl.tasks.DeepCluster(encoder, num_images=360, num_clusters=10)
        >>> task.compile("adam")
        >>> history = task.fit(task.dataset(images, 60), callbacks=[Relabel(images)], verbose=0)
        >>> sorted(history.history)
        ['accuracy', 'clusters', 'largest', 'loss', 'smallest']
    """

    def __init__(self, images, when=1, teacher=None, batch_size=256, verbose="auto"):
        super().__init__()
        schedule = isinstance(when, tuple) and len(when) == 2 and when[0] in ("linear", "quadratic")
        number = when[1] if schedule else when
        if when != "once" and not (isinstance(number, int) and number > 0):
            raise ValueError(
                'when must be a number of epochs, "once", ("linear", n) or ("quadratic", n), '
                f"got {when!r}"
            )
        if teacher is not None and len(getattr(teacher, "input_shape", ())) != 4:
            raise ValueError(
                f"teacher must be an encoder from (B, H, W, C) to (B, D), got {teacher!r}; of a trained "
                "task it is task.encoder"
            )
        self.images, self.when, self.teacher = images, when, teacher
        self.batch_size, self.verbose = batch_size, verbose
        self.found = {}

    def on_train_begin(self, logs=None):
        epochs, self.steps = self.params["epochs"], self.params["steps"]
        if self.when == "once":
            due = []
        elif isinstance(self.when, int):
            due = [epoch * self.steps for epoch in range(0, epochs, self.when)]
        else:
            power = 1 if self.when[0] == "linear" else 2
            n = self.when[1]
            due = [int(epochs * self.steps * (i / n) ** power) for i in range(n)]
        self.due, self.epoch = due, None

    def on_epoch_begin(self, epoch, logs=None):
        if self.epoch is None:  # a resumed training has done what came before
            self.due = [step for step in self.due if step >= epoch * self.steps]
            if not (self.model.labels.numpy() >= 0).any():
                self.due.insert(0, epoch * self.steps)
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        step = self.epoch * self.steps + batch
        if not self.due or self.due[0] > step:
            return
        self.due = [later for later in self.due if later > step]
        self.relabel()

    def relabel(self):
        """Relabels now, whatever the schedule."""
        from sklearn.metrics import normalized_mutual_info_score

        task = self.model
        before = task.labels.numpy()
        verbose = self.params.get("verbose") == 1 if self.verbose == "auto" else self.verbose
        task.relabel(extract(task, self.images, self.batch_size, int(verbose), self.teacher))
        after = task.labels.numpy()
        sizes = np.concatenate([np.bincount(head[head >= 0]) for head in np.atleast_2d(after)])
        self.found = {
            "clusters": int((sizes > 0).sum()),
            "smallest": int(sizes[sizes > 0].min()),
            "largest": int(sizes.max()),
        }
        if (before >= 0).any():
            scores = map(normalized_mutual_info_score, np.atleast_2d(before), np.atleast_2d(after))
            self.found["nmi"] = float(np.mean(list(scores)))

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs.update(self.found)


def extract(task, images, batch_size=256, verbose=0, teacher=None):
    """What a clustering task clusters, for every image, in the order of their ids.

    Args:
        task: clustering task. Its features are extracted, or, where it has a method
            `descriptors(batch)`, the (B, D) array that this makes of a batch.
        images: tf.data.Dataset of dicts with `image` and `id`.
        batch_size: int, images at a time.
        verbose: 1 shows progress.
        teacher: encoder whose features are taken instead.

    Returns:
        (task.num_images, D) float32 array.

    Raises:
        ValueError: the ids of `images` are not 0 to task.num_images - 1; a `teacher` for a task that
            clusters descriptors.
    """
    if teacher is not None and hasattr(task, "descriptors"):
        raise ValueError(
            f"teacher has no use: {type(task).__name__} clusters descriptors, not features"
        )
    source = task.features if teacher is None else lambda x: teacher(x, training=False)
    features = tf.function(source, reduce_retracing=True)
    describe = getattr(task, "descriptors", lambda batch: features(batch["image"]))
    parts, ids = [], []
    batches = images.batch(batch_size).prefetch(2)
    bar = keras.utils.Progbar(int(batches.cardinality()), verbose=verbose, unit_name="batch")
    for batch in batches:
        parts.append(np.asarray(describe(batch), np.float32))
        ids.append(batch["id"].numpy())
        bar.add(1)
    features, ids = np.concatenate(parts), np.concatenate(ids)
    order = np.argsort(ids)
    if not np.array_equal(ids[order], np.arange(task.num_images)):
        raise ValueError(
            f"images must have the ids 0 to {task.num_images - 1}, as many as num_images, got "
            f"{len(ids)} images with ids {ids.min()} to {ids.max()}"
        )
    return features[order]
