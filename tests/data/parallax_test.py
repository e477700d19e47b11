import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_ssl as kssl
from keras_ssl.data import parallax
from keras_ssl.data.camera_motion import camera_motion, estimated_flow
from keras_ssl.data.relative_depth import depth_percentile, percentile

HEIGHT, WIDTH = 24, 32
CAMERA = np.array([30.0, 28.0, 14.0, 13.0])  # fx, fy, cx, cy: nothing is symmetric


def street():
    """Depth of a ground, a wall on the left and a wall behind, and a box in front of it; no two are equal."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    x, y = (x - CAMERA[2]) / CAMERA[0], (y - CAMERA[3]) / CAMERA[1]
    with np.errstate(divide="ignore"):
        depth = np.minimum(np.where(y > 0, 1.5 / y, 12), np.where(x < 0, -3 / x, 12))
    depth = np.minimum(depth, 12)
    depth[10:18, 20:27] = 2.5
    return depth * np.random.default_rng(0).uniform(0.99, 1.01, depth.shape)


def moved(depth, motion):
    """The flow of points at rest, one by one: X = R X' + T, so X' = R^T (X - T)."""
    flow = np.zeros((*depth.shape, 2))
    turn = cv2.Rodrigues(np.float64(motion[3:]))[0]
    fx, fy, cx, cy = CAMERA
    for row, column in np.ndindex(depth.shape):
        z = depth[row, column]
        ray = np.array([(column - cx) / fx, (row - cy) / fy, 1.0])
        if np.isinf(z):
            there = turn.T @ ray
        else:
            there = turn.T @ (z * ray - motion[:3])
        flow[row, column] = (
            fx * there[0] / there[2] + cx - column,
            fy * there[1] / there[2] + cy - row,
        )
    return flow


SMALL = st.floats(-0.1, 0.1)


@given(st.tuples(*[SMALL] * 6))
@settings(max_examples=12, deadline=None)
def test_depth_of_exact_flow_is_the_truth_away_from_the_focus_of_expansion(motion):
    motion = np.array(motion)
    length = np.linalg.norm(motion[:3])
    if length < 1e-3:
        return
    depth = street()
    found = parallax.parallax(moved(depth, motion), motion, CAMERA)
    away = found.reach > 1
    np.testing.assert_allclose(length / found.inverse_depth[away], depth[away], rtol=1e-5)
    assert found.off_line[away].max() < 1e-6
    # The brief form of the same in three dimensions: p' x (Z a - b) = 0.
    turn = cv2.Rodrigues(motion[3:])[0]
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    there = np.stack([x, y], -1) + moved(depth, motion)
    a = (
        np.dstack([(x - CAMERA[2]) / CAMERA[0], (y - CAMERA[3]) / CAMERA[1], np.ones_like(x)])
        @ turn
    )
    p = np.dstack([(there - CAMERA[2:]) / CAMERA[:2], np.ones_like(x)])
    pa, pb = np.cross(p, a), np.cross(p, motion[:3] @ turn)
    np.testing.assert_allclose(((pb * pa).sum(-1) / (pa**2).sum(-1))[away], depth[away], rtol=1e-5)


def test_slow_motion_follows_the_equations_of_the_motion_field():
    """Longuet-Higgins & Prazdny: translation over depth, plus a rotation that does not depend on depth."""
    rng, camera = np.random.default_rng(0), (30.0, 30.0, 14.0, 13.0)
    depth, (tx, ty, tz), (wx, wy, wz) = (
        street(),
        1e-6 * rng.normal(size=3),
        1e-6 * rng.normal(size=3),
    )
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    x, y, f = x - 14.0, y - 13.0, 30.0
    u = (-f * tx + x * tz) / depth + x * y / f * wx - (f + x**2 / f) * wy + y * wz
    v = (-f * ty + y * tz) / depth + (f + y**2 / f) * wx - x * y / f * wy - x * wz
    found = parallax.parallax(np.stack([u, v], -1), (tx, ty, tz, wx, wy, wz), camera)
    away = found.reach > 3
    assert away.mean() > 0.8
    length = np.linalg.norm([tx, ty, tz])
    np.testing.assert_allclose(length / found.inverse_depth[away], depth[away], rtol=1e-3)


def test_percentile_is_the_mean_rank_of_a_slow_loop():
    values = np.random.default_rng(0).integers(0, 9, (5, 7)).astype(np.float64)
    values[1, 2:4] = values[4, 6] = np.nan
    known = values[~np.isnan(values)]
    found = percentile(values)
    for index, value in np.ndenumerate(values):
        if np.isnan(value):
            assert np.isnan(found[index])
        else:
            rank = (known < value).sum() + ((known == value).sum() - 1) / 2
            assert found[index] == pytest.approx(rank / (len(known) - 1))
    assert percentile([3.0, np.nan]).tolist()[0] == 0.5
    assert np.isnan(percentile(np.full(3, np.nan))).all()
    assert percentile([2.0, 2.0, 2.0]).tolist() == [0.5] * 3
    assert percentile([-np.inf, 1.0, np.inf]).tolist() == [0, 0.5, 1]


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=30))
@settings(max_examples=30, deadline=None)
def test_percentile_depends_on_the_order_only(values):
    values = np.array(values, np.float64)
    expected = percentile(values)
    np.testing.assert_array_equal(percentile(np.exp(values / 20) * 3 - 1), expected)
    np.testing.assert_array_equal(percentile(values**3), expected)
    np.testing.assert_allclose(percentile(-values), 1 - expected, atol=1e-12)


WALK = np.array([0.08, 0.01, 0.05, 0.02, -0.03, 0.01])


@pytest.mark.parametrize("motion", [WALK, None])
def test_labels_are_the_percentile_of_the_true_depth(motion):
    """With the motion of the camera, and with its estimate from the flow."""
    depth = street()
    found = depth_percentile(moved(depth, WALK), CAMERA, motion)
    assert found.shape == (HEIGHT, WIDTH, 1)
    assert found.dtype == np.float32
    known = np.isfinite(found[..., 0])
    assert known.mean() > 0.9
    expected = percentile(np.where(known, depth, np.nan))
    np.testing.assert_allclose(found[..., 0], expected, atol=1e-6 if motion is not None else 0.02)
    assert found[14, 23, 0] < 0.2 < 0.6 < found[2, 20, 0]


def test_the_scale_of_the_world_does_not_count():
    depth, scaled = street(), WALK * [7, 7, 7, 1, 1, 1]
    first = depth_percentile(moved(depth, WALK), CAMERA, WALK)
    second = depth_percentile(moved(7 * depth, scaled), CAMERA, scaled)
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert np.isfinite(first).any()


def test_the_sky_is_the_farthest():
    depth = street()
    depth[:4] = np.inf
    found = depth_percentile(moved(depth, WALK), CAMERA, WALK)[..., 0]
    sky = found[:4][np.isfinite(found[:4])]
    assert len(np.unique(sky)) == 1
    assert sky[0] > np.nanmax(found[4:])


@pytest.mark.parametrize("motion", [WALK, None])
def test_moving_objects_are_unknown(motion):
    depth = street()
    flow = moved(depth, WALK)
    still = depth_percentile(flow, CAMERA, WALK)[..., 0]
    flow[10:18, 20:27] += (0.3, 2.0)  # across the epipolar lines
    found = depth_percentile(flow, CAMERA, motion)[..., 0]
    box = np.zeros(depth.shape, bool)
    box[10:18, 20:27] = True
    assert np.isnan(found[box]).all()
    assert np.isfinite(found[~box & np.isfinite(still)]).mean() > 0.95
    # What the flow puts behind the camera moves, too, though along the epipolar lines.
    toward = moved(np.where(box, -20.0, depth), WALK)
    assert np.isnan(depth_percentile(toward, CAMERA, WALK)[..., 0][box]).all()


def test_the_focus_of_expansion_is_unknown_with_noise():
    forward = np.array([0, 0, 0.5, 0, 0, 0])
    flow = moved(street(), forward)
    found = depth_percentile(flow, CAMERA, forward, noise=0.05)[..., 0]
    assert np.isnan(found[13, 14])
    unknown = np.argwhere(np.isnan(found))
    assert np.linalg.norm(unknown - [13, 14], axis=1).max() < 6  # a disk around it
    assert np.isfinite(found).mean() > 0.9


@pytest.mark.parametrize(
    "motion", [(0, 0, 0, 0, 0, 0), (0, 0, 0, 0.02, -0.05, 0.01)], ids=["still", "rotation"]
)
def test_frames_without_parallax_have_no_label(motion):
    rng, motion = np.random.default_rng(1), np.float64(motion)
    flow = moved(street(), motion)
    noisy = flow + 0.01 * rng.normal(size=flow.shape)
    for seen in (flow, noisy):
        for known in (motion, None, np.full(6, np.nan), [1e-5, 0, 0, *motion[3:]]):
            assert np.isnan(depth_percentile(seen, CAMERA, known)).all()
    assert np.isnan(camera_motion(noisy, CAMERA, 0.01)).all()
    assert np.isnan(depth_percentile(np.full_like(flow, np.nan), CAMERA)).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_camera_motion_is_found_despite_moving_objects_and_noise(sign):
    rng, motion = np.random.default_rng(2), sign * WALK
    flow = moved(street(), motion) + 0.005 * rng.normal(size=(HEIGHT, WIDTH, 2))
    flow[10:18, 16:27] += (1.5, 2.5)  # a ninth of the image moves
    flow[:3, :5] = np.nan
    found = camera_motion(flow, CAMERA, 0.005)
    direction = motion[:3] / np.linalg.norm(motion[:3])
    assert np.linalg.norm(found[:3]) == pytest.approx(1)
    assert np.degrees(np.arccos(found[:3] @ direction)) < 5
    assert np.degrees(np.linalg.norm(found[3:] - motion[3:])) < 0.2
    np.testing.assert_array_equal(found, camera_motion(flow, CAMERA, 0.005))


def test_rendered_scenes_have_the_labels_of_their_depth():
    """With flow and motion of the renderer, other conventions would not agree."""
    scenes = kssl.data.scenes(4, 32, frames=3, seed=5)
    for row in scenes.as_numpy_iterator():
        found = depth_percentile(row["flow"], row["intrinsics"], row["motion"][1])[..., 0]
        depth, moving = row["depth"][..., 0], row["moving"][..., 0] > 0
        known = np.isfinite(found) & np.isfinite(depth) & ~moving
        assert known.sum() > 0.9 * (np.isfinite(depth) & ~moving).sum()
        ranks = [v[known].argsort().argsort() for v in (found, depth)]
        assert np.corrcoef(*ranks)[0, 1] > 0.99


def texture(shift=(0, 0)):
    noise = np.random.default_rng(3).integers(0, 256, (60, 70, 3), np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    smooth = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX)
    return smooth[8 - shift[1] : 52 - shift[1], 8 - shift[0] : 62 - shift[0]]


def test_estimated_flow_is_that_of_a_shift_and_unknown_where_it_leaves_the_image():
    flow = estimated_flow(texture(), texture((3, -2)))
    assert flow.dtype == np.float32
    inner = flow[4:-4, 4:-4]
    assert np.isfinite(inner).mean() > 0.95
    np.testing.assert_allclose(np.nanmedian(inner, axis=(0, 1)), [3, -2], atol=0.1)
    assert np.isnan(flow[:, -2:]).all()
    assert np.isnan(flow[:1]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flow": np.zeros((4, 4))}, r"flow must have the shape \(H, W, 2\), got \(4, 4\)"),
        ({"intrinsics": (1, 2, 3)}, "intrinsics must be fx, fy, cx, cy"),
        ({"intrinsics": (0, 2, 3, 4)}, "positive focal lengths"),
        ({"intrinsics": (1, 2, np.nan, 4)}, "finite"),
        ({"motion": (1, 2, 3)}, "motion must be six numbers with a translation, got"),
        ({"noise": 0}, "noise must be a positive number of pixels, got 0"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    good = {"flow": np.zeros((4, 4, 2)), "intrinsics": CAMERA, "motion": WALK, "noise": 0.1}
    with pytest.raises(ValueError, match=message):
        depth_percentile(**{**good, **arguments})
    if "flow" in arguments or "intrinsics" in arguments:
        del good["motion"]
        with pytest.raises(ValueError, match=message):
            camera_motion(**{**good, **arguments})


def test_parallax_needs_a_translation_and_flow_needs_frames():
    with pytest.raises(ValueError, match="motion must be six numbers with a translation"):
        parallax.parallax(np.zeros((4, 4, 2)), (0, 0, 0, 0.1, 0, 0), CAMERA)
    frame = np.zeros((16, 16, 3), np.uint8)
    for other in (frame[:14], frame.astype(np.float32), frame[..., 0]):
        with pytest.raises(ValueError, match="first and second must be"):
            estimated_flow(frame, other)
    with pytest.raises(ValueError, match="at least 12x12 pixels"):
        estimated_flow(frame[:8, :8], frame[:8, :8])
