import cv2
import numpy as np
import pytest

import keras_ssl as kssl
from keras_ssl.data.renderer import render
from keras_ssl.data.renderer.world import draw

SIZE = 32
PLANE = ("ground", "wall", "box")


@pytest.fixture(scope="module")
def clips():
    """200 scenes with two frames: a list of dicts of arrays."""
    return list(kssl.data.scenes(200, SIZE, frames=2, seed=1).as_numpy_iterator())


def wide(mask):
    return cv2.dilate(np.uint8(mask), np.ones((3, 3))) > 0


def grid():
    return np.mgrid[:SIZE, :SIZE].astype(np.float32)[::-1]


def project_back(row):
    """Points (H, W, 3) in the camera's axes, in meters."""
    fx, fy, cx, cy = row["intrinsics"]
    (x, y), depth = grid(), row["depth"][..., 0]
    return np.stack([(x - cx) / fx * depth, (y - cy) / fy * depth, depth], axis=-1)


def test_normals_are_the_cross_product_of_the_derivatives_of_the_points(clips):
    names, angles = list(render.CLASSES), {True: [], False: []}
    for row in clips:
        points = project_back(row).astype(np.float64)
        across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
        normal = np.cross(down, across)
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        smooth = ~wide(row["contours"][..., 0])[1:-1, 1:-1] & np.isfinite(normal).all(-1)
        cosine = np.clip((normal * row["normals"][1:-1, 1:-1]).sum(-1), -1, 1)
        plane = np.isin(row["classes"][1:-1, 1:-1, 0], [names.index(name) for name in PLANE])
        for is_plane, found in angles.items():
            found.extend(np.degrees(np.arccos(cosine[smooth & (plane == is_plane)])))
    assert max(angles[True]) < 0.2
    assert np.median(angles[False]) < 1
    assert np.percentile(angles[False], 95) < 12


def test_next_frame_shifted_by_the_flow_is_this_frame(clips):
    errors, unmoved = [], []
    for row in clips:
        x, y = grid() + row["flow"].transpose(2, 0, 1)
        now, after = row["frames"].astype(np.float32)
        shifted = cv2.remap(after, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        seen = (row["visible"][..., 0] > 0) & ~wide(row["contours"][..., 0])
        errors.append(np.abs(shifted - now).mean(-1)[seen].mean())
        unmoved.append(np.abs(after - now).mean(-1)[seen].mean())
        np.testing.assert_array_equal(row["image"], row["frames"][0])
    assert np.mean(errors) < 3
    assert np.mean(errors) < 0.5 * np.mean(unmoved)


def test_flow_where_nothing_moves_is_the_reprojection_of_the_depth(clips):
    for row in clips:
        rotation, _ = cv2.Rodrigues(row["motion"][0, 3:].astype(np.float64))
        fx, fy, cx, cy = row["intrinsics"]
        points = (project_back(row) - row["motion"][0, :3]) @ rotation  # R^T (X - t)
        x, y = fx * points[..., 0] / points[..., 2] + cx, fy * points[..., 1] / points[..., 2] + cy
        still = (row["moving"][..., 0] == 0) & np.isfinite(row["depth"][..., 0])
        still &= points[..., 2] > 0.5
        expected = np.stack([x, y], -1) - grid().transpose(1, 2, 0)
        np.testing.assert_allclose(row["flow"][still], expected[still], atol=0.02)
    assert np.mean([row["moving"].mean() for row in clips]) > 0.01


def test_shapes_that_move_have_another_flow_than_the_camera_alone_gives():
    here, there = (
        next(kssl.data.scenes(1, SIZE, frames=2, moving=m, seed=4).as_numpy_iterator())
        for m in (0.0, 1.0)
    )
    assert here["moving"].max() == 0
    assert there["moving"].max() == 1
    np.testing.assert_array_equal(there["moving"] > 0, there["instances"] > 0)


def test_visible_points_are_found_in_the_next_frame_and_others_are_not():
    seen, hidden = [], []
    for seed in range(40):
        world = draw(np.random.default_rng(seed), 2, (4, 10), 1.0)
        world = world._replace(velocity=8 * world.velocity)  # far enough to cover and uncover
        _, now, *_ = render.frame(world, 0, SIZE)
        _, after, *_ = render.frame(world, 1, SIZE)
        found = render.flow(world, 0, now)
        to = np.rint(grid() + found["flow"].transpose(2, 0, 1)).reshape(2, -1)
        inside = ((to >= 0) & (to < SIZE)).all(0)
        column, row = np.clip(np.nan_to_num(to), 0, SIZE - 1).astype(int)
        place = row * SIZE + column
        visible = found["visible"].ravel() > 0
        assert not (visible & ~inside).any()
        # Rounding to a pixel may cross an edge.
        clear = inside & ~wide(render._edges(after.surface.reshape(SIZE, SIZE))).ravel()[place]
        same = now.surface == after.surface[place]
        seen.extend(same[visible & clear])
        hidden.extend(same[~visible & clear])
    assert np.mean(seen) > 0.9999
    assert len(hidden) > 50
    assert np.mean(hidden) < 0.3


def test_contours_lie_where_the_surface_or_its_normal_jumps(clips):
    for row in clips:
        contour = row["contours"][..., 0] > 0
        surface = row["instances"][..., 0] * 100 + row["classes"][..., 0]
        normal, depth = row["normals"], np.nan_to_num(row["depth"][..., 0], nan=np.inf)
        jumps = np.zeros_like(contour)
        for near, far in render._neighbors(2):
            with np.errstate(invalid="ignore"):
                turned = (normal[near] * normal[far]).sum(-1) < np.cos(np.radians(3))
                behind = depth[far] > 1.05 * depth[near]  # of two walls
            differs = surface[near] != surface[far]
            jumps[near] |= differs | turned | behind
            # One of two neighbors on different surfaces, the nearer one, is on the contour.
            nearer = np.where(depth[near] <= depth[far], contour[near], contour[far])
            assert nearer[differs].all()
        assert jumps[contour].all()


def mirrored(world):
    flip = np.diag(np.float32([-1, 1, 1]))
    shapes, textures = world.shapes, world.textures
    return world._replace(
        shapes=shapes._replace(center=shapes.center @ flip, axes=flip @ shapes.axes @ flip),
        textures=textures._replace(axes=textures.axes @ flip),
        velocity=world.velocity @ flip, spin=-world.spin, lights=world.lights @ flip,
        positions=world.positions @ flip, orientations=flip @ world.orientations @ flip,
    )  # fmt: skip


def test_mirrored_scene_has_mirrored_truth_with_signs_changed():
    for seed in range(10):
        world = draw(np.random.default_rng(seed), 2, (4, 10), 0.5)
        found = []
        for one in (world, mirrored(world)):
            color, hits, normal, code = render.frame(one, 0, SIZE)
            columns = render.geometry(one, 0, hits, normal, code) | render.flow(one, 0, hits)
            color[:, render._edges(code)] = 0  # averages over rays that are not mirrored
            found.append(
                {"color": color.transpose(1, 2, 0), **columns, "motion": render.motion(one)}
            )
        one, other = found
        flipped = {k: v if k == "motion" else v[:, ::-1].copy() for k, v in other.items()}
        flipped["normals"] *= [-1, 1, 1]
        flipped["flow"] *= [-1, 1]
        flipped["motion"] *= [-1, 1, 1, 1, -1, -1]
        for name, column in one.items():
            # Rays along an edge may fall to either side.
            close = np.isclose(column, flipped[name], atol=5e-3, equal_nan=True)
            assert close.mean() > 0.99, (seed, name)


def test_motion_is_the_pose_of_the_next_camera():
    world = draw(np.random.default_rng(5), 5, (1, 2), 0.0)
    position, orientation = (
        world.positions[0].astype(np.float64),
        world.orientations[0].astype(np.float64),
    )
    for step in render.motion(world):
        position = position + orientation @ step[:3]
        orientation = orientation @ cv2.Rodrigues(step[3:].astype(np.float64))[0]
    np.testing.assert_allclose(position, world.positions[-1], atol=1e-5)
    np.testing.assert_allclose(orientation, world.orientations[-1], atol=1e-5)
    assert np.abs(render.motion(world)).min(0).max() > 0.001


def test_a_scene_follows_from_seed_and_number():
    few, many = kssl.data.scenes(3, 16, seed=7), kssl.data.scenes(50, 16, seed=7)
    other = kssl.data.scenes(3, 16, seed=8)
    third = [kssl.data.to_arrays(kssl.data.subset(d, [2])) for d in (few, many, other)]
    for name, column in third[0].items():
        np.testing.assert_array_equal(column, third[1][name])
    assert (third[0]["image"] != third[2]["image"]).mean() > 0.5
    images = kssl.data.to_arrays(few)["image"]
    assert (images[0] != images[1]).mean() > 0.5


def test_more_objects_fill_more_of_the_image():
    few, many = (
        kssl.data.to_arrays(kssl.data.scenes(20, 16, objects=o))["instances"]
        for o in ((1, 1), (12, 12))
    )
    assert (many > 0).mean() > 2 * (few > 0).mean()
    assert few.max() == 1


def test_exposure_and_noise_change_pixels_and_no_truth():
    plain, noisy = (
        kssl.data.to_arrays(kssl.data.scenes(8, 16, frames=2, exposure=e, noise=n))
        for e, n in ((0, 0), (0.5, 5))
    )
    for name in set(plain) - {"image", "frames"}:
        np.testing.assert_array_equal(plain[name], noisy[name])
    change = noisy["image"].astype(float) - plain["image"]
    assert change.mean((1, 2, 3)).std() > 5  # the exposure of a scene
    noise = np.diff(noisy["frames"].astype(float), axis=1) - np.diff(
        plain["frames"].astype(float), axis=1
    )
    assert 3 < noise.std() < 15  # a new one in each frame


def test_all_columns_survive_tfrecord(tmp_path):
    images = kssl.data.scenes(4, 16, frames=3)
    kssl.data.to_tfrecord(images, tmp_path, verbose=0)
    copy, images = (
        kssl.data.to_arrays(kssl.data.from_tfrecord(tmp_path)),
        kssl.data.to_arrays(images),
    )
    assert set(copy) == set(images) >= {"depth", "flow", "motion", "frames", "moving"}
    for name, column in images.items():
        np.testing.assert_array_equal(copy[name], column)
        assert copy[name].dtype == column.dtype


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"number": 0}, "number"),
        ({"size": 1.5}, "size"),
        ({"frames": 0}, "frames"),
        ({"seed": -1}, "seed"),
        ({"objects": 5}, "objects must be two numbers such as"),
        ({"objects": (5, 2)}, r"got \(5, 2\)"),
        ({"moving": 1.5}, "moving"),
        ({"exposure": -1}, "exposure"),
        ({"noise": float("nan")}, "noise"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        kssl.data.scenes(**{"number": 2, "size": 16, **arguments})


def test_every_normal_faces_the_camera_and_is_unknown_in_the_sky_only(clips):
    for row in clips:
        normal, points = row["normals"], project_back(row)
        sky = row["classes"][..., 0] == 0
        np.testing.assert_array_equal(np.isnan(normal).all(-1), sky)
        np.testing.assert_array_equal(np.isnan(row["depth"][..., 0]), sky)
        np.testing.assert_allclose(np.linalg.norm(normal[~sky], axis=-1), 1, atol=1e-4)
        assert ((normal * points).sum(-1)[~sky] < 1e-3 * row["depth"][~sky][:, 0]).all()


def test_a_scene_without_shapes_and_images_of_a_pixel():
    empty = kssl.data.to_arrays(kssl.data.scenes(30, 8, frames=2, objects=(0, 0)))
    assert set(np.unique(empty["classes"])) <= {0, 1, 2}
    assert empty["instances"].max() == 0
    tiny = kssl.data.to_arrays(kssl.data.scenes(5, 1, frames=2))
    assert np.isfinite(tiny["flow"]).all()


def test_all_kinds_are_placed_alike_and_stay_apart_for_a_whole_clip():
    kinds = np.zeros(4)
    for seed in range(150):
        world = draw(np.random.default_rng(seed), 12, (12, 20), 0.5)
        kinds += np.bincount(world.shapes.kind[~world.wall], minlength=4)
        radius = np.linalg.norm(world.shapes.scale, axis=1)
        for t, time in enumerate(world.times):
            center = world.shapes_at(time).center
            near = np.linalg.norm(center - world.positions[t], axis=1)
            assert (near > radius)[~world.wall].all()
            apart = np.linalg.norm(center[:, None] - center, axis=-1) - radius - radius[:, None]
            shapes = np.ix_(~world.wall, ~world.wall)
            assert (apart[shapes][~np.eye((~world.wall).sum(), dtype=bool)] > 0).all()
            assert world.positions[t, 1] <= -0.5
    assert (kinds / kinds.sum() > 0.2).all()


def test_dense_columns_of_a_clip_belong_to_the_frame_in_the_middle():
    clips = list(kssl.data.scenes(20, SIZE, frames=4, moving=0.0, seed=3).as_numpy_iterator())
    for row in clips:
        np.testing.assert_array_equal(row["image"], row["frames"][1])
        rotation, _ = cv2.Rodrigues(row["motion"][1, 3:].astype(np.float64))
        points = (project_back(row) - row["motion"][1, :3]) @ rotation
        fx, _, cx, _ = row["intrinsics"]
        x = fx * points[..., 0] / points[..., 2] + cx - grid()[0]
        seen = np.isfinite(x) & (points[..., 2] > 0.5)
        np.testing.assert_allclose(row["flow"][..., 0][seen], x[seen], atol=0.02)
