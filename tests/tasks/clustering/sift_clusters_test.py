"""SIFT clusters: patches without labels, and pages from the reader to the network."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageDraw

import keras_ssl as kssl


def make(number, **arguments):
    encoder = kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1,))
    task = kssl.tasks.SiftClusters(encoder, num_images=number, **arguments)
    task.compile(keras.optimizers.SGD(0.05))
    return task


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Two pages each of three writers, who draw lines, rings and crosses."""
    folder = tmp_path_factory.mktemp("pages")
    random = np.random.default_rng(0)
    for writer in ("lines", "rings", "crosses"):
        for number in range(2):
            page = Image.new("RGB", (400, 300), "white")
            draw = ImageDraw.Draw(page)
            for _ in range(20):
                x, y = random.integers(10, 360), random.integers(10, 260)
                if writer == "lines":
                    draw.line([(x, y), (x + 28, y + 8)], "black", 4)
                elif writer == "rings":
                    draw.ellipse([x, y, x + 24, y + 24], outline="black", width=4)
                else:
                    draw.line([(x, y), (x + 24, y + 24)], "black", 4)
                    draw.line([(x + 24, y), (x, y + 24)], "black", 4)
            page.save(folder / f"{writer}_{number}.png")
    return folder


def test_patches_between_two_clusters_have_no_label():
    random = np.random.default_rng(0)
    descriptors = np.zeros((61, 128))
    descriptors[:30, 0], descriptors[30:60, 1] = 1, 1  # two clusters
    descriptors[60, :2] = 0.5  # and one in between
    descriptors += 1e-3 * random.random((61, 128))
    task = make(61, num_clusters=2)
    task.relabel(descriptors)
    labels = task.labels.numpy()
    assert labels[60] == -1
    assert len(set(labels[:30])) == len(set(labels[30:60])) == 1
    assert {labels[0], labels[30]} == {0, 1}
    everything = make(61, num_clusters=2, ratio=1.0)
    everything.relabel(descriptors)
    assert everything.labels.numpy()[60] >= 0

    images = kssl.data.digits("test").take(61)
    data = task.dataset(task.labeled(images), 20, shuffle=False)
    seen = [int(i) for _, ids in data for i in ids]
    assert seen == list(range(60))


def test_loss_gradient_and_accuracy_are_means_over_the_patches_with_a_label():
    """Two of five patches have no label: all is as for a batch of the other three."""
    images = np.random.default_rng(0).uniform(0, 255, (5, 32, 32, 3)).astype("float32")
    task, kept = make(5, num_clusters=2), np.array([0, 2, 3])
    task.encoder.trainable = False  # batch normalization would see the whole batch
    task.labels.assign([1, -1, 0, 1, -1])
    found = []
    for rows in (np.arange(5), kept):
        x, ids = tf.constant(images[rows]), tf.constant(rows, tf.int64)
        with tf.GradientTape() as tape:
            loss = task.compute_loss(x, ids, task(x))
        gradients = tape.gradient(loss, task.head.trainable_variables)
        logs = task.evaluate(x, ids, verbose=0, return_dict=True)
        found.append([loss, *gradients, logs["loss"], logs["accuracy"]])
    for all_patches, only_kept in zip(*found, strict=True):
        np.testing.assert_allclose(all_patches, only_kept, rtol=1e-5)
    logits = task(images[kept]).numpy()
    log = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert float(found[0][0]) == pytest.approx(-log[[0, 1, 2], [1, 0, 1]].mean(), rel=1e-5)

    task.labels.assign([-1] * 5)
    assert task.compute_loss(images, np.arange(5), task(images)) == 0


def test_replicas_share_the_mean_of_the_weights(two_replicas):
    """One replica has two labels of three patches, the other has one."""
    with two_replicas.scope():
        task = make(6, num_clusters=2)
    task.labels.assign([0, 1, -1, -1, 1, -1])
    ids = two_replicas.experimental_distribute_values_from_function(
        lambda context: tf.range(3, dtype=tf.int64) + 3 * context.replica_id_in_sync_group
    )
    weigh = tf.function(lambda: two_replicas.run(lambda i: task.late_labels(None, i, None), (ids,)))
    parts = two_replicas.experimental_local_results(weigh()[1])
    np.testing.assert_allclose(np.concatenate(parts), [2, 2, 0, 0, 2, 0])


def test_images_without_keypoints_get_one_at_the_center():
    images = kssl.data.digits("test").take(30)
    task = make(30, num_clusters=3)
    descriptors = kssl.callbacks.features_by_id(task, images)
    assert descriptors.shape == (30, 128)
    np.testing.assert_allclose(np.linalg.norm(descriptors, axis=1), 1, rtol=1e-5)
    assert np.ptp(descriptors, axis=0).max() > 0.1


def test_pages_to_writer_retrieval(pages):
    patches = kssl.data.from_pages(pages)
    number = int(patches.cardinality())
    task = make(number, num_clusters=8)
    history = task.fit(
        task.dataset(patches, 32, epochs=2), epochs=2,
        callbacks=task.default_callbacks(patches), verbose=0,
    ).history  # fmt: skip
    assert np.isfinite(history["loss"]).all()
    arrays = kssl.data.to_arrays(patches)
    _, centroids = kssl.clustering.kmeans(arrays["descriptor"], 4)
    encoded = kssl.evaluation.vlad(arrays["descriptor"], arrays["page"], centroids)
    assert kssl.evaluation.retrieval(encoded, patches.writers, top=[1])["top1"] > 0.6


@pytest.mark.parametrize(
    ("number", "arguments", "message"),
    [
        (1, {}, "num_images must be at least 2"),
        (10, {"num_clusters": 11}, "num_clusters must be in 2..10"),
        (10, {"ratio": 0}, "ratio must be in \(0, 1\]"),
    ],
)
def test_refuses(number, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(number, **arguments)
