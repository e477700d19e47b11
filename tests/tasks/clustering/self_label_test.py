"""SeLa: balanced labels, compared with matrix scaling, also where DeepCluster collapses."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.training import pipeline

IMAGES = 60


def make(encoder=None, **arguments):
    encoder = encoder or kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1,))
    arguments = {"num_images": IMAGES, "num_clusters": 6, "num_heads": 2, **arguments}
    task = kssl.tasks.SelfLabel(encoder, **arguments)
    task.compile(keras.optimizers.SGD(0.05, momentum=0.9))
    task(np.zeros((1, 32, 32, 3)))
    return task


def test_initial_labels_are_random_and_balanced():
    labels = make(num_clusters=7).labels.numpy()
    assert labels.shape == (2, IMAGES)
    for head in labels:
        assert set(np.bincount(head, minlength=7)) == {8, 9}
    assert (labels[0] != labels[1]).any()
    assert (labels != make(num_clusters=7, seed=1).labels.numpy()).any()


def test_labels_match_float64_matrix_scaling():
    """Oracle: P ** lam of each head, scaled in float64 as in the paper."""
    task = make(lam=10.0, tolerance=1e-4)
    features = np.random.default_rng(0).normal(size=(IMAGES, 4))
    task.heads.kernel.assign(np.random.default_rng(1).normal(size=(4, 12)))
    task.heads.bias.assign(np.linspace(-1, 1, 12))
    task.relabel(features)
    logits = features @ task.heads.kernel.numpy() + task.heads.bias.numpy()
    for head in range(2):
        mine = logits[:, 6 * head : 6 * head + 6]
        kernel = (np.exp(mine) / np.exp(mine).sum(1, keepdims=True)) ** 10.0
        v = np.ones(6)
        for _ in range(20_000):
            u = 1 / IMAGES / (kernel @ v)
            v = 1 / 6 / (kernel.T @ u)
        np.testing.assert_array_equal(task.labels.numpy()[head], (kernel * v).argmax(1))
    sizes = [np.bincount(head, minlength=6) for head in task.labels.numpy()]
    assert np.min(sizes) >= 8  # 10 each, up to the argmax
    assert np.max(sizes) <= 12


def test_loss_is_mean_over_heads():
    task = make()
    images = kssl.data.digits("test").take(IMAGES)
    x, ids = next(iter(task.dataset(images, 20)))
    logits = task(x).numpy()
    assert logits.shape == (20, 2, 6)
    labels = task.labels.numpy()
    expected = []
    for row, number in enumerate(ids.numpy()):
        for head in range(2):
            exp = np.exp(logits[row, head])
            expected.append(-np.log(exp[labels[head, number]] / exp.sum()))
    np.testing.assert_allclose(task.evaluate(x, ids, verbose=0)[0], np.mean(expected), rtol=1e-5)


def test_stays_balanced_if_deep_cluster_collapses():
    """All images have nearly equal features at the start."""
    images = kssl.data.digits("test").take(IMAGES)
    inputs = keras.Input((32, 32, 3))
    stage = keras.layers.Conv2D(
        3, 3, kernel_initializer="zeros", bias_initializer="ones", name="stage1"
    )
    outputs = keras.layers.GlobalAveragePooling2D()(stage(keras.layers.Rescaling(1 / 255)(inputs)))
    deep = kssl.tasks.DeepCluster(keras.Model(inputs, outputs), IMAGES, num_clusters=6)
    features = kssl.callbacks.features_by_id(deep, images)
    assert np.ptp(features, axis=0).max() == 0
    deep.relabel(features)
    assert np.bincount(deep.labels.numpy()).max() == IMAGES

    task = make(keras.models.clone_model(deep.encoder))
    relabel = kssl.callbacks.Relabel(images)
    before = task.labels.numpy()
    history = task.fit(task.dataset(images, 20), callbacks=[relabel], verbose=0).history
    assert history["largest"] == history["smallest"] == [10]
    np.testing.assert_array_equal(task.labels, before)  # the optimum was already reached


def test_first_labels_are_those_of_the_untrained_network():
    """They are computed in step 0: the random labels before it are never trained on."""
    images = kssl.data.digits("test").take(IMAGES)
    task = make(lam=10.0)
    task.heads.kernel.assign(np.random.default_rng(0).normal(size=task.heads.kernel.shape))
    copy = make(keras.models.clone_model(task.encoder), lam=10.0)
    copy.set_weights(task.get_weights())
    copy.relabel(kssl.callbacks.features_by_id(copy, images))
    before = task.labels.numpy()
    task.fit(
        task.dataset(images, 20), steps_per_epoch=1, callbacks=task.default_callbacks(images),
        verbose=0,
    )  # fmt: skip
    assert (task.labels.numpy() != before).mean() > 0.5
    np.testing.assert_array_equal(task.labels, copy.labels)


def test_relabels_once_if_the_labels_are_random():
    images, task = kssl.data.digits("test").take(IMAGES), make()
    task.compile("sgd")
    for _ in range(2):
        once = kssl.callbacks.Relabel(images, when="once")
        task.fit(task.dataset(images, 30), verbose=0, callbacks=[once])
        assert task.relabeled == 1


def test_refuses_a_teacher():
    images, task = kssl.data.digits("test").take(IMAGES), make()
    task.compile("sgd")
    taught = kssl.callbacks.Relabel(images, teacher=make().encoder)
    with pytest.raises(ValueError, match="SelfLabel clusters the predictions of its own heads"):
        task.fit(task.dataset(images, 30), verbose=0, callbacks=[taught])


def test_labels_are_computed_from_views_of_the_images():
    """Of their own random numbers: by relabeling and id, not by batch, and not those of an epoch."""
    images = kssl.data.subset(kssl.data.digits("test"), range(IMAGES))
    task = make(lam=10.0)
    pixels, ids = (kssl.data.to_arrays(images)[name] for name in ("image", "id"))
    views = task.view({"image": pixels, "id": ids}).numpy()
    features = kssl.callbacks.features_by_id(task, images, batch_size=7)
    np.testing.assert_allclose(features, task.features(views), rtol=1e-4, atol=1e-5)
    assert np.abs(features - task.features(pixels)).max() > 1e-2
    shuffled = kssl.callbacks.features_by_id(task, images.shuffle(IMAGES, seed=1), batch_size=16)
    np.testing.assert_allclose(shuffled, features, rtol=1e-4, atol=1e-5)

    for epoch in range(2):
        drawn, _ = pipeline.derive_seeds(0, epoch)
        seed = tf.stack([tf.fill(IMAGES, drawn), tf.constant(ids, tf.int64)], 1)
        trained, _ = task.pretext({"image": pixels, "id": ids}, seed)
        assert (np.abs(trained - views).max(axis=(1, 2, 3)) > 1).all()
    task.relabel(features)
    assert task.relabeled.numpy() == 1
    later = task.view({"image": pixels, "id": ids}).numpy()
    assert (np.abs(later - views).max(axis=(1, 2, 3)) > 1).all()
    other = make(seed=1).view({"image": pixels, "id": ids}).numpy()
    assert (np.abs(other - views).max(axis=(1, 2, 3)) > 1).all()


def test_a_resumed_run_relabels_the_same_views(tmp_path):
    images = kssl.data.subset(kssl.data.digits("test"), range(IMAGES))
    task = make(lam=10.0)
    for epoch in (0, 1):
        data = task.dataset(images, 20, epochs=epoch + 1, first_epoch=epoch)
        relabel = kssl.callbacks.Relabel(images)
        task.fit(data, epochs=epoch + 1, initial_epoch=epoch, callbacks=[relabel], verbose=0)
        if epoch == 0:
            task.save(tmp_path / "task.keras")
    resumed = keras.models.load_model(tmp_path / "task.keras")
    data = resumed.dataset(images, 20, epochs=2, first_epoch=1)
    relabel = kssl.callbacks.Relabel(images)
    resumed.fit(data, epochs=2, initial_epoch=1, callbacks=[relabel], verbose=0)
    assert resumed.relabeled.numpy() == 2
    for a, b in zip(task.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)


def test_default_schedule_is_quadratic():
    task = make(relabelings=7)
    (relabel,) = task.default_callbacks(kssl.data.digits("test").take(IMAGES))
    assert relabel.when == ("quadratic", 7)


def test_late_labels_have_one_column_per_head():
    task = make()
    labels, weight = task.late_labels(None, tf.constant([5, 3], tf.int64), None)
    np.testing.assert_array_equal(labels, task.labels.numpy()[:, [5, 3]].T)
    assert weight is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_clusters": 61}, "num_clusters must be in 2..60"),
        ({"num_images": 1, "num_clusters": None}, "num_images must be at least 2"),
        ({"num_heads": 0}, "num_heads must be positive, got 0"),
        ({"lam": -1}, "lam must be positive"),
        ({"tolerance": 0}, "tolerance must be positive"),
        ({"relabelings": 0}, "relabelings must be positive"),
        ({"crop": 2}, r"crop must be in \(0, 1\]"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)
