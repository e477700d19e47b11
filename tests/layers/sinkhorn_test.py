"""Sinkhorn layer versus `transport.sinkhorn`, in a graph, in a SavedModel and on two replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssl.layers import Sinkhorn
from keras_ssl.solvers.transport import sinkhorn


@pytest.fixture(scope="module")
def problem():
    random = np.random.default_rng(0)
    scores = random.standard_normal((10, 4)).astype("float32")
    return scores, random.dirichlet(np.ones(10)), random.dirichlet(np.ones(4))


def test_matches_transport_sinkhorn(problem):
    scores, rows, columns = problem
    plan = Sinkhorn(lam=5.0, tolerance=1e-6)(scores, rows, columns)
    expected = sinkhorn(scores, rows, columns, 5.0, 1e-9, dtype="float64").plan()
    np.testing.assert_allclose(plan, expected, atol=1e-6)
    uniform = Sinkhorn(lam=5.0, tolerance=1e-6)(scores).numpy()
    np.testing.assert_allclose(uniform.sum(0), 1 / 4, atol=1e-6)
    np.testing.assert_allclose(uniform.sum(1), 1 / 10, atol=1e-6)


def test_low_temperatures_are_finite(problem):
    plan = Sinkhorn(lam=1000.0, max_iterations=5000)(problem[0] - [[0, 10, 20, 30]]).numpy()
    assert np.isfinite(plan).all()
    np.testing.assert_allclose(plan.sum(0), 1 / 4, atol=1e-3)


def test_report_and_warning(problem, capfd):
    found = Sinkhorn(lam=50.0, max_iterations=3, report=True)(problem[0])
    assert found["iterations"] == 3
    error = np.abs(found["plan"].numpy().sum(0) - 1 / 4).sum()
    assert float(found["error"]) == pytest.approx(error, rel=1e-3)
    assert "Sinkhorn stopped after 3 iterations with an error of" in capfd.readouterr().err
    found = Sinkhorn(lam=1.0, report=True)(problem[0])
    assert found["error"] <= 1e-4
    assert capfd.readouterr().err == ""


def test_gradient_only_if_differentiable(problem):
    scores = tf.constant(problem[0])
    goal = np.random.default_rng(1).standard_normal((10, 4)).astype("float32")

    def value(layer, scores):
        return tf.reduce_sum(goal * layer(scores))

    with tf.GradientTape() as tape:
        tape.watch(scores)
        constant = value(Sinkhorn(lam=2.0), scores)
    assert tape.gradient(constant, scores) is None
    layer = Sinkhorn(lam=2.0, tolerance=1e-7, max_iterations=100, differentiable=True)
    with tf.GradientTape() as tape:
        tape.watch(scores)
        result = value(layer, scores)
    gradient = tape.gradient(result, scores).numpy()
    for index in ((0, 0), (3, 2), (9, 3)):  # versus finite differences of the function in float64
        step = np.zeros((10, 4))
        step[index] = 1e-4
        ends = [
            (
                goal * sinkhorn(problem[0] + s, lam=2.0, tolerance=1e-12, dtype="float64").plan()
            ).sum()
            for s in (step, -step)
        ]
        expected = (ends[0] - ends[1]) / 2e-4
        assert abs(expected) > 1e-3
        assert gradient[index] == pytest.approx(expected, rel=1e-2)


def test_saves_exports_and_computes_in_float32(problem, tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, Sinkhorn(lam=5.0, dtype="mixed_bfloat16")(inputs))
    expected = Sinkhorn(lam=5.0)(problem[0])
    model.save(tmp_path / "model.keras")
    copy = keras.models.load_model(tmp_path / "model.keras")
    assert copy.layers[-1].lam == 5.0
    module = tf.Module()
    serve = tf.function(copy, input_signature=[tf.TensorSpec((None, 4), tf.float32)])
    tf.saved_model.save(module, str(tmp_path / "1"), {"serving_default": serve})
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path / "1"))
        signature = meta.signature_def["serving_default"]
        (name,) = (value.name for value in signature.inputs.values())
        (output,) = (value.name for value in signature.outputs.values())
        served = session.run(output, {name: problem[0]})
    np.testing.assert_allclose(served, expected, atol=1e-6)
    report = keras.Model(inputs, Sinkhorn(report=True)(inputs))
    assert report.output["plan"].shape == (None, 4)


def test_two_replicas_match_one(problem, two_replicas):
    scores, rows, columns = (np.asarray(a, np.float32) for a in problem)
    layer = Sinkhorn(lam=25.0, tolerance=1e-6)
    expected = layer(scores, rows, columns).numpy()
    parts = [slice(0, 6), slice(6, 10)]  # replicas of different sizes

    def value(array):
        return two_replicas.experimental_distribute_values_from_function(
            lambda context: tf.constant(array[parts[context.replica_id_in_sync_group]])
        )

    run = tf.function(lambda s, r: two_replicas.run(lambda s, r: layer(s, r, columns), (s, r)))
    found = two_replicas.experimental_local_results(run(value(scores), value(rows)))
    assert [len(part) for part in found] == [6, 4]
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [("lam", 0, "positive, got 0"), ("tolerance", 0, "positive, got 0"),
     ("max_iterations", 0, "an integer .* of at least 1, got 0"),
     ("max_iterations", 10.5, "an integer .* of at least 1, got 10.5")],
)  # fmt: skip
def test_refuses(name, value, words):
    with pytest.raises(ValueError, match=f"{name} must be {words}"):
        Sinkhorn(**{name: value})
    with pytest.raises(ValueError, match=r"scores must be \(B, K\), got \(2, 3, 4\)"):
        Sinkhorn()(np.zeros((2, 3, 4)))


def eagerly(scores, marginals):
    return Sinkhorn()(scores, **marginals)


def in_a_graph(scores, marginals):
    return tf.function(lambda scores: Sinkhorn()(scores, **marginals))(scores)


def in_a_model(scores, marginals):
    return Sinkhorn()(keras.Input(scores.shape[1:], batch_size=len(scores)), **marginals)


@pytest.mark.parametrize("call", [eagerly, in_a_graph, in_a_model])
@pytest.mark.parametrize(
    ("marginals", "words"),
    [
        ({"rows": np.full(9, 1 / 9)}, r"rows must be \(10,\), got shape \(9,\)"),
        ({"columns": np.ones((1, 4))}, r"columns must be \(4,\), got shape \(1, 4\)"),
        (
            {"columns": [0.5, 0.5, 0.5, -0.5]},
            "columns must be positive and finite, got -0.5 to 0.5",
        ),
        ({"columns": np.array([0.5, 0.5, 0, 0])}, "columns must be positive and finite, got"),
        ({"columns": np.array([0.5, 0.5, 0, np.nan])}, "columns must be positive and finite, got"),
        ({"columns": [0.2, 0.1, 0.1, 0.1]}, "have the same sum .* 1 and 0.5"),
        ({"rows": np.full(10, 0.2)}, "have the same sum .* 2 and 1"),
        ({"rows": [0.2] * 10, "columns": [0.25] * 4}, "have the same sum .* 2 and 1"),
    ],
)
def test_refuses_marginals(problem, call, marginals, words):
    if call is in_a_model and "rows" in marginals and "sum" in words:
        return  # checked when the model runs: under a strategy these are the rows of one replica
    with pytest.raises(ValueError, match=words):
        call(problem[0], marginals)


def test_marginals_may_have_any_sum(problem):
    scores, rows, columns = problem
    both = Sinkhorn(tolerance=1e-6)(scores, 50 * rows, 50 * columns)
    np.testing.assert_allclose(tf.reduce_sum(both, 0), 50 * columns, rtol=1e-3)
