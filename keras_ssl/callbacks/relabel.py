"""Recomputes the labels of clustering tasks on a schedule."""

import functools
import warnings

import keras
import numpy as np
import tensorflow as tf

from keras_ssl.arguments import check_integer
from keras_ssl.evaluation.extract import map_batches
from keras_ssl.protocols import Describes, Views
from keras_ssl.solvers.shares import Share
from keras_ssl.training import distribute, pipeline


class Relabel(keras.callbacks.Callback):
    """Recomputes the labels of a clustering task from the features of all images.

    On schedule, the features of the whole data set are extracted and passed to `task.relabel(features)` as a
    `solvers.shares.Share`; this method assigns the task's weight `labels`. With several workers, each keeps
    the features of its own images. The images are not augmented, unless the task has a method `view`
    (`SelfLabel`). Four metrics are added to the logs of every epoch, and so to History and, if its callback
    comes after this one, to TensorBoard: `nmi`, the normalized mutual information with the previous labels;
    `clusters`, the number of nonempty clusters; and `smallest` and `largest`, their sizes (over all heads).

    Args:
        images: tf.data.Dataset of dicts with `image` and `id`, the one that the task is trained on.
        when: int, at the start of every `when`-th epoch; "once", only if there are no labels yet;
            ("linear", n) or ("quadratic", n), n times during the whole training run, evenly or more often
            at the beginning: in step `steps * (i / n) ** 2` (SeLa's schedule).
        teacher: functional keras.Model, an encoder whose features are clustered instead of the task's own
            features. With `when="once"` this is knowledge transfer: the clusters of features that another
            task has learned become the labels of a new encoder, which may be smaller (Noroozi et al.,
            "Boosting Self-Supervised Learning via Knowledge Transfer", CVPR 2018).
        warmup: int, epochs before the first relabeling, in which the task has no labels; for a task that
            trains without them, such as `PCL`.
        batch_size: int, images per batch.
        verbose: 1 shows the progress of the extraction, 0 does not, "auto" does if `fit` shows its own.

    Raises:
        ValueError: `when` is unknown; `warmup` is negative, or the task needs labels; `teacher` is not an
            encoder of images, or the task does not cluster features; the ids of `images` are not 0 to
            task.num_images - 1.

    Warns:
        UserWarning: `fit` has no more epochs than `warmup`.

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

    checkpointed = ("metrics",)  # those of the last relabeling are logged until the next one

    def __init__(self, images, when=1, teacher=None, warmup=0, batch_size=256, verbose="auto"):
        super().__init__()
        check_integer("warmup", warmup, 0)
        schedule = isinstance(when, tuple) and len(when) == 2 and when[0] in ("linear", "quadratic")
        number = when[1] if schedule else when
        if when != "once" and not (isinstance(number, int) and number > 0):
            raise ValueError(
                'when must be a number of epochs, "once", ("linear", n) or ("quadratic", n), '
                f"got {when!r}"
            )
        if teacher is not None and len(getattr(teacher, "input_shape", ())) != 4:
            raise ValueError(
                f"teacher must be an encoder from (B, H, W, C) to (B, D), got {teacher!r}; that of a "
                "trained task is task.encoder"
            )
        self.images, self.when, self.teacher, self.warmup = images, when, teacher, warmup
        self.batch_size, self.verbose = batch_size, verbose
        self.metrics = {}

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
        if self.warmup and not hasattr(self.model, "warmup"):
            raise ValueError(
                f"warmup must be 0, since {type(self.model).__name__} does not train without labels, got "
                f"{self.warmup}"
            )
        if self.warmup >= epochs:
            warnings.warn(
                f"warmup={self.warmup} leaves none of epochs={epochs} in which images are clustered: train "
                "for more epochs, or set a shorter warmup",
                stacklevel=2,
            )
        self.due = [step for step in due if step >= self.warmup * self.steps]
        self.epoch, self.resumed, self.checked = None, True, False

    def on_epoch_begin(self, epoch, logs=None):
        if epoch >= self.warmup and not self.checked:
            self.checked = True
            if not _labeled(self.model):
                self.due.insert(0, epoch * self.steps)
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        step = self.epoch * self.steps + batch
        if self.resumed:  # relabelings due before the last execution are done
            self.due = [due for due in self.due if due > step - self.model.steps_per_execution]
            self.resumed = False
        if not self.due or self.due[0] > step:
            return
        self.due = [later for later in self.due if later > step]
        self.relabel()

    def relabel(self):
        """Recomputes the labels now, regardless of the schedule."""
        from sklearn.metrics import normalized_mutual_info_score

        task, before = self.model, self.model.labels.numpy()
        verbose = self.params.get("verbose") == 1 if self.verbose == "auto" else self.verbose
        recompute(task, self.images, self.batch_size, int(verbose), self.teacher)
        after = task.labels.numpy()
        sizes = np.concatenate([np.bincount(head[head >= 0]) for head in np.atleast_2d(after)])
        self.metrics = {
            "clusters": int((sizes > 0).sum()),
            "smallest": int(sizes[sizes > 0].min()),
            "largest": int(sizes.max()),
        }
        if (before >= 0).any():
            scores = map(normalized_mutual_info_score, np.atleast_2d(before), np.atleast_2d(after))
            self.metrics["nmi"] = float(np.mean(list(scores)))

    def on_epoch_end(self, epoch, logs=None):
        if logs is not None:
            logs.update(self.metrics)


def _labeled(task):
    # If there are views: the labels before the first relabeling are random.
    return task.relabeled > 0 if isinstance(task, Views) else task.labels.numpy().max() >= 0


def recompute(task, images, batch_size=256, verbose=0, teacher=None):
    """Recomputes the labels of a clustering task from the features of all images.

    With several workers, each extracts and keeps the features of its own images; the labels, 4 bytes per
    image, are combined on all of them.

    Args:
        task, images, batch_size, verbose, teacher: as in `own_features`.

    Raises:
        ValueError: as in `own_features`.
    """
    strategy = task.distribute_strategy
    task.relabel(own_features(task, images, batch_size, verbose, teacher))
    if distribute.worker(strategy)[1] > 1:
        # Machines may round differently. The labels are sums over the workers, so they are equal already.
        state = [variable for variable in task.state() if variable is not task.labels]
        made = distribute.from_chief(strategy, [v.numpy() for v in state])
        for variable, value in zip(state, made, strict=True):
            variable.assign(value)


def features_by_id(task, images, batch_size=256, verbose=0, teacher=None):
    """Extracts the features or descriptors that a task clusters, for all images in the order of the ids.

    Args:
        task, images, batch_size, verbose, teacher: as in `own_features`.

    Returns:
        (task.num_images, D) float32 array, on all workers.

    Raises:
        ValueError: as in `own_features`.
    """
    share = own_features(task, images, batch_size, verbose, teacher)
    return share.everywhere(share.own)


def own_features(task, images, batch_size=256, verbose=0, teacher=None):
    """Extracts the features or descriptors that a task clusters, for the images of this worker.

    An image that cannot be read gets the mean of the features.

    Args:
        task: clustering task. If it has a method `descriptors(batch)`, the (B, D) arrays that this method
            computes are extracted; otherwise, the features of the images, or of their views if the task has a
            method `view(batch)`.
        images: tf.data.Dataset of dicts with `image` and `id`.
        batch_size: int, images per batch.
        verbose: 1 shows progress, 0 does not.
        teacher: encoder whose features are extracted instead, or None.

    Returns:
        `solvers.shares.Share` of the (task.num_images, D) float32 array in the order of the ids.

    Raises:
        ValueError: the ids of `images` are not 0 to task.num_images - 1, a worker can read none of its
            images, or a `teacher` is given for a task that clusters descriptors or its own predictions.
    """
    strategy, number = task.distribute_strategy, int(images.cardinality())
    worker = distribute.worker(strategy)
    describe = _descriptors(task, teacher)
    mine = map_batches(
        lambda batch: (np.asarray(describe(batch), np.float32), batch["id"]),
        pipeline.shard(images, worker).batch(batch_size).prefetch(2),
        steps=-(-number // (batch_size * worker[1])),
        verbose=verbose,
    )
    features, ids = mine or (None, np.empty(0, np.int64))
    total = functools.partial(distribute.sum_over_workers, strategy)
    numbers = total(np.eye(worker[1], dtype=np.int64)[worker[0]] * len(ids))
    if not numbers.all():  # raised on all workers; otherwise the others would wait forever
        raise ValueError(
            f"images must have some that worker {numbers.argmin()} of {worker[1]} can read, got none"
        )
    # One bit per image. The sum has as many bits as there are images, unless an id occurs twice: that
    # carries.
    known = np.zeros(-(-task.num_images // 32) * 32, bool)
    known[ids[(ids >= 0) & (ids < task.num_images)]] = True
    bits = total(np.packbits(known).view(np.int32)).view(np.uint8)
    known, found = np.unpackbits(bits)[: task.num_images], int(numbers.sum())
    if number != task.num_images or known.sum(dtype=int) != found:
        raise ValueError(
            f"images must have the ids 0 to {task.num_images - 1}, as many as num_images, got {found} images "
            f"with {known.sum(dtype=int)} of these ids"
        )
    missing = np.flatnonzero(known == 0)
    if len(missing):
        # An unreadable image gets the mean, and so a label like any other image, which is never used.
        mean = total(features.sum(axis=0, dtype=np.float64)) / found
        own = missing[worker[0] :: worker[1]]
        filled = np.repeat(mean[None].astype(np.float32), len(own), axis=0)
        features, ids = np.concatenate([features, filled]), np.concatenate([ids, own])
    if (np.diff(ids) < 0).any():
        order = np.argsort(ids)
        features, ids = features[order], ids[order]
    return Share(features, ids, task.num_images, worker[0], total)


def _descriptors(task, teacher):
    """Returns the function from a batch to the features or descriptors to cluster."""
    if teacher is not None and isinstance(task, Describes | Views):
        own = "descriptors" if isinstance(task, Describes) else "the predictions of its own heads"
        raise ValueError(f"teacher cannot be used: {type(task).__name__} clusters {own}")
    if isinstance(task, Describes):
        return task.descriptors
    source = task.features if teacher is None else lambda x: teacher(x, training=False)
    view = task.view if isinstance(task, Views) else lambda batch: batch["image"]
    features = tf.function(source, reduce_retracing=True)
    # Views are computed eagerly: tracing them takes longer than computing them for a few thousand images.
    return lambda batch: features(view(batch))
