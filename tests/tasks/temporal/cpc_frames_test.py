"""CPC over time: what a prediction depends on, what is compared, and that motion can be predicted."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl import encoders


def make(**arguments):
    encoder = encoders.resnet((8, 8, 3), width=4, blocks=(1,), normalization="layer")
    return kssl.tasks.CPCFrames(encoder, **{"hidden": 8, "dimensions": 5, **arguments})


@pytest.fixture(scope="module")
def task():
    """Six frames, of which the second and third after a context are predicted.

    All weights are random, so that nothing is 0 by chance; five blocks see all frames before.
    """
    task = make(frames=6, ignore=1, steps=2, blocks=5)
    task(np.zeros((1, 6, 8, 8, 3), "float32"))
    rng = np.random.default_rng(0)
    task.set_weights([w + 0.3 * rng.normal(size=w.shape) for w in task.get_weights()])
    return task


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(1).uniform(0, 255, (3, 6, 8, 8, 3)).astype("float32")


def seen(gradient):
    """Of (B, T, ...), which frames matter."""
    return np.abs(gradient.numpy().reshape(3, 6, -1)).max(axis=(0, 2)) > 0


def test_a_context_depends_on_the_frames_up_to_it_only(task, frames):
    x = tf.Variable(frames)
    with tf.GradientTape(persistent=True) as tape:
        context = task.context(encoders.each(task.encoder, x))
        totals = [tf.reduce_sum(context[:, t] ** 2) for t in range(6)]
    for t, total in enumerate(totals):
        np.testing.assert_array_equal(seen(tape.gradient(total, x)), [k <= t for k in range(6)])


@pytest.mark.parametrize("step", [1, 2])
def test_a_prediction_depends_on_the_frames_before_it_only(task, frames, step):
    x = tf.Variable(frames)
    with tf.GradientTape(persistent=True) as tape:
        found = task(x, training=True)
        totals = [tf.reduce_sum(found[:, step, t] ** 2) for t in range(6)]
    for t, total in enumerate(totals):
        # Two frames after the context for the first step, three for the second.
        expected = [k <= t - 1 - step for k in range(6)]
        np.testing.assert_array_equal(seen(tape.gradient(total, x)), expected)


def test_each_step_has_its_own_linear_map(task, frames):
    features = encoders.each(task.encoder, frames)
    context, found = task.context(features).numpy(), task(frames).numpy()[:, :, :, 0]
    assert found.shape == (3, 3, 6, 5)
    near = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(found[:, 0], features @ task.target.kernel, **near)
    for step in (1, 2):
        kernel = task.predictors[step - 1].kernel.numpy()
        np.testing.assert_allclose(
            found[:, step, 1 + step :], 0.1 * context[:, : 5 - step] @ kernel, **near
        )
        np.testing.assert_array_equal(found[:, step, : 1 + step], 0)
    assert all(layer.bias is None for layer in (task.target, *task.predictors))


def test_without_a_prediction_the_loss_is_the_logarithm_of_all_frames(task, frames):
    found = task(frames).numpy()
    found[:, 1:] = 0
    loss, (accuracy,) = task.default_loss(), task.default_metrics()
    np.testing.assert_allclose(loss.call([0] * 3, found), [np.log(3 * 6)] * 3, rtol=1e-6)
    # As if each frame had an embedding of its own, of which one is predicted wrongly.
    unit = np.eye(18, dtype="float32").reshape(3, 1, 6, 1, 18)
    found = np.concatenate([unit, 50 * unit, 50 * unit], axis=1)
    found[2, 1, 2] *= -1  # the first frame that is predicted
    np.testing.assert_allclose(accuracy.found(None, found), [1, 1, (3 / 4 + 1) / 2])
    wrong = loss.call([0] * 3, found).numpy()
    np.testing.assert_allclose(wrong[:2], 0, atol=1e-5)
    assert wrong[2] == pytest.approx(
        (50 + np.log(17)) / 4 / 2
    )  # of four frames of one of two steps


def test_consecutive_frames_are_augmented_alike():
    rng = np.random.default_rng(0)
    clips = rng.integers(0, 200, (8, 1, 8, 8, 3)) + 10 * np.arange(5).reshape(5, 1, 1, 1)
    batch = {"frames": tf.constant(clips.astype(np.uint8)), "id": np.arange(8)}
    seed = tf.constant([[7, k] for k in range(8)], tf.int64)
    x, y = make(frames=4, steps=2, jitter=0, split_channels=False).pretext(batch, seed)
    assert x.shape == (8, 4, 8, 8, 3)
    np.testing.assert_array_equal(y, range(8))
    np.testing.assert_array_equal(np.diff(x.numpy().astype(int), axis=1), 10)
    # But for its brightness, which tells the window, a frame is neither the original nor its mirror image.
    kept = [
        any(np.ptp(a[0].astype(int) - same) == 0 for same in (b[0], b[0][:, ::-1]))
        for a, b in zip(x.numpy(), clips, strict=True)
    ]
    assert not all(kept)
    x, _ = make(frames=4, steps=2, jitter=0.25).pretext(batch, seed)
    assert (np.diff(x.numpy().astype(int), axis=1) != 10).any()
    np.testing.assert_array_equal(x.numpy().min(axis=-1), x.numpy().max(axis=-1))


def test_learns_how_squares_grow():
    """They are the same in all clips: only how large they are, and how fast they grow, tells frames apart."""
    rng = np.random.default_rng(0)
    start, speed = rng.integers(1, 3, (2, 64, 1))
    side = (start + speed * np.arange(4))[..., None, None]
    rows, columns = np.mgrid[:8, :8]
    inside = np.maximum(rows, columns) < side
    frames = np.repeat(np.where(inside, 255, 0)[..., None], 3, axis=-1).astype(np.uint8)
    keras.utils.set_random_seed(0)
    task = make(frames=4, ignore=1, steps=1, shift=0, jitter=0, split_channels=False)
    task.compile(keras.optimizers.Adam(0.01))
    data = task.dataset(kssl.data.from_array(frames[:, 2], frames=frames), 16, epochs=20)
    history = task.fit(data, epochs=20, verbose=0).history["loss"]
    assert history[0] == pytest.approx(np.log(16 * 4), abs=0.5)
    assert history[-1] < history[0] - 0.7


def test_previews_tell_which_frames_are_found(task, frames):
    captions = [text for _, text in task.preview(frames, None)[1]]
    assert captions == [f"frame {k}, context only" for k in (1, 2)] + [
        f"frame {k}" for k in (3, 4, 5, 6)
    ]
    unit = np.eye(18, dtype="float32").reshape(3, 1, 6, 1, 18)
    found = np.repeat(unit, 3, axis=1)
    found[1, 1, 4] *= -1  # as if the fifth frame of the second clip looked like no frame
    captions = [[text for _, text in row] for row in task.preview(frames, None, found)]
    assert captions[0][2:] == [f"frame {k}, found" for k in (3, 4, 5, 6)]
    assert captions[1][2:] == [
        "frame 3, found", "frame 4, found", "frame 5, not found", "frame 6, found"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": 1}, r"frames must be an integer \(int64\) of at least 2, got 1"),
        ({"ignore": -1}, r"ignore must be an integer \(int64\) of at least 0, got -1"),
        ({"steps": 0}, r"steps must be an integer \(int64\) of at least 1, got 0"),
        ({"steps": 5}, "frames=5 are too few for ignore=0 and steps=5, which need 6"),
        ({"ignore": 2}, "frames=5 are too few for ignore=2 and steps=3, which need 6"),
        ({"blocks": 0}, r"blocks must be an integer \(int64\) of at least 1, got 0"),
        ({"hidden": 0}, r"hidden must be an integer \(int64\) of at least 1, got 0"),
        ({"dimensions": 0}, r"dimensions must be an integer \(int64\) of at least 1, got 0"),
        ({"shift": 0.6}, "shift must be .*, got 0.6"),
        ({"jitter": -0.1}, "jitter must be .*, got -0.1"),
        ({"split_channels": 1}, "split_channels must be .*, got 1"),
    ],
)
def test_invalid_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_refuses_short_clips():
    frames = np.zeros((4, 4, 8, 8, 3), np.uint8)
    images = kssl.data.from_array(frames[:, 0], frames=frames)
    with pytest.raises(ValueError, match="T >= 5 .*use a reader with frames=5"):
        make().dataset(images, 2)


def test_warns_of_batch_normalization():
    with pytest.warns(UserWarning, match="normalizes each frame by the statistics of all others"):
        kssl.tasks.CPCFrames(encoders.resnet((8, 8, 3), 2, (1,)))
