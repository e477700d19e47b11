"""k-means, whitening and the reassignment of empty clusters."""

import numpy as np
import pytest

from keras_ssl.solvers import clustering


def test_whitened_features_have_equal_variances():
    random = np.random.default_rng(0)
    features = random.normal(size=(500, 6)) * [1, 2, 3, 10, 20, 30] + 5
    mixed = features @ random.normal(size=(6, 6))
    whitened = clustering.whiten(mixed, 4)
    assert whitened.shape == (500, 4)
    np.testing.assert_allclose(np.linalg.norm(whitened, axis=1), 1, rtol=1e-5)
    covariance = whitened.T @ whitened / 500
    np.testing.assert_allclose(covariance, np.eye(4) / 4, atol=0.05)
    # With a separate reference, the queries do not change the whitening.
    alone = clustering.whiten(mixed[:1], 4, reference=mixed)
    np.testing.assert_allclose(alone, whitened[:1], atol=1e-5)


def test_constant_features_whiten_to_zeros():
    assert (clustering.whiten(np.full((10, 5), 3.0)) == 0).all()
    one = np.ones((10, 5)) * np.arange(10)[:, None]  # one direction only, the rest rounding errors
    assert clustering.whiten(one).shape == (10, 1)


def test_kmeans_finds_well_separated_clusters():
    random = np.random.default_rng(0)
    truth = random.integers(0, 4, 200)
    centers = np.array([[0, 0], [10, 0], [0, 10], [10, 10]])
    labels, centroids = clustering.kmeans(centers[truth] + random.normal(size=(200, 2)), 4, seed=1)
    pairs = set(zip(truth.tolist(), labels.tolist(), strict=True))
    assert len(pairs) == 4
    for cluster, label in pairs:
        np.testing.assert_allclose(centroids[label], centers[cluster], atol=0.6)


def test_kmeans_is_deterministic_given_the_seed():
    features = np.random.default_rng(0).normal(size=(100, 3))
    a, b, other = (clustering.kmeans(features, 10, seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != other).any()


def test_empty_clusters_get_half_of_another():
    random = np.random.default_rng(0)
    features = random.normal(size=(40, 3))
    labels = np.array([0] * 39 + [2])  # 1, 3 and 4 are empty, 0 is large
    centroids = np.stack([features[:39].mean(0), *[np.zeros(3)] * 4])
    filled, moved = clustering.fill_empty(features, labels, centroids)
    assert (np.bincount(filled, minlength=5) > 0).all()
    assert filled[39] == 2
    # The new centroid is a perturbed copy of the one whose members were divided.
    assert min(np.abs(moved[1] - moved[c]).max() for c in (0, 3, 4)) < 0.01
    assert (labels[:39] == 0).all()  # the arguments are unchanged


def test_equal_features_leave_clusters_empty():
    for number in range(2, 40):  # whose mean is rounded, up or down
        features = np.full((number, 2), 0.1)
        labels, _ = clustering.fill_empty(features, np.zeros(number, int), np.ones((3, 2)))
        assert (labels == 0).all()


def test_nearest_centroids():
    squared, indices = clustering.nearest(np.array([[1.0, 0], [5, 5]]), np.eye(2) * 4, 2)
    np.testing.assert_allclose(squared, [[9, 17], [26, 26]])
    assert indices[0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("clusters", "images", "message"),
    [
        (5, 1, "num_images must be at least 2 to be clustered, got 1"),
        (11, 10, r"num_clusters must be in 2..10, the number of images, got 11"),
        (1, 10, "num_clusters must be in 2..10"),
    ],
)
def test_invalid_numbers(clusters, images, message):
    with pytest.raises(ValueError, match=message):
        clustering.check_number(clusters, images)
    with pytest.raises(ValueError, match=message):
        clustering.kmeans(np.random.default_rng(0).normal(size=(images, 2)), clusters)
