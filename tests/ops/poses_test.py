"""Rotations and relative poses, versus SciPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from keras_ssl.ops import poses

# Of every size: nearly none, common ones, and up to half a turn.
ANGLES = [0, 1e-300, 1e-12, 1e-9, 2e-8, 1e-5, 0.1, 1, 2, 3, np.pi - 1e-6, np.pi - 1e-9]
AXES = np.array(
    [[1, 0, 0], [0, -1, 0], [0, 0, 1], [1, 2, -3], [-0.1, 5, 0.2], [3, 1e-9, -1], [-1, -1, -1]]
)
VECTORS = np.array([a * axis / np.linalg.norm(axis) for a in ANGLES for axis in AXES])
# Of hypothesis: motions of up to 100 m and half a turn.
MOTIONS = st.tuples(*[st.floats(-100, 100)] * 3, *[st.floats(-1.8, 1.8)] * 3).map(np.array)


def as_matrix(motion):
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.from_rotvec(motion[3:]).as_matrix(), motion[:3]
    return pose


def test_rotation_matrices_and_vectors():
    matrices = Rotation.from_rotvec(VECTORS).as_matrix()
    np.testing.assert_allclose(poses.rotation_matrix(VECTORS), matrices, rtol=0, atol=1e-14)
    found = poses.rotation_vector(matrices)
    np.testing.assert_allclose(found, Rotation.from_matrix(matrices).as_rotvec(), atol=1e-12)
    np.testing.assert_allclose(found, VECTORS, rtol=1e-7, atol=1e-12)


def test_half_turns_have_either_axis():
    vectors = np.pi * AXES / np.linalg.norm(AXES, axis=1, keepdims=True)
    found = poses.rotation_vector(poses.rotation_matrix(vectors)).numpy()
    sign = np.sign(np.sum(found * vectors, axis=1, keepdims=True))
    np.testing.assert_allclose(sign * found, vectors, atol=1e-7)


def test_quaternions_of_any_length():
    quaternions = np.random.default_rng(0).normal(size=(50, 4))
    expected = Rotation.from_quat(quaternions).as_matrix()  # x, y, z, w
    np.testing.assert_allclose(poses.quaternion_matrix(quaternions), expected, atol=1e-14)
    assert np.isnan(poses.quaternion_matrix([0.0, 0.0, 0.0, 0.0])).all()


def test_relative_pose_moves_points_from_the_second_camera_to_the_first():
    rng = np.random.default_rng(1)
    first, second = (
        np.concatenate([Rotation.random(20, rng=rng).as_matrix(), rng.normal(size=(20, 3, 1))], -1)
        for _ in range(2)
    )
    found = poses.relative(first, second).numpy()
    points = rng.normal(size=(20, 3))
    world = np.einsum("nij,nj->ni", second[..., :3], points) + second[..., 3]
    expected = np.einsum("nji,nj->ni", first[..., :3], world - first[..., 3])
    moved = Rotation.from_rotvec(found[:, 3:]).apply(points) + found[:, :3]
    np.testing.assert_allclose(moved, expected, atol=1e-13)


@settings(max_examples=20, deadline=None)
@given(MOTIONS, MOTIONS, MOTIONS)
def test_motions_are_a_group(a, b, c):
    np.testing.assert_allclose(
        as_matrix(poses.compose(a, b).numpy()), as_matrix(a) @ as_matrix(b), atol=1e-10
    )
    np.testing.assert_allclose(
        as_matrix(poses.inverse(a).numpy()), np.linalg.inv(as_matrix(a)), atol=1e-10
    )
    left, right = poses.compose(poses.compose(a, b), c), poses.compose(a, poses.compose(b, c))
    np.testing.assert_allclose(as_matrix(left.numpy()), as_matrix(right.numpy()), atol=1e-10)
    np.testing.assert_allclose(poses.compose(a, poses.inverse(a)), np.zeros(6), atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(MOTIONS, MOTIONS, MOTIONS)
def test_relative_pose_does_not_depend_on_the_world(world, a, b):
    found = poses.relative(as_matrix(a)[:3], as_matrix(b)[:3])
    moved = [(as_matrix(world) @ as_matrix(pose))[:3] for pose in (a, b)]
    np.testing.assert_allclose(
        as_matrix(poses.relative(*moved).numpy()), as_matrix(found.numpy()), atol=1e-9
    )


@pytest.mark.parametrize("unknown", range(6))
def test_unknown_motions_remain_unknown(unknown):
    motion = np.arange(1, 7) / 10
    motion[unknown] = np.nan
    for found in (poses.compose(motion, np.ones(6)), poses.compose(np.ones(6), motion)):
        assert np.isnan(found).any()
    assert np.isnan(poses.inverse(motion)).any()
    if unknown >= 3:  # of the rotation: the translation depends on it, too
        assert np.isnan(poses.compose(motion, np.ones(6))).all()
