import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.tasks.contrastive.deep_infomax import Divergence, MapAccuracy

SMALL = {"dimensions": 4, "units": 8}


@pytest.fixture
def deep():
    """A function that builds an encoder of 2 stages: 16x16x4 positions after the second."""
    return lambda **kw: kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1, 1), **kw)


def make(encoder, **arguments):
    return kssl.tasks.DeepInfoMax(encoder, **{**SMALL, **arguments})


def test_pretext(encoder, batch, seeds):
    task = make(encoder)
    x, y = task.pretext(batch, seeds(6))
    np.testing.assert_array_equal(x["image"], batch["image"])
    np.testing.assert_array_equal(y, batch["id"])
    prior = x["prior"].numpy()
    assert prior.shape == (6, 4)
    assert ((prior >= 0) & (prior < 1)).all()
    assert len(np.unique(prior)) == 24
    recipe = kssl.ops.recipes.Recipe(flip=1.0)
    flipped, _ = make(encoder, recipe=recipe).pretext(batch, seeds(6))
    np.testing.assert_array_equal(flipped["image"], batch["image"][:, :, ::-1])
    np.testing.assert_array_equal(flipped["prior"], prior)


def test_the_default_stage_has_7x7_positions_or_is_the_last():
    local = kssl.tasks.DeepInfoMax.architecture((32, 32, 3), width=2)
    assert make(local).map_and_features.output_shape[0] == (None, 7, 7, 4)
    four = kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1, 1, 1, 1))
    assert make(four, stage=1).map_and_features.output_shape[0] == (None, 32, 32, 2)
    one = kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,))
    assert make(one).map_and_features.output_shape[0] == (None, 32, 32, 2)


@pytest.mark.parametrize(
    ("alpha", "beta", "rows"), [(0.0, 1.0, 258), (1.0, 0.0, 3), (0.5, 2.0, 260)]
)
def test_prediction(deep, batch, alpha, beta, rows):
    task = make(deep(), alpha=alpha, beta=beta)
    images = batch["image"]
    found = task({"image": images, "prior": np.zeros((6, 4))}).numpy()
    assert found.shape == (6, rows, 8)
    feature_map, features = (part.numpy() for part in task.map_and_features(images))
    np.testing.assert_allclose(features, task.features(images), rtol=1e-5)
    code = features @ task.code.kernel.numpy() + task.code.bias.numpy()
    np.testing.assert_allclose(found[:, 0, :4], code, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found[:, 0, 4:], 0)
    if alpha:
        query, key = task.global_heads
        np.testing.assert_allclose(found[:, 1], query(code[:, None, None])[:, 0, 0], atol=1e-4)
        whole = feature_map.reshape(6, 1, 1, -1)
        np.testing.assert_allclose(found[:, 2], key(whole)[:, 0, 0], atol=1e-4)
    if beta:
        query, key = task.local_heads
        start = rows - 257
        np.testing.assert_allclose(found[:, start], query(code[:, None, None])[:, 0, 0], atol=1e-4)
        expected = key(feature_map).numpy().reshape(6, 256, 8)
        np.testing.assert_allclose(found[:, start + 1 :], expected, atol=1e-4)


@pytest.mark.parametrize("bound", ["JSD", "InfoNCE", "DV"])
def test_the_loss_is_the_weighted_sum_of_the_terms(bound):
    z = np.random.default_rng(0).normal(size=(5, 3 + 4, 6)).astype("float32")
    encoder = kssl.encoders.resnet((8, 8, 3), width=2, blocks=(1,))
    one = kssl.losses.InfoMax(bound, reduction="none")
    of_global, of_local = one(np.zeros(5), z[:, 1:3]), one(np.zeros(5), z[:, 3:])
    for alpha, beta, expected in (
        (0.3, 2.0, 0.3 * of_global + 2 * of_local),
        (0.5, 0.0, 0.5 * of_global),
        (0.0, 0.7, 0.7 * one(np.zeros(5), z[:, 1:])),
    ):
        loss = make(encoder, bound=bound, alpha=alpha, beta=beta).default_loss()
        copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
        for each in (loss, copy):
            found = each.call(np.zeros(5), z)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def encoder_gradients(task, x, y):
    """Gradients of one step with respect to the encoder, from the change by plain SGD."""
    before = [v.numpy() for v in task.encoder.trainable_variables]
    task.train_on_batch(x, y)
    return [a - v.numpy() for a, v in zip(before, task.encoder.trainable_variables, strict=True)]


def test_each_term_reaches_the_encoder_and_weights_add_up(deep, batch, seeds):
    """The gradient of alpha global + beta local + gamma prior is the weighted sum of the gradients."""
    weights = {"alpha": 0.7, "beta": 1.5, "gamma": 0.4}
    whole = make(deep(), **weights)
    whole.compile(keras.optimizers.SGD(1.0), run_eagerly=True)
    x, y = whole.pretext(batch, seeds(6))
    start = whole.get_weights()
    total = encoder_gradients(whole, x, y)
    whole.set_weights(start)

    def alone(gamma=None, **term):
        """One of the two terms by Keras, or the prior by cross-entropies on one tape."""
        with tf.GradientTape() as tape:
            y_pred = whole(x, training=True)
            if gamma:
                fake = tf.sigmoid(y_pred[:, 0, :4])
                logits = whole.discriminator(tf.concat([x["prior"], fake], 0), training=True)
                value = gamma * keras.losses.BinaryCrossentropy(from_logits=True)(
                    tf.ones((6, 1)), logits[6:]
                )
            else:
                place = slice(1, 3) if "alpha" in term else slice(3, None)
                value = sum(term.values()) * kssl.losses.InfoMax()(y, y_pred[:, place])
        found = tape.gradient(value, whole.encoder.trainable_variables)
        whole.set_weights(start)
        return [g.numpy() for g in found]

    parts = [alone(**{name: weight}) for name, weight in weights.items()]
    for part in parts:
        assert all(np.abs(g).max() > 1e-7 for g in part)
    for a, *terms in zip(total, *parts, strict=True):
        np.testing.assert_allclose(a, sum(terms), rtol=1e-3, atol=1e-3 * np.abs(a).max())


def test_terms_with_a_weight_of_zero_have_no_networks(deep, batch, seeds):
    for name, absent in (
        ("alpha", "global_heads"),
        ("beta", "local_heads"),
        ("gamma", "discriminator"),
    ):
        task = make(deep(), **{"alpha": 0.5, "beta": 0.5, "gamma": 0.5, name: 0.0})
        task.compile(keras.optimizers.SGD(1.0), run_eagerly=True)
        x, y = task.pretext(batch, seeds(6))
        assert getattr(task, absent, None) is None
        before = [v.numpy() for v in task.trainable_variables]
        logs = task.train_on_batch(x, y, return_dict=True)
        assert ("discriminator_loss" in logs) == (name != "gamma")
        for old, v in zip(before, task.trainable_variables, strict=True):
            assert (old != v.numpy()).any(), v.path


def test_prior_spreads_the_code():
    """Codes that are all alike become uniform: the mean 0.5, the standard deviation 0.29."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (256, 4, 4, 3), np.uint8)
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.Rescaling(1 / 64, offset=-2)(inputs)
    x = keras.layers.Identity(name="stage1")(x)
    encoder = keras.Model(inputs, keras.layers.Flatten()(x))
    task = make(encoder, beta=1e-6, gamma=1.0, dimensions=2)
    task.code.kernel.assign(0.05 * task.code.kernel)
    task.code.bias.assign([2.0, -2.0])
    task.compile(keras.optimizers.Adam(3e-3, beta_1=0.5))

    def codes():
        return tf.sigmoid(task.code(task.features(images))).numpy()

    assert codes().std(axis=0).max() < 0.1
    task.fit(task.dataset(kssl.data.from_array(images), 64, epochs=60), epochs=60, verbose=0)
    np.testing.assert_allclose(codes().mean(axis=0), 0.5, atol=0.1)
    np.testing.assert_allclose(codes().std(axis=0), 12**-0.5, atol=0.1)


def test_learns_to_find_the_map_of_each_image(gratings):
    encoder = kssl.encoders.resnet((16, 16, 3), width=4, blocks=(1, 1))
    task = make(encoder, gamma=0.0, dimensions=16, units=64)
    task.compile(keras.optimizers.Adam(1e-2))
    data = task.dataset(kssl.data.from_array(gratings[:, :16, :16]), 16, epochs=60)
    history = task.fit(data, epochs=60, verbose=0).history
    assert history["accuracy"][0] < 0.2  # chance is 1 / 16
    assert history["accuracy"][-1] > 0.6
    assert history["divergence"][-1] > 0.3
    assert history["loss"][-1] == pytest.approx(-2 * history["divergence"][-1], abs=1e-5)


def test_metrics():
    # Two queries; the first finds its own map, the second prefers the other.
    z = np.zeros((2, 1 + 3, 2), "float32")
    z[0, 1], z[1, 1] = [1, 0], [1, 0.5]
    z[0, 2:], z[1, 2:] = [[2, 0], [4, 0]], [[1, 0], [1, 0]]
    accuracy, divergence = MapAccuracy(), Divergence()
    for metric in (accuracy, divergence):
        metric.update_state(np.zeros(2), z)
    assert float(accuracy.result()) == 0.5
    positive, negative = [2, 4, 1, 1], [1, 1, 2, 4]
    expected = math.log(2)
    expected -= np.mean([math.log1p(math.exp(-u)) for u in positive]) / 2
    expected -= np.mean([math.log1p(math.exp(u)) for u in negative]) / 2
    assert float(divergence.result()) == pytest.approx(expected, rel=1e-5)
    for metric in (MapAccuracy(first=3), Divergence(first=3)):
        copy = type(metric).from_config(metric.get_config())
        assert copy.first == 3
        assert copy.name == metric.name


def test_only_the_critic_of_jsd_shows_a_divergence(encoder):
    """The others lose nothing by an offset of all scores, which changes the divergence."""
    names = [[m.name for m in make(encoder, bound=b).default_metrics()] for b in ("JSD", "DV")]
    assert names == [["accuracy", "divergence"], ["accuracy"]]


def test_preview(deep, batch, seeds):
    task = make(deep(), alpha=1.0)
    x, y = (tf.nest.map_structure(np.asarray, part) for part in task.pretext(batch, seeds(6)))
    assert [[c for _, c in row] for row in task.preview(x, y)] == [["image"]] * 6
    y_pred = task(x).numpy()
    scores = np.einsum("bd,nld->bnl", y_pred[:, 3], y_pred[:, 4:]).mean(-1)
    rows = task.preview(x, y, y_pred)
    for i, row in enumerate(rows):
        others = [j for j in range(6) if j != i]
        best = max(others, key=lambda j: scores[i, j])
        assert [c for _, c in row] == [
            f"own map: {scores[i, i]:.1f}", f"best other: {scores[i, best]:.1f}"
        ]  # fmt: skip
        np.testing.assert_array_equal(row[1][0], x["image"][best])
    alone = {name: part[:1] for name, part in x.items()}
    assert len(task.preview(alone, y[:1], y_pred[:1])[0]) == 1


def test_refuses(encoder):
    with pytest.raises(ValueError, match="alpha or beta must be positive, got 0 for both"):
        make(encoder, beta=0.0)
    for name in ("alpha", "beta", "gamma"):
        with pytest.raises(ValueError, match=f"{name} must be a number of at least 0, got -1"):
            make(encoder, **{name: -1})
    with pytest.raises(ValueError, match="bound must be one of JSD, InfoNCE, DV, got 'NCE'"):
        make(encoder, bound="NCE")
    with pytest.raises(ValueError, match="units must be at least dimensions, 4, got 3"):
        make(encoder, units=3)
    with pytest.raises(ValueError, match="stage must be at most 1, the encoder's last, got 2"):
        make(encoder, stage=2)
    for stage in (0, True, "stage1", 1.0):
        with pytest.raises(ValueError, match="stage must be an integer"):
            make(encoder, stage=stage)
    with pytest.raises(ValueError, match="dimensions must be an integer"):
        make(encoder, dimensions=0)
    with pytest.raises(ValueError, match="recipe"):
        make(encoder, recipe="NO_SUCH")
    flexible = kssl.encoders.resnet((None, None, 3), width=2, blocks=(1,))
    make(flexible)
    with pytest.raises(ValueError, match="alpha must be 0 for a map of the shape"):
        make(flexible, alpha=1.0)
