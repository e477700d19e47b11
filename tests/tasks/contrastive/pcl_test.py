import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.tasks.contrastive.pcl import concentrations


def make(encoder, **arguments):
    return kssl.tasks.PCL(
        encoder, **{"num_images": 8, "clusters": (3, 4), "queue": 24, "dimensions": 6, **arguments}
    )


def unit(*shape, seed=0):
    z = np.random.default_rng(seed).normal(size=shape).astype("float32")
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def test_prototypes_are_compared_by_their_concentration(encoder, batch, seeds):
    task, ids = make(encoder, smoothing=2.0), np.array([5, 0, 7, 2, 2, 3])
    task.relabel(unit(8, 6))
    x, y = task.pretext({**batch, "id": ids}, seeds(6))
    found = task(x).numpy()
    queries, moco = (part.numpy() for part in task.contrast(x))
    np.testing.assert_allclose(found[:, 0], moco[:, 0], atol=1e-5)
    losses = kssl.losses.InfoNCE(0.1, reduction="none")(y, moco[:, 0, :2]).numpy()
    for m in range(2):
        labels = task.labels.numpy()[m]
        for i, query in enumerate(queries):
            logits = task.prototypes[m].numpy() @ query / task.concentrations[m].numpy()
            own = logits[labels[ids[i]]]
            others = np.delete(logits, labels[ids[i]])
            expected = [own, np.log(np.exp(others).sum()), others.max()]
            np.testing.assert_allclose(found[i, 1 + m], expected, rtol=1e-4, atol=1e-4)
            losses[i] += (np.log(np.exp(logits).sum()) - own) / 2
    assert float(task.default_loss()(y, found)) == pytest.approx(losses.mean(), rel=1e-4)


def test_equal_logits_have_the_cross_entropy_of_chance(encoder, batch, seeds):
    task = make(encoder)
    task.relabel(unit(8, 6))
    for prototypes in task.prototypes:
        prototypes.assign(tf.zeros_like(prototypes))
    x, y = task.pretext(batch, seeds(6))
    alone = kssl.losses.InfoNCE(0.1)(y, task.contrast(x)[1][:, 0, :2])
    expected = float(alone) + (np.log(3) + np.log(4)) / 2
    assert float(task.default_loss()(y, task(x))) == pytest.approx(expected, rel=1e-5)


def test_without_labels_it_is_moco(encoder, batch, seeds):
    task, moco = make(encoder), kssl.tasks.MoCo(encoder, queue=24, dimensions=6)
    x, y = task.pretext(batch, seeds(6))
    for name in ("head", "key_encoder", "key_head", "earlier"):
        getattr(moco, name).set_weights(getattr(task, name).get_weights())
    with tf.GradientTape(persistent=True) as tape:
        losses = [t.default_loss()(y, t(x)) for t in (task, moco)]
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-5)
    variables = encoder.trainable_variables
    for a, b in zip(*(tape.gradient(loss, variables) for loss in losses), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_relabel_has_the_prototypes_of_separate_clusters(encoder):
    task = make(encoder, num_images=9, clusters=3)
    centers = np.eye(6, dtype="float32")[:3]
    spread = np.float32([0.05, 0.1, 0.2]).repeat(3)[:, None]
    features = centers.repeat(3, 0) + spread * unit(9, 6)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    task.relabel(features)
    (labels,) = task.labels.numpy()
    assert len({tuple(labels[k : k + 3]) for k in (0, 3, 6)}) == 3
    distances = np.zeros(9)
    for k in (0, 3, 6):
        (cluster,) = {*labels[k : k + 3]}
        mean = features[k : k + 3].mean(0)
        found = task.prototypes[0].numpy()[cluster]
        np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-5)
        distances[k : k + 3] = np.linalg.norm(features[k : k + 3] - mean, axis=1)
    assert int(task.relabelings) == 1
    expected = loop(distances, labels, 3, 10, 0.1)
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(task.concentrations[0], expected, rtol=1e-3)


def loop(distances, labels, number, smoothing, temperature):
    """Oracle: the authors' recipe, cluster by cluster."""
    phi, single = np.zeros(number), []
    for k in range(number):
        own = distances[labels == k]
        if len(own) > 1:
            phi[k] = own.mean() / np.log(len(own) + smoothing)
        else:
            single.append(k)
    phi[single] = phi.max()
    low, high = np.percentile(phi, 10), np.percentile(phi, 90)
    phi = np.array([min(max(value, low), high) for value in phi])
    return temperature * phi / phi.mean()


@pytest.mark.parametrize("smoothing", [1.5, 10])
def test_concentrations_match_a_loop(smoothing):
    rng = np.random.default_rng(0)
    labels = np.r_[np.arange(12), rng.integers(2, 12, 60)]  # two clusters of one image
    distances = rng.uniform(0, 1.4, 72)
    sizes, sums = np.bincount(labels), np.bincount(labels, distances)
    found = concentrations(sizes, sums, smoothing, 0.2)
    np.testing.assert_allclose(found, loop(distances, labels, 12, smoothing, 0.2), rtol=1e-5)
    assert found.mean() == pytest.approx(0.2, rel=1e-6)


def test_concentrations_of_equal_images_are_finite():
    found = concentrations(np.array([2, 2, 0]), np.zeros(3), 10, 0.2)
    np.testing.assert_allclose(found, 0.2, rtol=1e-6)


def test_momentum_embeddings_are_clustered(encoder, batch):
    task = make(encoder)
    # A momentum encoder that has fallen behind, and moving statistics that only the encoder has.
    for copy, network in ((task.key_encoder, encoder), (task.key_head, task.head)):
        for mine, theirs in zip(copy.variables, network.variables, strict=True):
            changed = 1.5 * mine + 0.1
            (mine if theirs.trainable else theirs).assign(changed)
    expected = kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,))
    head = keras.models.clone_model(task.head)
    for new, copy, network in (
        (expected, task.key_encoder, encoder),
        (head, task.key_head, task.head),
    ):
        for variable, mine, theirs in zip(
            new.variables, copy.variables, network.variables, strict=True
        ):
            variable.assign(mine if theirs.trainable else theirs)
    z = head(expected(batch["image"], training=False)).numpy()
    found = task.descriptors(batch).numpy()
    np.testing.assert_allclose(found, z / np.linalg.norm(z, axis=1, keepdims=True), atol=1e-5)
    assert np.abs(found - kssl.tasks.PCL.descriptors(make(encoder), batch)).max() > 1e-3


def test_clusters_after_the_warm_up_only():
    images = kssl.data.subset(kssl.data.digits("test"), range(12))
    task = make(kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,)), num_images=12, warmup=2)
    task.compile(keras.optimizers.SGD(0.01))
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(int(task.relabelings))
    )
    callbacks = [*task.default_callbacks(images), watch]
    history = task.fit(
        task.dataset(images, 6, epochs=4), epochs=4, callbacks=callbacks, verbose=0
    ).history
    assert seen == [0, 0, 0, 0, 1, 1, 2, 2]
    assert history["prototype_accuracy"][:2] == [1, 1]
    assert task.labels.numpy().min() == 0
    assert history["clusters"] == [7, 7]


def test_needs_all_images_before_training(encoder, noise):
    for number in (7, 9):
        with pytest.raises(
            ValueError, match=f"all num_images=8, which are clustered, got {number}"
        ):
            make(encoder).dataset(kssl.data.from_array(noise[:number]), 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clusters": 1}, "clusters must be an integer .* of at least 2, got 1"),
        ({"clusters": (3, 9)}, "num_clusters must be in 2..8, the number of images, got 9"),
        ({"clusters": ()}, "clusters must be one number or more, got none"),
        ({"when": 0}, "when must be an integer .* of at least 1, got 0"),
        ({"warmup": -1}, "warmup must be an integer .* of at least 0, got -1"),
        ({"smoothing": -0.5}, "smoothing must be a number of at least 0, got -0.5"),
        ({"num_images": 1}, "num_images must be an integer .* of at least 2, got 1"),
        ({"seed": "x"}, "seed must be an integer .* of at least 0, got 'x'"),
        ({"momentum": 2}, "momentum must be in 0..1, got 2"),
    ],
)
def test_invalid_arguments(encoder, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(encoder, **arguments)
