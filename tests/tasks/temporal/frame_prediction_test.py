import keras
import numpy as np
import pytest
import sprites
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.ops import masks
from keras_ssl.tasks import FramePrediction


@pytest.fixture(scope="module")
def encoder():
    return kssl.encoders.resnet((16, 18, 3), width=2, blocks=(1, 1))


@pytest.fixture(scope="module")
def clips():
    """Noise that does not stand still: (6, 7, 16, 18, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (6, 7, 16, 18, 3), np.uint8)


def seeds(number, start=0):
    return tf.stack([tf.fill(number, np.int64(start)), tf.range(number, dtype=tf.int64)], 1)


@pytest.fixture
def make(encoder):
    return lambda target="future", **arguments: FramePrediction(encoder, target, **arguments)


def mirrored(frames, image):
    """Whether two arrays are equal, or one is the mirror image of the other."""
    return (frames == image).all() or (frames == image[..., ::-1, :]).all()


@pytest.mark.parametrize("context", [2, 3])
def test_the_frame_after_and_before(make, clips, context):
    for target in ("future", "past"):
        x, y = make(target, context=context, shift=0).pretext({"frames": clips}, seeds(6))
        assert x.shape == (6, context, 16, 18, 3)
        frames = np.rint(127.5 * (y[..., :3].numpy() + 1))
        starts = set()
        for clip, given, truth in zip(clips, x.numpy(), frames, strict=True):
            window = np.concatenate([given, truth[None]])
            window = window[::-1] if target == "past" else window
            fits = [k for k in range(7 - context) if mirrored(window, clip[k : k + context + 1])]
            assert len(fits) == 1
            starts.add(fits[0])
        assert len(starts) > 1


def test_reversing_every_clip_exchanges_future_and_past(make, clips):
    future, past = make("future", adversarial=0.1), make("past", adversarial=0.1)
    past.set_weights(future.get_weights())
    for one, other in ((future, past), (past, future)):
        (x, y), (x_other, y_other) = (
            task.pretext({"frames": frames}, seeds(6))
            for task, frames in ((one, clips), (other, clips[:, ::-1]))
        )
        np.testing.assert_array_equal(x, x_other)
        np.testing.assert_array_equal(y, y_other)
        np.testing.assert_array_equal(one(x), other(x))
        assert one.default_loss()(y, one(x)) == other.default_loss()(y, other(x))
    (x, _), (x_other, _) = (task.pretext({"frames": clips}, seeds(6)) for task in (future, past))
    assert (x != x_other).numpy().any()


@pytest.mark.parametrize("target", ["top", "hidden"])
def test_what_is_hidden_affects_neither_x_nor_prediction(make, clips, target):
    task = make(target, context=7, shift=0)
    x, y = task.pretext({"frames": clips}, seeds(6))
    hidden = y[..., 3].numpy() == 1
    if target == "top":
        assert (hidden == (np.arange(16) < 8)[None, :, None]).all()
    else:
        hole = kssl.ops.random.split(seeds(6), 3)[2]
        np.testing.assert_array_equal(hidden, masks.blocks(hole, 16, 18)[..., 0] == 1)
    # The clips are mirrored before the mask is drawn.
    truth = np.rint(127.5 * (y[..., :3].numpy() + 1))
    flipped = (truth != clips[:, -1]).any(axis=(1, 2, 3))
    assert 0 < flipped.sum() < 6
    other = clips.copy()
    for k in range(6):
        mask = hidden[k][:, ::-1] if flipped[k] else hidden[k]
        other[k][:, mask] = np.random.default_rng(k).integers(0, 256, (7, mask.sum(), 3))
    x_other, y_other = task.pretext({"frames": other}, seeds(6))
    np.testing.assert_array_equal(x, x_other)
    np.testing.assert_array_equal(task(x), task(x_other))
    assert (y != y_other).numpy().any()
    for k in range(6):
        for t in range(7):
            frame = clips[k, t, :, ::-1] if flipped[k] else clips[k, t]
            visible = frame[~hidden[k]]
            np.testing.assert_array_equal(x[k, t].numpy()[~hidden[k]], visible)
            np.testing.assert_allclose(x[k, t].numpy()[hidden[k]] - visible.mean(0), 0, atol=1e-3)


def test_each_pixel_is_moved_and_changed(make, clips):
    """With a bias only, whose largest weight is that of two rows up and one column to the right."""
    task = make(context=3, reach=2)
    x, _ = task.pretext({"frames": clips}, seeds(6))
    assert task(x).shape == (6, 16, 18, 3)
    kernel, bias = (np.zeros_like(w) for w in task.head.get_weights())
    bias[:3] = 0.1, 0, -0.2
    bias[3 + 5 * 0 + 3] = 50
    task.head.set_weights([kernel, bias])
    last = np.pad(x[:, -1] / 127.5 - 1, ((0, 0), (2, 0), (0, 1), (0, 0)), "symmetric")
    np.testing.assert_allclose(task(x), last[:, :16, 1:] + bias[:3], atol=1e-5)
    bias[3 + 5 * 4 + 2] = 50  # and two rows down: the mean of both
    task.head.set_weights([kernel, bias])
    other = np.pad(x[:, -1] / 127.5 - 1, ((0, 0), (0, 2), (0, 0), (0, 0)), "symmetric")
    mean = (last[:, :16, 1:] + other[:, 2:]) / 2 + bias[:3]
    np.testing.assert_allclose(task(x), mean, atol=1e-5)


def test_every_given_frame_affects_the_prediction(make, clips):
    task = make(context=4)
    x = tf.constant(clips[:1, :4], tf.float32)
    expected = task(x).numpy()
    for t in range(4):
        changed = tf.where(tf.range(4)[None, :, None, None, None] == t, 255 - x, x)
        assert np.abs(task(changed) - expected).max() > 1e-5
    swapped = tf.gather(x, [1, 0, 2, 3], axis=1)
    assert np.abs(task(swapped) - expected).max() > 1e-6


def test_baselines(make):
    x = np.zeros((1, 3, 4, 2, 3), np.float32)
    x[0, :, :, 0] = np.float32([10, 60, 200])[:, None, None]
    x[0, 2, 1, 1] = 7
    y = np.zeros((1, 4, 2, 4), np.float32)
    found = make(context=3).baselines(tf.constant(x), y)
    np.testing.assert_array_equal(found["copy"], x[:, 2])
    expected = x[:, 2].copy()
    expected[0, :, 0], expected[0, 1, 1] = 255, 14  # 200 + 140 is clipped
    np.testing.assert_array_equal(found["extrapolation"], expected)
    y[0, :2, :, 3] = 1
    x[0, 2, :, 1] = np.float32([1, 2, 3, 4])[:, None]
    found = make("top", context=3).baselines(tf.constant(x), y)
    np.testing.assert_array_equal(found["mean"], x[:, 2])
    assert found["mirror"][0, :, 1, 0].numpy().tolist() == [4, 3, 3, 4]


def test_loss_and_metric_count_what_moves_or_is_hidden(make, clips):
    y = np.zeros((4, 16, 18, 4), np.float32)
    y[0, :, :9, 3] = 1
    y_pred = np.zeros((4, 16, 18, 3), np.float32)
    y_pred[:, :, 9:] = 0.5
    _, weight = make().late_labels(None, tf.constant(y), None)
    assert weight.numpy().tolist() == [1, 0, 0, 0]
    future, hidden = (make(p, gradient=0.0).default_loss() for p in ("future", "hidden"))
    assert float(future(y[:1], y_pred[:1])) == pytest.approx(0.125)
    assert float(hidden(y[:1], y_pred[:1])) == 0
    (metric,) = make().default_metrics()
    metric.update_state(y, y_pred, sample_weight=weight)
    assert float(metric.result()) == pytest.approx(100)


def test_discriminator_sees_the_given_frames(make, clips):
    for target, number in (("future", 4), ("hidden", 4)):
        task = make(target, context=4, adversarial=0.05, filters=4)
        assert task.discriminator.input_shape == (None, 16, 18, 3 * (number + 1))
        x, y = task.pretext({"frames": clips}, seeds(6))
        y_pred = task(x)
        (real,), (fake,) = task.discriminator_inputs(x, y, y_pred)
        for k in range(4):
            for one in (real, fake):
                given = 127.5 * (one[..., 3 * k : 3 * k + 3] + 1)
                np.testing.assert_allclose(given, x[:, k], atol=1e-3)
        np.testing.assert_array_equal(real[..., -3:], y[..., :3])
        shown = np.where(y[..., 3:] == 1, y_pred, y[..., :3]) if target == "hidden" else y_pred
        np.testing.assert_array_equal(fake[..., -3:], shown)


def test_preview_is_a_strip(make, clips):
    task = make(context=2)
    x, y = (a.numpy() for a in task.pretext({"frames": clips}, seeds(6)))
    assert [c for _, c in task.preview(x, y)[0]] == ["given 1", "given 2", "truth"]
    rows = task.preview(x, y, task(x).numpy())
    assert [c for _, c in rows[0]] == ["given 1", "given 2", "prediction", "truth", "error"]
    prediction, truth, error = (pixels for pixels, _ in rows[5][2:])
    np.testing.assert_allclose(error, abs(prediction - truth), atol=1e-3)


def test_encoder_takes_single_images(make, clips):
    task = make()
    np.testing.assert_array_equal(task.features(clips[:, 0]).shape, (6, 4))
    assert task.prediction(clips[:, 0]) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"target": "next"}, "target must be one of future, past, top, hidden, got 'next'"),
     ({"context": 1}, "context"), ({"reach": 0}, "reach"),
      ({"norm": 0}, "norm must be 1 or 2"), ({"gradient": -1}, "gradient"),
     ({"adversarial": -0.1}, "adversarial"), ({"shift": 0.7}, "shift"), ({"filters": 0}, "filters")],
)  # fmt: skip
def test_refuses(make, arguments, words):
    with pytest.raises(ValueError, match=words):
        make(**arguments)


@pytest.mark.parametrize(("target", "least"), [("past", 5), ("hidden", 4)])
def test_too_few_frames(make, clips, target, least):
    images = kssl.data.from_array(clips[:, 0], frames=clips[:, : least - 1])
    with pytest.raises(ValueError, match=f"T >= {least} .* got"):
        make(target).dataset(images, 2)


def test_learns_where_sprites_go():
    keras.utils.set_random_seed(0)
    frames, _ = sprites.clips(200, 16, frames=3, shapes=1, speed=1)
    images = kssl.data.from_array(frames[:, 0], frames=frames)
    encoder = kssl.encoders.resnet((16, 16, 3), width=4, blocks=(1, 1))
    task = FramePrediction(encoder, context=2, reach=1, shift=0)
    task.compile(keras.optimizers.Adam(5e-3))
    task.fit(task.dataset(images, 25, epochs=10), epochs=10, verbose=0)
    found = kssl.evaluation.frame_prediction(task, task.dataset(images, 100))
    assert found["psnr"] > found["copy_psnr"] + 1
    assert found["psnr"] > found["extrapolation_psnr"] + 1
