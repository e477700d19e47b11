import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

import keras_ssl as kssl

FRAMES = 6


def seeds(number, start=0):
    return tf.stack([tf.fill(number, np.int64(start)), tf.range(number, dtype=tf.int64)], 1)


def trajectories(number, rng):
    """Random cameras, (number, FRAMES, 4, 4): camera to world."""
    poses = np.tile(np.eye(4), (number, FRAMES, 1, 1))
    rotations = Rotation.random(number * FRAMES, rng=rng).as_matrix()
    poses[..., :3, :3] = rotations.reshape(number, FRAMES, 3, 3)
    poses[..., :3, 3] = rng.normal(size=(number, FRAMES, 3))
    return poses


def motion_between(first, second):
    step = np.linalg.inv(first) @ second
    return np.array([*step[:3, 3], *Rotation.from_matrix(step[:3, :3]).as_rotvec()])


def clips(number=200):
    """Clips of which frame t has the color t, their motions, and the poses these are from."""
    poses = trajectories(number, np.random.default_rng(0))
    motion = [[motion_between(*clip[t : t + 2]) for t in range(FRAMES - 1)] for clip in poses]
    frames = np.broadcast_to(
        np.arange(FRAMES, dtype=np.uint8)[:, None, None, None], (number, FRAMES, 16, 16, 3)
    )
    return {"frames": frames, "motion": np.array(motion, np.float32)}, poses


def test_motion_between_the_two_frames(make):
    batch, poses = clips()
    x, y = make(max_distance=3).pretext(batch, seeds(200))
    assert x.shape == (200, 2, 16, 16, 3)
    assert (x == x[:, :, :1, :1]).numpy().all()
    pairs = x[:, :, 0, 0, 0].numpy().astype(int)
    # SciPy may choose the other axis of a rotation by nearly half a turn.
    for clip, (first, second), found in zip(poses, pairs, y.numpy(), strict=True):
        expected = motion_between(clip[first], clip[second])
        np.testing.assert_allclose(found[:3], expected[:3], atol=1e-5)
        turn = Rotation.from_rotvec(found[3:]).inv() * Rotation.from_rotvec(expected[3:])
        assert turn.magnitude() < 1e-5
    distances = collections.Counter((pairs[:, 1] - pairs[:, 0]).tolist())
    assert set(distances) == {-3, -2, -1, 1, 2, 3}
    assert min(distances.values()) > 20  # of 33
    assert set(pairs.ravel()) == set(range(FRAMES))


def test_the_other_order_has_the_inverse_label(make):
    batch, _ = clips(1)
    repeated = {name: np.repeat(column, 200, axis=0) for name, column in batch.items()}
    x, y = make(max_distance=7).pretext(repeated, seeds(200))
    found = dict(zip(map(tuple, x[:, :, 0, 0, 0].numpy()), y.numpy(), strict=True))
    assert len(found) == FRAMES * (FRAMES - 1)  # every pair, in both orders
    for (first, second), motion in found.items():
        np.testing.assert_allclose(kssl.ops.poses.inverse(found[second, first]), motion, atol=1e-5)


def test_chosen_axes_in_their_order(make):
    batch, _ = clips(20)
    _, every = make().pretext(batch, seeds(20))
    _, some = make(axes=("yaw", "x", "z")).pretext(batch, seeds(20))
    np.testing.assert_array_equal(some, every.numpy()[:, [4, 0, 2]])


def test_both_frames_have_the_same_shift(make, noise):
    image = noise[:20, :16, :16]
    batch = {"frames": np.stack([image] * 3, axis=1), "motion": np.zeros((20, 2, 6), np.float32)}
    x, _ = make().pretext(batch, seeds(20))
    np.testing.assert_array_equal(x[:, 0], x[:, 1])
    moved = (x[:, 0] != image).numpy().any(axis=(1, 2, 3))
    assert moved.sum() > 15  # one of 25 is not
    # No mirroring: the interior is found again, at another place.
    for before, after in zip(image, x[:, 0].numpy(), strict=True):
        part = after[4:12, 4:12]
        places = [before[r : r + 8, c : c + 8] for r in range(9) for c in range(9)]
        assert sum((part == place).all() for place in places) == 1
    still, _ = make(shift=0).pretext(batch, seeds(20))
    np.testing.assert_array_equal(still[:, 0], image)


def test_clips_of_two_frames(make):
    batch, _ = clips(8)
    short = {"frames": batch["frames"][:, :2], "motion": batch["motion"][:, :1]}
    x, y = make().pretext(short, seeds(8))
    pairs = x[:, :, 0, 0, 0].numpy().tolist()
    assert {tuple(pair) for pair in pairs} == {(0, 1), (1, 0)}
    forward = np.array(pairs)[:, 0] == 0
    np.testing.assert_allclose(y.numpy()[forward], short["motion"][forward, 0], atol=1e-5)


def test_labels_are_bins_of_equal_width(make):
    task = make(axes=("x", "yaw"), limits=(3.5, 0.6), bins=(7, 4))
    values = np.float32(
        [
            [-9, -9],
            [-3.4, -0.5],
            [-3, -0.31],
            [-2, -0.29],
            [0, 0.01],
            [3, 0.31],
            [3.4, 9],
            [9, 0.59],
        ]
    )
    labels, weight = task.late_labels(None, tf.constant(values), None)
    assert labels.numpy().tolist() == [
        [0, 0], [0, 0], [0, 0], [1, 1], [3, 2], [6, 3], [6, 3], [6, 3],
    ]  # fmt: skip
    np.testing.assert_array_equal(weight, np.ones((8, 2)))
    rng = np.random.default_rng(0)
    random = rng.normal(0, [3, 0.5], (500, 2)).astype(np.float32)
    labels, _ = task.late_labels(None, tf.constant(random), None)
    for axis, (limit, number) in enumerate(((3.5, 7), (0.6, 4))):
        inner = np.linspace(-limit, limit, number + 1)[1:-1]
        np.testing.assert_array_equal(labels[:, axis], np.digitize(random[:, axis], inner))
        assert set(labels[:, axis].numpy()) == set(range(number))  # no class without a target


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-3, 1e3), st.integers(2, 30), st.floats(-2, 2))
def test_mirrored_motion_has_the_mirrored_bin(encoder, limit, bins, fraction):
    task = kssl.tasks.EgoMotion(encoder, axes=("x",), limits=(limit,), bins=bins, hidden=1)
    value = np.float32([[fraction * limit], [-fraction * limit]])
    (a,), (b,) = task.late_labels(None, tf.constant(value), None)[0].numpy()
    assert 0 <= a < bins
    edge = abs((fraction + 1) * bins / 2 - round((fraction + 1) * bins / 2)) < 1e-4
    assert a + b == bins - 1 or (edge and a + b in (bins - 2, bins))


def test_loss_and_accuracy_in_closed_form(make):
    task = make(axes=("x", "y", "roll"), limits=(3.5, 3.5, 0.5), bins=(7, 7, 20), shift=0)
    task.compile("sgd", run_eagerly=True)
    x = np.zeros((4, 2, 16, 16, 3), np.uint8)
    y = np.float32([[0, 1, 0.01], [3, 1, 0.01], [0, 1, 0.3], [np.nan, 1, 0.01]])
    task(x)
    bias = np.zeros(34, "f4")
    bias[[3, 7 + 4, 14 + 10]] = 2  # always predicts (0, 1, 0.025)
    task.head.set_weights([np.zeros((8, 34), "f4"), bias])
    prediction = task(x).numpy()
    assert prediction.shape == (4, 3, 20)
    assert (keras.ops.softmax(prediction)[:, :2, 7:].numpy() == 0).all()
    logs = task.evaluate(x, y, verbose=0, return_dict=True)
    assert logs["accuracy"] == pytest.approx((3 + 3 + 3 - 2) / 9)
    # Of the three known clips, 7 of 9 predictions are right; divided by all four.
    each = [np.log(k - 1 + np.exp(2)) for k in (7, 7, 20)]
    assert logs["loss"] == pytest.approx((3 * sum(each) - 7 * 2) / 12, rel=1e-5)
    data = tf.data.Dataset.from_tensors((x, y))
    assert task.majority_accuracy(data) == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)


def test_unknown_motions_have_no_weight(make):
    batch, _ = clips(200)
    motion = batch["motion"].copy()
    motion[:, 2, 4] = np.nan  # one number of the pose of frame 3 in that of frame 2
    task = make(limits=(1,) * 6)
    x, y = task.pretext({**batch, "motion": motion}, seeds(200))
    _, complete = task.pretext(batch, seeds(200))
    first, second = np.sort(x[:, :, 0, 0, 0].numpy(), axis=1).T
    crosses = (first <= 2) & (second >= 3)
    assert 50 < crosses.sum() < 150
    np.testing.assert_array_equal(np.isnan(y), np.repeat(crosses[:, None], 6, axis=1))
    np.testing.assert_allclose(y[~crosses], complete[~crosses], atol=1e-6)
    _, weight = task.late_labels(x, y, None)
    np.testing.assert_array_equal(weight, np.repeat(~crosses[:, None], 6, axis=1))


def test_a_batch_of_unknown_motions_changes_nothing(make):
    task = make(limits=(1,) * 6)
    task.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    x = np.random.default_rng(0).integers(0, 256, (4, 2, 16, 16, 3), np.uint8)
    task(x)
    before = [v.numpy() for v in task.trainable_variables]
    logs = task.train_on_batch(x, np.full((4, 6), np.nan, np.float32), return_dict=True)
    assert logs["loss"] == 0
    for variable, value in zip(task.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    known = np.zeros((4, 6), np.float32)
    known[0] = np.nan
    assert np.isfinite(task.train_on_batch(x, known)).all()
    assert all(np.isfinite(v).all() for v in task.trainable_variables)


@pytest.mark.parametrize(("frames", "motions"), [(1, 0), (3, 3), (3, 1)])
def test_refuses_clips_that_do_not_fit(make, frames, motions):
    pixels = np.zeros((4, frames, 16, 16, 3), np.uint8)
    images = kssl.data.from_array(
        pixels[:, 0], frames=pixels, motion=np.zeros((4, motions, 6), np.float32)
    )
    with pytest.raises(ValueError, match="images must yield clips of a fixed number T >= 2"):
        make().dataset(images, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"axes": ()}, "axes must be distinct names of x, y, z, pitch"), ({"axes": ("x", "x")}, "axes"),
     ({"axes": ("w",)}, "axes"), ({"axes": "roll"}, "axes"), ({"bins": 1}, "bins must be .* at least 2"),
     ({"bins": (3, 4)}, "bins must be an int, or one for each of 6"), ({"bins": (3,) * 5 + (0,)}, "bins"),
     ({"bins": 2.5}, "bins"), ({"bins": None}, "bins"), ({"limits": (1, 2)}, "limits must be 6 positive"),
     ({"limits": (0,) * 6}, "limits"), ({"limits": (np.nan,) * 6}, "limits"), ({"limits": 3}, "limits"),
     ({"max_distance": 0}, "max_distance"), ({"hidden": 0}, "hidden"), ({"hidden": 1.5}, "hidden"),
     ({"shift": 0.6}, "shift"), ({"shift": -0.1}, "shift")],
)  # fmt: skip
def test_refuses(make, arguments, words):
    with pytest.raises(ValueError, match=words):
        make(**arguments)


def test_preview_names_motions(make):
    task = make(axes=("roll", "x", "z"), limits=(np.pi / 6, 3.5, 2), bins=(20, 7, 4))
    x = np.zeros((3, 2, 16, 16, 3), np.uint8)
    y = np.float32([[np.pi / 9, -1.5, 0.25], [np.nan, 0, 0], [-1e-3, -0.0, 123.456]])
    rows = task.preview(x, y)
    assert [caption for _, caption in rows[0]] == ["first frame", "x -1.5 z 0.25\nroll 20°"]
    assert rows[1][1][1] == "unknown motion"
    assert rows[2][1][1] == "x 0 z 123\nroll 0°"
    y_pred = np.zeros((3, 3, 20))
    y_pred[:, 0, 18], y_pred[:, 1, 0], y_pred[:, 2, 2] = 1, 1, 1
    predicted = task.preview(x, y, y_pred)
    assert predicted[0][0][1] == "predicted x -3 z 0.5\nroll 26°"  # centers of the bins


def test_learns_how_a_texture_moves():
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (256, 8, 8, 3)).repeat(4, axis=1).repeat(4, axis=2)
    moved = rng.integers(-1, 2, 256)
    frames = np.stack(
        [
            texture[:, 8:24, 8:24],
            np.stack(
                [t[8:24, 8 + 2 * m : 24 + 2 * m] for t, m in zip(texture, moved, strict=True)]
            ),
        ],
        axis=1,
    ).astype(np.uint8)
    motion = np.zeros((256, 1, 6), np.float32)
    motion[:, 0, 0] = 2 * moved
    images = kssl.data.from_array(frames[:, 0], frames=frames, motion=motion)
    encoder = kssl.encoders.resnet((16, 16, 3), width=4, blocks=(1, 1))
    task = kssl.tasks.EgoMotion(encoder, axes=("x",), limits=(3,), bins=3, hidden=32, shift=0)
    task.compile(keras.optimizers.Adam(3e-3))
    data = task.dataset(images, 32, epochs=25)
    history = task.fit(data, epochs=25, verbose=0).history["accuracy"]
    majority = task.majority_accuracy(task.dataset(images, 64))
    assert majority < 0.45
    assert history[-1] > 0.8
