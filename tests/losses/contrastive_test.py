"""Contrastive losses versus slow loops, closed forms, laws, and two and three replicas."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssl.losses import NCE, InfoNCE, NTXent, SupervisedContrastive
from keras_ssl.losses.contrastive import similarities


def embeddings(number=5, views=2, dimensions=3, seed=0):
    return np.random.default_rng(seed).normal(size=(number, views, dimensions)).astype("float32")


def slow(z, temperature, labels, inside=False):
    """Oracle: equations 2 and 3 of SupCon, a loop over anchors, positives and all others."""
    number, views, _ = z.shape
    unit = (
        (z / np.linalg.norm(z, axis=-1, keepdims=True)).astype("float64").reshape(-1, z.shape[-1])
    )
    owner = np.repeat(labels, views)
    values = np.zeros(number * views)
    for i in range(len(unit)):
        scores = {a: math.exp(unit[i] @ unit[a] / temperature) for a in range(len(unit)) if a != i}
        total = sum(scores.values())
        positives = [scores[p] / total for p in scores if owner[p] == owner[i]]
        if inside:
            values[i] = -math.log(sum(positives) / len(positives))
        else:
            values[i] = -sum(map(math.log, positives)) / len(positives)
    return values.reshape(number, views).mean(axis=1)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("views", [2, 3])
def test_nt_xent_matches_a_loop(temperature, views):
    z = embeddings(views=views)
    found = NTXent(temperature, reduction="none")(np.zeros(5), z)
    np.testing.assert_allclose(found, slow(z, temperature, np.arange(5)), rtol=1e-5)


@pytest.mark.parametrize("mean", ["outside", "inside"])
def test_supcon_matches_a_loop(mean):
    z, labels = embeddings(number=6), np.array([3, 0, 3, 7, 0, 3])
    found = SupervisedContrastive(0.3, mean, reduction="none")(labels, z)
    np.testing.assert_allclose(found, slow(z, 0.3, labels, mean == "inside"), rtol=1e-5)
    np.testing.assert_allclose(
        SupervisedContrastive(0.3, mean, reduction="none")(labels[:, None], z), found
    )


def test_the_mean_inside_is_smaller():
    z, labels = embeddings(number=6), [0, 0, 0, 1, 1, 1]
    inside, outside = (
        SupervisedContrastive(0.3, m, reduction="none")(labels, z) for m in ("inside", "outside")
    )
    assert (inside.numpy() < outside.numpy()).all()


def test_supcon_of_images_that_are_all_different_is_nt_xent():
    z = embeddings()
    found = SupervisedContrastive(0.5, reduction="none")(np.arange(5), z)
    np.testing.assert_allclose(found, NTXent(0.5, reduction="none")(np.zeros(5), z), rtol=1e-6)


@pytest.mark.parametrize("number", [2, 7])
def test_equal_embeddings_give_the_logarithm_of_the_number_of_others(number):
    z, labels = np.ones((number, 2, 3), "float32"), np.arange(number)
    expected = math.log(2 * number - 1)
    for loss in (NTXent(0.1), SupervisedContrastive(0.1), SupervisedContrastive(0.1, "inside")):
        assert float(loss(labels, z)) == pytest.approx(expected, rel=1e-6)


def test_info_nce_of_an_orthogonal_queue():
    # MoCo: q = k+, and K keys orthogonal to q.
    for temperature, number in ((0.07, 5), (0.2, 65536), (0.07, 65536), (0.05, 65536)):
        row = np.zeros((1, 1 + number), "float32")
        row[0, 0] = 1
        expected = math.log1p(number * math.exp(-1 / temperature))
        assert float(InfoNCE(temperature)([0], row)) == pytest.approx(expected, rel=1e-5)


def test_info_nce_of_two_queries_per_image_matches_cross_entropy():
    similarity = embeddings(4, 2, 6)
    found = InfoNCE(0.2, reduction="none")(np.zeros(4), similarity)
    expected = keras.ops.sparse_categorical_crossentropy(
        np.zeros((4, 2), int), similarity / 0.2, from_logits=True
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "loss", [NTXent(0.2, reduction="none"), SupervisedContrastive(0.2, reduction="none")]
)
def test_laws(loss):
    z, labels, order = embeddings(), np.array([0, 1, 0, 2, 1]), [3, 0, 4, 1, 2]
    value = loss(labels, z).numpy()
    np.testing.assert_allclose(loss(labels[order], z[order]), value[order], rtol=1e-5)
    np.testing.assert_allclose(loss(labels, z[:, ::-1]), value, rtol=1e-5)  # symmetric in the views
    scales = np.random.default_rng(1).uniform(0.1, 10, (5, 2, 1)).astype("float32")
    np.testing.assert_allclose(loss(labels, scales * z), value, rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_finite_in_16_bits_at_a_small_temperature(dtype):
    z = tf.Variable(tf.cast(100 * embeddings(), dtype))
    with tf.GradientTape() as tape:
        loss = NTXent(0.05)(np.zeros(5), z)
    assert loss.dtype == tf.float32
    assert np.isfinite(float(loss))
    assert np.isfinite(tf.cast(tape.gradient(loss, z), tf.float32)).all()


def test_a_batch_of_one_image_has_no_negatives():
    z = tf.Variable(embeddings(1))
    with tf.GradientTape() as tape:
        loss = NTXent()([0], z)
    assert float(loss) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(tape.gradient(loss, z), np.zeros((1, 2, 3)), atol=1e-6)


def test_similarities_of_predictions_and_targets():
    queries, keys = embeddings(3, 2, 4), embeddings(3, 2, 4, seed=1)
    similarity, own, itself = similarities(tf.constant(queries), tf.constant(keys))
    unit = [v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (queries, keys)]
    np.testing.assert_allclose(similarity, np.einsum("bvd,nwd->bvnw", *unit), atol=1e-6)
    np.testing.assert_array_equal(own, np.eye(3, dtype=bool))
    np.testing.assert_array_equal(itself, np.einsum("bn,vw->bvnw", np.eye(3), np.eye(2)) > 0)


@pytest.mark.parametrize(("negatives", "value"), [(4096, 9.318), (16384, 10.704), (32000, 11.374)])
def test_nce_of_equal_probabilities(negatives, value):
    """ln(m + 1) + m ln((m + 1) / m), where data and noise have the same probability."""
    odds = tf.fill((2, 1, negatives + 1), -tf.math.log(float(negatives)))
    np.testing.assert_allclose(NCE()([0, 0], odds), value, atol=5e-4)


def test_nce_matches_a_loop_over_data_and_noise():
    """-[ln P / (P + m P_n) + sum over negatives of ln m P_n / (P + m P_n)]."""
    rng = np.random.default_rng(0)
    probability, noise, m = rng.uniform(0, 0.3, (4, 2, 6)), 1 / 50, 5
    expected = np.zeros((4, 2))
    for i in range(4):
        for q in range(2):
            p, *negatives = probability[i, q]
            expected[i, q] = -np.log(p / (p + m * noise))
            expected[i, q] -= sum(np.log(m * noise / (n + m * noise)) for n in negatives)
    odds = np.log(probability / (m * noise)).astype("float32")
    found = NCE(reduction="none")(np.zeros(4), odds)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    weighted = NCE(weights=(0.25, 2), reduction="none")(np.zeros(4), odds)
    np.testing.assert_allclose(weighted, expected @ [0.25, 2], rtol=1e-5)
    # The softmax over the same log-odds does not depend on the constant.
    exact = -np.log(probability[..., 0] / probability.sum(-1))
    for weights, value in ((None, exact), ((0.25, 2), exact @ [0.25, 2])):
        softmax = InfoNCE(temperature=1.0, weights=weights, reduction="none")(np.zeros(4), odds + 3)
        np.testing.assert_allclose(softmax, value, rtol=1e-5)


def test_nce_is_finite_for_extreme_odds():
    odds = tf.Variable([[[-1e4, 1e4, -1e4, 0.0]], [[1e4, -1e4, 1e4, 0.0]]])
    with tf.GradientTape() as tape:
        loss = NCE(reduction="none")([0, 0], odds)
    np.testing.assert_allclose(loss[:, 0], [2e4, 1e4], rtol=1e-3)
    expected = [[[-1, 1, 0, 0.5]], [[0, 0, 1, 0.5]]]
    np.testing.assert_allclose(tape.gradient(loss, odds), expected, atol=1e-6)


def test_invalid_arguments():
    with pytest.raises(
        ValueError, match="weights must be a list of numbers, one per query, got 0.5"
    ):
        InfoNCE(weights=0.5)
    with pytest.raises(ValueError, match="weights must be a number of at least 0, got -1"):
        NCE(weights=(1.0, -1))
    for loss in (NCE(weights=(1.0, 1.0)), InfoNCE(weights=(1.0, 1.0))):
        with pytest.raises(
            ValueError, match=r"weights must be one number per query, got \[1.0, 1.0\]"
        ):
            loss(np.zeros(2), np.zeros((2, 1, 5), "float32"))
    for temperature in (0, -1.0, float("nan"), "0.5", True):
        for loss in (NTXent, SupervisedContrastive, InfoNCE):
            with pytest.raises(ValueError, match="temperature must be a positive number, got"):
                loss(temperature)
    with pytest.raises(ValueError, match='mean must be "outside" or "inside" the logarithm, got'):
        SupervisedContrastive(mean="middle")
    for shape in ((4, 3), (4, 1, 3)):
        with pytest.raises(ValueError, match="at least two views of each image, got shape"):
            NTXent()(np.zeros(4), np.ones(shape, "float32"))
        with pytest.raises(ValueError, match="at least two views of each image, got shape"):
            SupervisedContrastive()(np.zeros(4), np.ones(shape, "float32"))


@pytest.mark.parametrize(
    "loss",
    [NTXent(0.3), SupervisedContrastive(0.3, "inside"), InfoNCE(0.3, (1, 0.5)), NCE((1, 0.5))],
    ids=lambda loss: type(loss).__name__,
)
def test_config_round_trip(loss):
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert copy.get_config() == loss.get_config()
