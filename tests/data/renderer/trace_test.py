import numpy as np
import pytest

from keras_ssl.data.renderer import trace
from keras_ssl.data.renderer.world import rotation

INSIDE = {
    trace.SPHERE: lambda x, y, z: x**2 + y**2 + z**2 < 1,
    trace.CYLINDER: lambda x, y, z: (x**2 + z**2 < 1) & (abs(y) < 1),
    trace.CONE: lambda x, y, z: (x**2 + z**2 < ((1 - y) / 2) ** 2) & (abs(y) < 1),
    trace.BOX: lambda x, y, z: (abs(x) < 1) & (abs(y) < 1) & (abs(z) < 1),
}


def shapes_of(kinds, rng, center=(0, -2, 5)):
    number = len(kinds)
    axes = rotation(rng.uniform(0, 6, number), 0) @ rotation(rng.uniform(0, 6, number), 1)
    return trace.Shapes(
        np.sort(kinds),
        np.float32(center + rng.uniform(-1.5, 1.5, (number, 3))),
        axes @ rotation(rng.uniform(0, 6, number), 2),
        np.float32(rng.uniform(0.3, 1.2, (number, 3))),
    )


def march(shapes, origin, directions, steps):
    """The first step inside each shape (K, P), by brute force; inf where there is none."""
    points = origin[:, None, None] + directions[..., None] * steps  # (3, P, S)
    found = []
    for kind, center, axes, scale in zip(*shapes, strict=True):
        unit = np.einsum("ji,jps->ips", axes, points - center[:, None, None])
        inside = INSIDE[kind](*(unit / scale[:, None, None]))
        found.append(np.where(inside.any(-1), steps[inside.argmax(-1)], np.inf))
    return np.array(found)


@pytest.mark.parametrize("kind", INSIDE)
def test_rays_hit_a_shape_where_marching_along_them_enters_it(kind):
    rng = np.random.default_rng(kind)
    shapes = shapes_of([kind] * 3, rng)
    origin = np.float32([0.3, -1.5, 0])
    directions = np.float32([[*rng.uniform(-0.4, 0.4, 2), 1] for _ in range(400)]).T
    steps = np.arange(1, 9, 0.004)
    expected = march(shapes, origin, directions, steps)
    hits = trace.first_hits(shapes, origin, directions)
    on_shape = (hits.surface >= 0) & (hits.surface < 3)
    assert 40 < on_shape.sum() < 380
    first = expected.min(0)
    # Marching misses what it touches for less than a step.
    assert (on_shape == np.isfinite(first)).mean() > 0.985
    both = on_shape & np.isfinite(first)
    assert (hits.surface == expected.argmin(0))[both].mean() > 0.98
    np.testing.assert_allclose(hits.distance[both], first[both], atol=0.0045)


def test_normals_are_those_of_the_ellipsoid_and_point_outward():
    rng = np.random.default_rng(0)
    shapes = shapes_of([trace.SPHERE], rng)
    shapes = shapes._replace(scale=np.float32([[0.5, 0.9, 1.4]]))
    origin, directions = (
        np.float32([0, -2, 0]),
        np.float32([*rng.uniform(-0.2, 0.2, (2, 300)), [1] * 300]),
    )
    hits = trace.first_hits(shapes, origin, directions)
    seen = hits.surface == 0
    points = origin[:, None] + directions[:, seen] * hits.distance[seen]
    normal, part, place, _ = trace.describe(shapes, points, hits.surface[seen])
    matrix = shapes.axes[0] @ np.diag(shapes.scale[0] ** -2.0) @ shapes.axes[0].T
    gradient = matrix @ (points - shapes.center[0][:, None])
    np.testing.assert_allclose(normal, gradient / np.linalg.norm(gradient, axis=0), atol=1e-3)
    assert (part == 0).all()
    np.testing.assert_allclose(
        shapes.axes[0] @ place + shapes.center[0][:, None], points, atol=1e-4
    )


def test_ends_of_a_cylinder_and_faces_of_a_box_are_parts_of_their_own():
    upright = np.eye(3, dtype=np.float32)[None]
    for kind, expected in ((trace.CYLINDER, [0, 1, 2]), (trace.BOX, [0, 1, 2, 3, 4, 5])):
        shapes = trace.Shapes(
            np.array([kind]), np.zeros((1, 3), np.float32), upright, np.float32([[1, 2, 3]])
        )
        points = np.float32([[-1, 0, 0], [1, 0, 0], [0, -2, 0], [0, 2, 0], [0, 0, -3], [0, 0, 3]]).T
        normal, part, *_ = trace.describe(shapes, points, np.zeros(6, int))
        np.testing.assert_allclose(normal, points / np.abs(points).max(0), atol=1e-6)
        assert sorted(set(part)) == expected


def test_a_point_is_in_shadow_if_a_ray_to_the_light_hits_another_shape():
    rng = np.random.default_rng(3)
    shapes = shapes_of(
        [trace.SPHERE, trace.CYLINDER, trace.CONE, trace.BOX], rng, center=(0, -3, 5)
    )
    points = np.float32([rng.uniform(-3, 3, 500), [-1e-4] * 500, rng.uniform(2, 8, 500)])
    light = np.float32([0.1, -0.9, -0.2])
    dark = trace.in_shadow(shapes, points, np.full(500, 4), light)
    hit = [trace.first_hits(shapes, point, light[:, None]).surface[0] >= 0 for point in points.T]
    assert 25 < dark.sum() < 475
    np.testing.assert_array_equal(dark, hit)
    without = [trace.in_shadow(shapes, points, np.full(500, k), light) for k in range(4)]
    assert all((others <= dark).all() for others in without)  # a shape casts none on itself
    assert sum(others.sum() < dark.sum() for others in without) >= 3


def test_ground_and_sky():
    shapes = shapes_of([trace.BOX], np.random.default_rng(0), center=(0, -40, 0))
    directions = np.float32([[0, 0, 0], [0.5, -0.5, 0.01], [1, 1, 1]])
    hits = trace.first_hits(shapes, np.float32([0, -2, 0]), directions)
    assert hits.surface.tolist() == [1, -1, -1]  # the last one would hit the ground too far away
    np.testing.assert_allclose(hits.distance, [4, np.inf, np.inf])
