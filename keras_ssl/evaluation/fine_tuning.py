"""Fine-tuning of a whole encoder with few or all labels (semi-supervised evaluation)."""

import keras
import numpy as np
import tensorflow as tf

from keras_ssl.data import columns, to_arrays
from keras_ssl.evaluation.extract import map_batches
from keras_ssl.ops import augment
from keras_ssl.training.optimizers import sgd_cosine

MIN_EPOCHS, MIN_STEPS = 10, 1000  # by default the larger of the two
SHIFT = 1 / 8  # 4 of 32 pixels


def fine_tune(
    encoder,
    train,
    test,
    fraction=1.0,
    epochs=None,
    learning_rate=0.05,
    batch_size=64,
    flip=True,
    seed=0,
    verbose=0,
):
    """Fine-tunes an encoder with a new linear head on a part of the labels, and returns the test accuracy.

    The part is class-balanced: the same fraction of each class. All weights are trained, by SGD with
    Nesterov momentum, warm-up and cosine decay. Images are shifted by up to an eighth of their size and
    mirrored. With an untrained encoder this is the supervised baseline. Two calls with the same arguments
    give the same result, unless the encoder has layers that are random, such as dropout without a seed.

    Args:
        encoder: functional keras.Model from (B, H, W, C) to (B, D); a copy of it is trained.
        train, test: tf.data.Datasets of dicts with `image`, `id` and `label`. If `train` has no random
            access, its images are read into memory.
        fraction: float in (0, 1], of the labels of each class, but at least one image per class. With the
            same seed, a smaller part is contained in a larger one.
        epochs: int; by default 10, or more if 1,000 steps take more.
        learning_rate: float, the peak.
        batch_size: int.
        flip: bool, whether to mirror images horizontally with probability 0.5; not for digits or text.
        seed: int, of the choice of the labels, the order of the images and the augmentation.
        verbose: 1 shows progress, 0 does not.

    Returns:
        float, the accuracy on the test set, in [0, 1].

    Raises:
        ValueError: `train` or `test` has no labels, `train` has fewer than two classes, `fraction` is not in
            (0, 1], or `epochs` or `batch_size` is below 1.

    Reference: Hénaff et al., "Data-Efficient Image Recognition with Contrastive Predictive Coding", ICML
    2020; Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020,
    appendix B.5 (1 % and 10 % of the labels, class-balanced).

    Example:
        >>> from keras_ssl import data, encoders
        >>> untrained = encoders.resnet((32, 32, 3), width=2, blocks=(1,))
        >>> train, test = data.digits(), data.digits("test")
        >>> 0 <= fine_tune(untrained, train, test, fraction=0.05, epochs=1, flip=False) <= 1
        True
    """
    for name, dataset in (("train", train), ("test", test)):
        if "label" not in dataset.element_spec:
            raise ValueError(
                f"{name} has no labels: fine-tuning needs images in one folder per class"
            )
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    labels = _labels(train)
    classes, codes = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"train must have at least two classes, got only label {labels[0]}")
    rows = balanced_rows(codes, fraction, seed)
    if hasattr(train, "columns"):
        images = columns.subset(train, rows)
    else:
        images = columns.random_access(to_arrays(columns.subset(train, rows)))
    batch_size = min(batch_size, len(rows))
    steps = len(rows) // batch_size  # per epoch
    if epochs is None:
        epochs = max(MIN_EPOCHS, -(-MIN_STEPS // steps))
    batches = _batches(images, codes[rows], epochs, batch_size, flip, seed)
    model = _with_head(encoder, len(classes))
    model.compile(
        sgd_cosine(learning_rate, epochs * steps),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    model.fit(batches, epochs=epochs, steps_per_epoch=steps, shuffle=False, verbose=verbose)
    return _accuracy(model, test, classes)


def balanced_rows(labels, fraction, seed=0):
    """Chooses the same fraction of the rows of each class at random, at least one.

    Args:
        labels: (N,) integer array.
        fraction: float in (0, 1]; the rows of a smaller fraction are among those of a larger one.
        seed: int.

    Returns:
        (n,) increasing integer array.

    Raises:
        ValueError: `fraction` is not in (0, 1].

    Example:
        >>> len(balanced_rows([0] * 50 + [1] * 30, fraction=0.1))
        8
    """
    if not 0 < fraction <= 1:
        raise ValueError(
            f"fraction must be in (0, 1], such as 0.1 for 10 % of the labels, got {fraction}"
        )
    random, rows = np.random.default_rng(seed), []
    for value in np.unique(labels):
        members = random.permutation(np.flatnonzero(np.asarray(labels) == value))
        rows.append(members[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(rows))


def _labels(images):
    if "label" in getattr(images, "columns", ()):
        return np.asarray(images.columns["label"])
    return np.concatenate([np.asarray(batch["label"]) for batch in images.batch(256)])


def _batches(images, codes, epochs, batch_size, flip, seed):
    """Returns a dataset of augmented (image, code) batches, all of the same size, over all epochs."""
    random, number = np.random.default_rng(seed), len(codes)
    order = np.concatenate([random.permutation(number) for _ in range(epochs)])
    epoch = np.repeat(np.arange(epochs), number) + (seed << 32)
    codes = tf.constant(codes, tf.int32)

    def load(row, epoch):
        element = {name: tf.gather(column, row) for name, column in images.columns.items()}
        if images.load_row is not None:
            element = images.load_row(element)
        return element["image"], tf.stack([epoch, tf.cast(row, tf.int64)]), tf.gather(codes, row)

    def augmented(image, seeds, code):
        return augment.random_shift(image, seeds, SHIFT, flip), code

    data = tf.data.Dataset.from_tensor_slices((order, epoch)).map(load, tf.data.AUTOTUNE)
    data = data.batch(batch_size, drop_remainder=True).map(augmented, tf.data.AUTOTUNE)
    return data.prefetch(2)


def _with_head(encoder, classes):
    """Returns a trainable copy of the encoder with a linear head, whose weights are 0."""
    copy = keras.models.clone_model(encoder)
    copy.set_weights(encoder.get_weights())
    copy.trainable = True
    # With initial weights of 0, the first steps train only the head and do not change the features.
    head = keras.layers.Dense(classes, kernel_initializer="zeros", dtype="float32", name="logits")
    return keras.Model(copy.input, head(copy.output))


def _accuracy(model, test, classes):
    batches = test.batch(256).prefetch(2)
    logits = tf.function(
        lambda x: model(x, training=False), input_signature=[batches.element_spec["image"]]
    )
    correct = map_batches(
        lambda batch: classes[np.argmax(logits(batch["image"]), axis=1)] == batch["label"], batches
    )
    return float(correct.mean())
