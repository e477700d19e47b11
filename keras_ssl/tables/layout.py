"""Two-dimensional map of the features of a table, with clusters."""

import numpy as np

from keras_ssl.tables.store import READ, SHOWN

ROWS = 2000  # of a map; t-SNE of more takes minutes
CLUSTERS = 10
COMPONENTS = 50  # principal components, the input of t-SNE
PERPLEXITY = 30


def sample(table, names=SHOWN, number=ROWS):
    """Reads columns of up to `number` random rows with features, always the same rows: a list of dicts."""
    ids = np.sort(table.columns(["id"], READ)["id"].to_numpy())
    if len(ids) > number:
        ids = np.sort(np.random.default_rng(0).choice(ids, number, replace=False))
    return table.rows(ids, names)


def layout(table, number=ROWS):
    """Places a sample of the rows of a table in two dimensions, so that similar rows are near each other.

    The rows are placed by t-SNE of the directions of their features, and clustered by k-means.

    Args:
        table: FeatureTable.
        number: int, maximum number of rows.

    Returns:
        list of dicts of the columns of `Match` except the cosine, with `x` and `y` in 0..1 and `cluster` int.

    Reference: van der Maaten & Hinton, "Visualizing Data using t-SNE", JMLR 2008.

    Example:
        >>> layout(FeatureTable("features.lance"))[0]["x"]              # doctest: +SKIP
        0.41
    """
    from threadpoolctl import threadpool_limits

    rows = sample(table, [*SHOWN, "vector"], number)
    vectors = np.array([row.pop("vector") for row in rows], np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    # OpenMP threads wait for each other in a busy loop: while another program ran, t-SNE took nine times as
    # long. With one thread, the result is also the same on every machine with the same libraries.
    with threadpool_limits(1):
        places, clusters = _places(vectors), _clusters(vectors)
    places -= places.min(axis=0)
    places /= np.maximum(places.max(axis=0), 1e-30)
    for row, (x, y), cluster in zip(rows, places.tolist(), clusters.tolist(), strict=True):
        row.update(x=round(x, 4), y=round(y, 4), cluster=cluster)
    return rows


def _places(vectors):
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if len(vectors) < 3:
        return np.arange(2.0 * len(vectors)).reshape(-1, 2)
    components = min(COMPONENTS, *vectors.shape)
    reduced = PCA(components, random_state=0).fit_transform(vectors)
    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    init = np.zeros((len(vectors), 2), np.float32)
    init[:, : min(components, 2)] = reduced[:, :2]
    init *= 1e-4 / max(init[:, 0].std(), 1e-12)
    return TSNE(2, perplexity=perplexity, init=init, random_state=0).fit_transform(reduced)


def _clusters(vectors):
    from sklearn.cluster import KMeans

    number = min(CLUSTERS, len(np.unique(vectors, axis=0)))
    return KMeans(number, n_init=4, random_state=0).fit_predict(vectors)
