"""Feature collapse: the two metrics in closed form, and the warnings of the callback."""

import re
import warnings

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_ssl as kssl
from keras_ssl.callbacks import Collapse, CSVLog, effective_rank, feature_std


def directions(k, dimensions=12, sizes=None):
    """Points at +- sizes[i] along k orthonormal directions, none of which is an axis."""
    rng = np.random.default_rng(k)
    basis = np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0][:k]
    points = basis * (np.ones(k) if sizes is None else np.asarray(sizes))[:, None]
    return np.concatenate([points, -points])


@pytest.mark.parametrize("k", [1, 3, 12])
def test_rank_of_k_equal_directions(k):
    assert effective_rank(directions(k)) == pytest.approx(k)
    assert effective_rank(7 + 1e-3 * directions(k)) == pytest.approx(k)  # centered
    assert effective_rank(directions(k).astype(np.float32)) == pytest.approx(k, rel=1e-5)


def test_rank_of_unequal_directions():
    p = np.array([0.5, 0.3, 0.2])
    expected = np.prod(p**-p)  # the exponential of the entropy
    assert effective_rank(directions(3, sizes=5 * p)) == pytest.approx(expected)
    assert 1 < expected < 3


@given(st.integers(0, 2**32 - 1), st.floats(1e-20, 1e20))
@settings(max_examples=20, deadline=None)
def test_metrics_are_invariant_to_scale_and_rotation(seed, scale):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(9, 5)) * rng.uniform(0.1, 3, 5) + rng.normal(size=5)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    other = scale * features @ rotation
    assert feature_std(other) == pytest.approx(feature_std(features))
    assert effective_rank(other) == pytest.approx(effective_rank(features))
    assert 0 <= feature_std(features) <= 1
    assert 1 <= effective_rank(features) <= 5


def test_std_in_closed_form():
    # Mean (3, 4), variances 2 and 7 (as n, not n - 1): squared norm 25 + 9.
    features = np.array([[3 + 2, 4.0], [3 - 2, 4], [3, 4 + 14**0.5], [3, 4 - 14**0.5]])
    assert feature_std(features) == pytest.approx((9 / 34) ** 0.5)
    assert feature_std(features - features.mean(axis=0)) == pytest.approx(1)


@pytest.mark.parametrize(
    "features",
    [
        np.full((256, 7), 0.1),
        np.nextafter(
            np.float32(0.1), np.random.default_rng(0).choice([0, 1], (256, 7)).astype("f")
        ),
        np.zeros((5, 3)),
        np.full((5, 3), np.nan),
        np.diag([1, np.inf, 2, 3]),
        np.full((5, 3), 1e300),
        [[4.0, 5.0]],
    ],
    ids=["constant", "rounding", "zero", "nan", "inf", "huge", "one image"],
)
def test_features_without_information_measure_zero(features):
    assert feature_std(features) == pytest.approx(0, abs=1e-7)
    assert effective_rank(features) == 0


def test_invalid_features():
    for metric in (feature_std, effective_rank):
        for shape in ((3,), (2, 3, 4), (0, 3), (3, 0)):
            with pytest.raises(ValueError, match=r"features must be a \(N, D\) array, got shape"):
                metric(np.zeros(shape))


def test_a_collapse_is_reported_once_and_logged(images, tmp_path, linear_task):
    """After some steps the features of all images equal the target."""
    linear_task.compile(keras.optimizers.SGD(0.3))
    pixels = kssl.data.to_arrays(images)["image"][:16]
    monitor, log = Collapse(images, number=16, every=2), CSVLog(tmp_path / "a.csv")
    data = linear_task.dataset(images, 20, epochs=60)
    with pytest.warns(UserWarning, match="they are nearly the same for all images") as caught:
        history = linear_task.fit(data, epochs=60, callbacks=[monitor, log], verbose=0).history
    (message,) = [str(w.message) for w in caught if "collapsed" in str(w.message)]
    stds = history["feature_std"]
    assert len(stds) == 30  # every second epoch
    epoch = int(re.search(r"after epoch (\d+)", message)[1])
    limit = 0.4 * monitor.before[0]
    assert [std < limit for std in stds] == [2 * i + 2 >= epoch for i in range(30)]
    assert 2 < epoch < 60
    assert (
        f"feature_std {stds[epoch // 2 - 1]:.2g}, before training {monitor.before[0]:.2g}"
        in message
    )
    features = linear_task.features(pixels)
    assert stds[-1] == pytest.approx(feature_std(features), rel=1e-4)
    assert history["effective_rank"][-1] == pytest.approx(effective_rank(features), rel=1e-3)
    mirrored = linear_task.features(pixels[:, :, ::-1])
    for name, value in (
        ("feature_alignment", kssl.evaluation.alignment(features, mirrored)),
        ("feature_uniformity", kssl.evaluation.uniformity(features)),
    ):
        assert history[name][-1] == pytest.approx(value, rel=1e-3, abs=1e-5)
    rows = (tmp_path / "a.csv").read_text().splitlines()
    assert rows[0] == "epoch,loss,feature_std,effective_rank,feature_alignment,feature_uniformity"
    assert rows[1].endswith(",,,,")
    first = [history[name][0] for name in rows[0].split(",")[2:]]
    assert rows[2].endswith("," + ",".join(map(str, first)))


def test_a_loss_of_rank_is_reported(images, linear_task):
    linear_task.compile(keras.optimizers.SGD(0.0))
    monitor = Collapse(images)
    monitor.set_model(linear_task)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.on_train_begin()
        monitor.on_epoch_end(0, {})
    kernel, bias = linear_task.encoder.layers[-1].get_weights()
    # All four features are equal, so images differ, but in one direction only.
    linear_task.encoder.layers[-1].set_weights([np.tile(kernel[:, :1], 4), bias])
    rank = monitor.before[1]
    monitor.min_std, monitor.min_rank = 0, 1.01 / rank
    message = rf"epoch 8 they vary in few directions .*_rank 1.0, before training {rank:.1f}\)"
    with pytest.warns(UserWarning, match=message):
        monitor.on_epoch_end(7, logs := {})
    assert logs["effective_rank"] == pytest.approx(1, rel=1e-3)
    assert logs["feature_std"] > 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.on_epoch_end(8, {})  # reported already
        monitor.on_epoch_end(9)
    linear_task.encoder.layers[-1].set_weights([np.tile(kernel[:, :1], 4), bias + 1000])
    with pytest.warns(UserWarning, match="epoch 11 they are nearly the same"):
        monitor.on_epoch_end(10)  # whatever they were before


def test_features_of_0_have_no_direction(images, linear_task):
    monitor = Collapse(images, number=8)
    monitor.set_model(linear_task)
    monitor.on_train_begin()
    dense = linear_task.encoder.layers[-1]
    dense.set_weights([np.zeros_like(value) for value in dense.get_weights()])
    with pytest.warns(UserWarning, match="they are nearly the same"):
        monitor.on_epoch_end(0, logs := {})
    assert np.isnan([logs["feature_alignment"], logs["feature_uniformity"]]).all()


def test_under_a_strategy(images, two_replicas, make_linear_task):
    with two_replicas.scope():
        task = make_linear_task()
        task.compile(keras.optimizers.SGD(0.01))
    monitor = Collapse(images, number=8)
    monitor.set_model(task)
    monitor.on_train_begin()
    dense = task.encoder.layers[-1]
    dense.bias.assign_add([1, 0, 0, -2])  # changes since then are measured
    monitor.on_epoch_end(0, logs := {})
    features = task.features(kssl.data.to_arrays(images)["image"][:8])
    assert logs["feature_std"] == pytest.approx(feature_std(features), rel=1e-4)


def test_invalid_arguments(images):
    with pytest.raises(ValueError, match="number must be an integer .* of at least 2, got 1"):
        Collapse(images, number=1)
    with pytest.raises(ValueError, match="every must be an integer .* of at least 1, got 0"):
        Collapse(images, every=0)
    with pytest.raises(ValueError, match="min_std must be in 0..1, got 2"):
        Collapse(images, min_std=2)
    with pytest.raises(ValueError, match="min_rank must be in 0..1, got nan"):
        Collapse(images, min_rank=float("nan"))
