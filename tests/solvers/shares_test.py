"""Solvers on shares of several workers versus the whole array on one."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from workers import together

from keras_ssl.solvers import clustering
from keras_ssl.solvers.shares import Share, share_of
from keras_ssl.solvers.transport import sinkhorn

WORKERS = [1, 2, 4]


@pytest.fixture(scope="module")
def features():
    """600 features around 15 centers, with unequal variances and a mean: (600, 6) float32."""
    random = np.random.default_rng(0)
    centers = random.normal(size=(15, 6)) * [9, 5, 3, 2, 1, 0.5] + 7
    return (centers[random.integers(0, 15, 600)] + random.normal(size=(600, 6))).astype("float32")


def test_rows_and_results_of_all_workers():
    array = np.arange(22.0).reshape(11, 2)

    def run(share):
        np.testing.assert_array_equal(share.take(array), share.own)
        mine = share.first(np.array([10 + share.index]))
        return share.rows(np.array([10, 0, 4])), share.everywhere(3 * share.own[:, 1]), mine

    for workers in WORKERS:
        for rows, joined, first in together(array, workers, run):
            np.testing.assert_array_equal(rows, array[[10, 0, 4]])
            np.testing.assert_array_equal(joined, 3 * array[:, 1])
            assert first.tolist() == [10]
    alone = share_of(array)
    np.testing.assert_array_equal(alone.rows(np.array([3])), array[[3]])
    assert alone.everywhere(array) is alone.take(array) is array
    assert share_of(alone) is alone


@pytest.mark.parametrize("ids", [[1, 0], [1, 1], [0], [0, 4], [-1, 2], []])
def test_invalid_shares(ids):
    with pytest.raises(ValueError, match="ids must be"):
        Share(np.zeros((2, 3)), np.array(ids, int), 4)


@pytest.mark.parametrize("workers", WORKERS)
def test_kmeans_finds_the_clusters_of_one_worker(features, workers):
    labels, centroids = clustering.kmeans(features, 12, seed=3)

    def run(share):
        own, found = clustering.kmeans(share, 12, seed=3)
        distances = clustering.distances(share, own, found)
        return share.everywhere(own), found, share.everywhere(distances)

    for found, of_worker, distances in together(features, workers, run):
        np.testing.assert_array_equal(found, labels)
        np.testing.assert_allclose(of_worker, centroids, rtol=1e-6)
        expected = np.linalg.norm(features - centroids[labels], axis=1)
        np.testing.assert_allclose(distances, expected, rtol=1e-4)


def test_kmeans_is_lloyds_algorithm(features):
    """Oracle: plain loops from the same initial centroids."""
    labels, centroids = clustering.kmeans(features, 5, iterations=3, seed=1)
    expected = features[np.random.default_rng(1).choice(600, 5, replace=False)].astype(float)
    for _ in range(3):
        nearest = ((features[:, None] - expected) ** 2).sum(-1).argmin(1)
        expected = np.array([features[nearest == k].mean(0) for k in range(5)])
    np.testing.assert_allclose(centroids, expected, rtol=1e-5)
    np.testing.assert_array_equal(labels, ((features[:, None] - expected) ** 2).sum(-1).argmin(1))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(4, 60), k=st.integers(2, 20), workers=st.sampled_from(WORKERS),
    values=st.integers(1, 30), seed=st.integers(0, 1000),
)  # fmt: skip
def test_as_many_clusters_as_different_features(n, k, workers, values, seed):
    """None is empty unless there are too few, and equal features stay together, wherever they are."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(values, 3))[random.integers(0, values, n)]
    features[: n // 2] = features[0]  # one large group
    k = min(k, n)
    labels = together(
        features, workers, lambda share: share.everywhere(clustering.kmeans(share, k)[0]), seed
    )[0]
    distinct, group = np.unique(features, axis=0, return_inverse=True)
    assert len(np.unique(labels)) == min(k, len(distinct))
    assert len(np.unique(np.stack([group, labels]), axis=1).T) == len(distinct)
    assert (labels == clustering.kmeans(features, k)[0]).all()


@pytest.mark.parametrize("workers", WORKERS)
def test_empty_clusters_are_filled_where_the_members_are(features, workers):
    labels = np.where(np.arange(600) < 590, 2, 4).astype(np.int32)  # 0, 1, 3 and 5 are empty
    centroids = np.random.default_rng(0).normal(size=(6, 6))
    expected = clustering.fill_empty(features, labels, centroids, seed=5)

    def run(share):
        own, moved = clustering.fill_empty(share, share.take(labels), centroids, seed=5)
        return share.everywhere(own), moved

    for found in together(features, workers, run):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert (np.bincount(expected[0], minlength=6) > 0).all()


@pytest.mark.parametrize("workers", WORKERS)
def test_whitening_is_scikit_learns_up_to_the_signs(features, workers):
    expected = PCA(4, whiten=True, svd_solver="full").fit_transform(features.astype(float))
    scaled = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    projected = PCA(4, svd_solver="full").fit_transform(features.astype(float))

    def run(share):
        reference = share.replace(share.own[::1])
        return [
            share.everywhere(found.own)
            for found in (
                clustering.whiten(share, 4), clustering.pca(share, 4),
                clustering.whiten(share, 4, reference=reference),
            )
        ]  # fmt: skip

    for white, components, referred in together(features, workers, run):
        for found, wanted in ((white, scaled), (components, projected), (referred, scaled)):
            signs = np.sign((found * wanted).sum(axis=0))
            np.testing.assert_allclose(found * signs, wanted, atol=1e-5)
            assert found.dtype == np.float32
        alone = clustering.whiten(features, 4)
        np.testing.assert_allclose(white, alone, atol=1e-6)  # with equal signs


@pytest.mark.parametrize("workers", [1, 3])
def test_constant_features_of_several_workers_whiten_to_zeros(workers):
    constant = np.full((50, 5), 0.1, np.float32)
    for found in together(constant, workers, clustering.whiten):
        assert found.own.shape == (len(found.ids), 1)
        assert (found.own == 0).all()


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("blocks", [False, True])
def test_sinkhorn_has_the_potentials_of_one_worker(workers, blocks):
    random = np.random.default_rng(0)
    scores = random.standard_normal((203, 9))
    rows, columns = random.dirichlet(np.ones(203)), random.dirichlet(np.ones(9))
    alone = sinkhorn(scores, rows, columns, 20.0, 1e-8, dtype="float64")

    def run(share):
        own = share
        if blocks:
            own = share.replace(lambda: np.array_split(share.own, min(13, len(share.own))))
        found = sinkhorn(own, share.take(rows), columns, 20.0, 1e-8, dtype="float64")
        return found, share.everywhere(found.assignments), share.everywhere(found.plan())

    for found, assignments, plan in together(scores, workers, run):
        np.testing.assert_allclose(found.column_potentials, alone.column_potentials, atol=1e-5)
        np.testing.assert_array_equal(assignments, alone.assignments)
        np.testing.assert_allclose(plan, alone.plan(), atol=1e-7)
        assert found.converged
        assert found.error <= 1e-8


def test_sinkhorn_of_several_workers_starts_from_a_sample(monkeypatch):
    """Each worker reads every eighth of its own blocks; all change to all rows in the same iteration."""
    from keras_ssl.solvers import gibbs

    monkeypatch.setattr(gibbs, "BLOCK_ENTRIES", 40)
    scores = np.random.default_rng(0).standard_normal((900, 8))
    alone = sinkhorn(scores, lam=10.0, tolerance=1e-6)
    for found in together(scores, 3, lambda share: sinkhorn(share, lam=10.0, tolerance=1e-6)):
        np.testing.assert_allclose(found.column_potentials, alone.column_potentials, atol=1e-5)


def test_four_workers_together_need_no_more_memory_than_one():
    """So each of them needs a fourth; gathered features would take four times as much."""
    features = np.random.default_rng(0).normal(size=(200_000, 16)).astype("float32")

    def run(share):
        labels, _ = clustering.kmeans(clustering.whiten(share, 12), 10, iterations=2)
        return np.bincount(share.everywhere(labels))

    peaks, sizes = {}, {}
    for workers in (1, 4):
        tracemalloc.start()
        sizes[workers] = together(features, workers, run)[0].tolist()
        peaks[workers] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert sizes[1] == sizes[4]
    assert peaks[4] < 1.7 * peaks[1]


def test_errors_reach_all_workers(features):
    wrong = features.copy()
    wrong[7, 2], wrong[300, 0] = np.nan, np.inf
    for workers in (1, 3):
        with pytest.raises(ValueError, match="features must be finite, got 2 numbers"):
            together(wrong, workers, lambda share: clustering.kmeans(share, 5))
        with pytest.raises(ValueError, match="features must be finite"):
            together(wrong, workers, clustering.whiten)
        with pytest.raises(ValueError, match="scores must be finite"):
            together(wrong, workers, sinkhorn)
