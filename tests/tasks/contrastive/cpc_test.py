import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import keras_ssl as kssl
from keras_ssl import encoders
from keras_ssl.ops import patches
from keras_ssl.tasks.contrastive import cpc


def layer_normalized(side=32, width=4, blocks=(1,)):
    return encoders.resnet((side, side, 3), width, blocks, normalization="layer")


def make(encoder=None, **arguments):
    arguments = {"hidden": 8, "dimensions": 5, **arguments}
    return kssl.tasks.CPC(encoder or layer_normalized(), **arguments)


@pytest.fixture(scope="module")
def task():
    """4 rows of patches that do not overlap, of which the second and third below a context are predicted.

    All weights are random, so that nothing is 0 by chance; three blocks see all rows above.
    """
    task = make(patch=8, stride=8, ignore=1, steps=2, blocks=3, jitter=0)
    task(np.zeros((1, 16, 8, 8, 3), "float32"))
    rng = np.random.default_rng(0)
    task.set_weights([w + 0.3 * rng.normal(size=w.shape) for w in task.get_weights()])
    return task


@pytest.fixture(scope="module")
def tiles():
    return np.random.default_rng(1).uniform(0, 255, (3, 16, 8, 8, 3)).astype("float32")


def index_images(number=3, side=32):
    """Images in which every pixel has another value, the same in all channels but for a constant."""
    pixels = np.arange(side * side, dtype=np.float32).reshape(side, side, 1)
    return np.stack([pixels * 0.1 + np.float32([0, 1000, 2000])] * number)


def test_patches_are_cut_from_a_grid_at_random_offsets(seeds):
    task = make(crop=1, color=None, jitter=2)
    assert (task.patch, task.stride, task.grid, task.ignore, task.steps) == (8, 4, (7, 7), 1, 5)
    batch = {"image": index_images(20), "id": np.arange(20)}
    x, y = task.pretext(batch, seeds(20))
    assert x.shape == (20, 49, 6, 6, 3)
    np.testing.assert_array_equal(y, range(20))
    offsets = set()
    for tiles in x.numpy():
        first = np.round(tiles[0, 0, 0, 0] * 10).astype(int)
        flipped = np.round(tiles[0, 0, 1, 0] * 10) < first
        image = index_images(1)[0][:, :: -1 if flipped else 1]
        for (row, column), tile in zip(np.ndindex(7, 7), tiles, strict=True):
            places = [
                (i, j) for i in range(3) for j in range(3)
                if (image[4 * row + i :, 4 * column + j :][:6, :6] == tile).all()
            ]  # fmt: skip
            assert len(places) == 1
            offsets.add((bool(flipped), *places[0]))
    assert len(offsets) == 2 * 9


def test_features_are_the_mean_of_those_of_the_patches_that_are_trained(noise):
    encoder = encoders.patch_grid((32, 32, 3), width=4, blocks=(1, 1), patch=10, stride=6)
    task = make(encoder, crop=1, color=None, jitter=0)
    assert (task.patch, task.stride, task.grid, task.ignore) == (10, 6, (4, 4), 1)
    corners = task._corners(tf.zeros((3, 2), tf.int64))  # without jitter, always the same
    tiles = patches.cut(tf.constant(noise[:3], tf.float32), corners, 10)
    expected = encoders.on_patches(task.patch_encoder, tiles)
    np.testing.assert_allclose(task.features(noise[:3]), np.mean(expected, axis=1), atol=1e-5)
    task.compile("sgd")
    before = task.features(noise[:3])
    task.fit(task.dataset(kssl.data.from_array(noise), 40), verbose=0)
    assert np.abs(task.features(noise[:3]) - before).max() > 1e-4  # they share their weights


def test_an_encoder_for_other_patches_gets_a_warning():
    encoder = encoders.patch_grid((32, 32, 3), width=4, blocks=(1,))
    with pytest.warns(UserWarning, match=r"patch is 12, .* patches of 8 pixels.*patch=12\)"):
        make(encoder, patch=12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(encoder, stride=8)


def test_crop_moves_the_grid(seeds):
    batch = {"image": index_images(5), "id": np.arange(5)}
    x, _ = make(color=None).pretext(batch, seeds(5))
    # A crop is enlarged: the difference between neighbors is less than in the image.
    steps = np.abs(np.diff(x[..., 0], axis=3)).mean((1, 2, 3))
    assert ((steps > 0.1 * 0.7) & (steps < 0.1001)).all()
    assert steps.min() < 0.097
    assert len(set(steps.round(5))) == 5


@pytest.mark.parametrize("color", ["dropping", "gray", None])
def test_colors(batch, seeds, color):
    x = make(color=color).pretext(batch, seeds(6))[0].numpy()
    deviation = x.std((2, 3))  # (6, 49, 3) of each channel of each patch
    if color == "dropping":
        order = np.sort(deviation, axis=-1)
        assert (order[..., 1] < 0.05 * order[..., 2]).all()
        kept = deviation.argmax(-1)
        assert [len(set(of)) for of in kept] == [3] * 6  # drawn for every patch
    elif color == "gray":
        np.testing.assert_array_equal(x[..., :2], x[..., 1:])
    else:
        assert deviation.min() > 20


@pytest.mark.parametrize("step", [1, 2])
def test_a_prediction_depends_on_the_rows_above_it_only(task, tiles, step):
    """The derivative of a prediction with respect to a row of patches; k rows below the context."""
    below, x = task.ignore + step, tf.Variable(tiles)
    for row in range(4):
        with tf.GradientTape() as tape:
            total = tf.reduce_sum(task(x, training=True)[:, step, row] ** 2)
        gradient = tape.gradient(total, x)
        gradient = np.zeros(x.shape) if gradient is None else gradient.numpy()
        seen = np.abs(gradient.reshape(3, 4, -1)).max(axis=(0, 2)) > 0
        np.testing.assert_array_equal(seen, [k <= row - below for k in range(4)])


def test_the_context_of_a_row_depends_on_the_rows_down_to_it(task, tiles):
    x = tf.Variable(tiles)
    for row in range(4):
        with tf.GradientTape() as tape:
            features = tf.reshape(encoders.on_patches(task.encoder, x), [3, 4, 4, -1])
            total = tf.reduce_sum(task.context(features)[:, row] ** 2)
        gradient = tape.gradient(total, x).numpy().reshape(3, 4, -1)
        np.testing.assert_array_equal(np.abs(gradient[:, row + 1 :]).max(initial=0), 0)
        assert (np.abs(gradient[:, : row + 1]).max(axis=(0, 2)) > 0).all()


@pytest.mark.parametrize("changed", range(4))
def test_a_changed_row_changes_the_predictions_below_it_only(task, tiles, changed):
    other = tiles.copy()
    other.reshape(3, 4, -1)[:, changed] = other.reshape(3, 4, -1)[:, changed, ::-1]
    different = (task(tiles) != task(other)).numpy().any(axis=(0, 3, 4))
    rows = np.arange(4)
    # The embeddings of its own patches; and what is predicted from it, two or three rows below.
    expected = [rows == changed, rows >= changed + 2, rows >= changed + 3]
    np.testing.assert_array_equal(different, expected)


def test_each_step_has_its_own_linear_map(task, tiles):
    features = tf.reshape(encoders.on_patches(task.encoder, tiles), [3, 4, 4, -1])
    context, found = task.context(features).numpy(), task(tiles).numpy()
    np.testing.assert_allclose(
        found[:, 0], features @ task.target.kernel[0, 0], rtol=1e-4, atol=1e-5
    )
    for step in (1, 2):
        kernel = task.predictors[step - 1].kernel.numpy()[0, 0]
        np.testing.assert_allclose(
            found[:, step, 1 + step :], 0.1 * context[:, : 3 - step] @ kernel, rtol=1e-4, atol=1e-5
        )
        np.testing.assert_array_equal(found[:, step, : 1 + step], np.zeros((3, 1 + step, 4, 5)))
    assert all(layer.bias is None for layer in (task.target, *task.predictors))


def test_loss_and_metric_know_the_first_step(task, tiles):
    found = task(tiles)
    assert task.default_loss().first == 2
    perfect = found.numpy()
    unit = np.eye(48, dtype="float32").reshape(
        3, 4, 4, 48
    )  # as if each patch had an embedding of its own
    perfect = np.stack([unit, 50 * unit, 50 * unit], axis=1)
    (accuracy,) = task.default_metrics()
    np.testing.assert_array_equal(accuracy.found(None, perfect), [1, 1, 1])
    assert float(task.default_loss()([0] * 3, perfect)) == pytest.approx(0, abs=1e-5)
    one_row_off = np.stack([unit, np.roll(50 * unit, 1, axis=1), 50 * unit], axis=1)
    np.testing.assert_array_equal(accuracy.found(None, one_row_off), [0.5] * 3)
    accuracy.update_state(np.zeros(3), one_row_off)
    assert float(accuracy.result()) == 0.5
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(accuracy))
    assert copy.get_config() == accuracy.get_config()


def test_learns_which_stripes_go_on(gratings):
    keras.utils.set_random_seed(0)
    task = make(layer_normalized(width=8), hidden=16, blocks=2, steps=1, color="gray", crop=1)
    task.compile(keras.optimizers.Adam(0.01))
    data = task.dataset(kssl.data.from_array(gratings), 16, epochs=40)
    losses = task.fit(data, epochs=40, verbose=0).history["loss"]
    assert losses[0] == pytest.approx(np.log(16 * 49), abs=0.3)
    assert losses[-1] < losses[0] - 0.7


@given(st.integers(16, 300))
def test_defaults_give_a_grid_of_about_seven_patches(side):
    patch, stride, ignore, jitter = cpc.choose_layout(side)
    rows = (side - patch) // stride + 1
    assert 7 <= rows <= 10
    assert 0 <= jitter < patch
    assert (ignore + 1) * stride >= patch > ignore * stride  # the first row without common pixels
    assert cpc.choose_steps(rows, ignore) in range(1, 6)


def test_warns_of_batch_normalization():
    with pytest.warns(UserWarning, match="normalizes each patch by the statistics of all others"):
        make(encoders.resnet((32, 32, 3), 2, (1,)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(kssl.tasks.CPC.architecture((32, 32, 3), 2, (1,), synchronized=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch": 0}, "patch must be an integer in 1..32, got 0"),
        ({"patch": 33}, "patch must be an integer in 1..32, got 33"),
        ({"patch": 8.0}, "patch must be an integer in 1..32, got 8.0"),
        ({"stride": 0}, r"stride must be an integer \(int64\) of at least 1, got 0"),
        ({"patch": 16}, "3 rows of patches are too few for ignore=1 and steps=2, which need 4"),
        ({"patch": 24, "steps": None}, "1 rows of patches are too few for ignore=1 and steps=1"),
        ({"ignore": -1}, r"ignore must be an integer \(int64\) of at least 0, got -1"),
        ({"steps": 6}, "7 rows of patches are too few for ignore=1 and steps=6, which need 8"),
        ({"steps": 0}, r"steps must be an integer \(int64\) of at least 1, got 0"),
        ({"jitter": 8}, "jitter must be less than patch=8, got 8"),
        ({"jitter": -1}, r"jitter must be an integer \(int64\) of at least 0, got -1"),
        ({"blocks": 0}, r"blocks must be an integer \(int64\) of at least 1, got 0"),
        ({"hidden": 0}, r"hidden must be an integer \(int64\) of at least 1, got 0"),
        ({"dimensions": 0}, r"dimensions must be an integer \(int64\) of at least 1, got 0"),
        ({"color": "blue"}, "color must be one of .*, got 'blue'"),
        ({"crop": 0}, r"crop must be in \(0, 1\], got 0"),
        ({"crop": "a"}, r"crop must be in \(0, 1\], got 'a'"),
    ],
)
def test_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**{"steps": 2, **arguments})


def test_refuses_encoders():
    with pytest.raises(ValueError, match="color 'dropping' needs 3 channels, the encoder takes 1"):
        make(encoders.resnet((32, 32, 1), 2, (1,), normalization="layer"))
    with pytest.raises(ValueError, match="encoder must have an input of fixed height and width"):
        make(encoders.resnet((None, None, 3), 2, (1,), normalization="layer"))
    with pytest.raises(ValueError, match="encoder cannot take patches of 7x7 pixels"):
        make(encoders.local_resnet((32, 32, 3), 2, (1,)))
