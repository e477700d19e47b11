"""DeepCluster: labels, weights, reset of the classifier, and degenerate solutions."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl

IMAGES = 60


@pytest.fixture(scope="module")
def images():
    return kssl.data.digits("test").take(IMAGES)


def make(**arguments):
    encoder = kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1,))
    arguments = {"num_images": IMAGES, "num_clusters": 6, **arguments}
    task = kssl.tasks.DeepCluster(encoder, **arguments)
    task.compile(keras.optimizers.SGD(0.05, momentum=0.9))
    return task


def test_loss_is_weighted_cross_entropy_of_clusters(images):
    task = make()
    data = task.dataset(images, 20)
    task.fit(data, callbacks=[kssl.callbacks.Relabel(images)], verbose=0)
    x, ids = next(iter(data))
    logits = task(x).numpy()
    labels = task.labels.numpy()
    sizes = np.bincount(labels, minlength=6)
    expected = []
    for row, number in enumerate(ids.numpy()):
        probability = np.exp(logits[row]) / np.exp(logits[row]).sum()
        cluster = labels[number]
        # Six clusters of sizes n: each image has the weight 60 / (6 n).
        expected.append(-np.log(probability[cluster]) * IMAGES / (6 * sizes[cluster]))
    np.testing.assert_allclose(task.evaluate(x, ids, verbose=0)[0], np.mean(expected), rtol=1e-5)


def test_large_and_small_clusters_have_equal_weight():
    task = make(num_clusters=3, dimensions=2)
    features = np.random.default_rng(0).normal(size=(IMAGES, 3)) * 0.01
    features[:50, 0] += 10  # clusters of 50, 6 and 4 images
    features[50:56, 1] += 10
    features[56:, 2] += 10
    task.relabel(features)
    labels = task.labels.numpy()
    _, weight = task.late_labels(None, tf.range(IMAGES, dtype=tf.int64), None)
    sums = [weight.numpy()[labels == cluster].sum() for cluster in range(3)]
    assert sorted(np.bincount(labels)) == [4, 6, 50]
    np.testing.assert_allclose(sums, IMAGES / 3, rtol=1e-5)
    np.testing.assert_allclose(weight.numpy().mean(), 1, rtol=1e-6)


def test_no_cluster_is_empty_if_features_differ():
    """Almost all images have equal features: k-means alone would leave clusters empty."""
    task = make(num_clusters=20)
    features = np.zeros((IMAGES, 4))
    features[40:] = np.random.default_rng(0).normal(size=(20, 4))
    task.relabel(features)
    assert (np.bincount(task.labels.numpy(), minlength=20) > 0).sum() == 20


def test_relabel_resets_only_the_classifier_and_its_slots(images):
    task = make()
    data = task.dataset(images, 20)
    task.fit(data, callbacks=[kssl.callbacks.Relabel(images)], verbose=0)
    kernel = task.head.kernel.numpy()
    encoder = task.encoder.get_weights()
    slots = {v.path: v.numpy() for v in task.optimizer.variables}
    assert any("head" in path and np.any(value) for path, value in slots.items())
    task.relabel(np.random.default_rng(0).normal(size=(IMAGES, 4)))
    assert (task.head.kernel.numpy() != kernel).all()
    assert 0.005 < task.head.kernel.numpy().std() < 0.02
    assert (task.head.bias.numpy() == 0).all()
    for slot in task.optimizer.variables:
        if "head" in slot.path:
            assert (slot.numpy() == 0).all()
        else:
            np.testing.assert_array_equal(slot, slots[slot.path])
    for a, b in zip(task.encoder.get_weights(), encoder, strict=True):
        np.testing.assert_array_equal(a, b)
    second = task.head.kernel.numpy()
    task.relabel(np.random.default_rng(0).normal(size=(IMAGES, 4)))
    assert (task.head.kernel.numpy() != second).all()  # initialized differently each time


def test_augmentation_is_crop_and_flip_only():
    """Uniform images keep their color; columns of a ramp show crops and flips."""
    task = make()
    seeds = tf.stack([tf.zeros(40, tf.int64), tf.range(40, dtype=tf.int64)], 1)
    image = np.zeros((40, 32, 32, 3), np.uint8) + np.uint8([200, 30, 90])
    x, _ = task.pretext({"image": image, "id": np.arange(40)}, seeds)
    np.testing.assert_allclose(x, image, atol=1e-4)
    ramp = np.zeros((40, 32, 32, 3), np.uint8) + np.arange(32, dtype=np.uint8)[:, None]
    x, _ = task.pretext({"image": ramp, "id": np.arange(40)}, seeds)
    ends = x.numpy()[:, 0, [0, -1], 0]
    widths = (ends[:, 1] - ends[:, 0]) / 31
    assert 0.2 < (widths < 0).mean() < 0.8
    assert np.abs(widths).min() < 0.8 < np.abs(widths).max()


def test_images_without_labels_have_zero_weight(images):
    task = make()
    x, ids = next(iter(task.dataset(images, 20)))
    assert task.evaluate(x, ids, verbose=0)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_clusters": 61}, "num_clusters must be in 2..60"),
        ({"num_images": 1, "num_clusters": None}, "num_images must be at least 2"),
        ({"num_clusters": 1}, "num_clusters must be in 2..60"),
        ({"crop": 0}, r"crop must be in \(0, 1\]"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)
