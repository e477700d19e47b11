"""Search: against NumPy, with and without an index, by files, and wrong input."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_ssl.tables import FeatureTable, index, neighbors, search
from keras_ssl.tables.identity import of_model


def nearest(vectors, queries, number):
    """The oracle: row numbers and cosines, in float64."""
    vectors, queries = (np.asarray(a, np.float64) for a in (vectors, queries))
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = queries / np.linalg.norm(queries, axis=1, keepdims=True) @ vectors.T
    order = np.argsort(-cosines, axis=1)[:, :number]
    return order.tolist(), np.take_along_axis(cosines, order, axis=1)


@pytest.fixture(scope="module")
def clustered():
    """3,000 vectors in 30 clusters, of lengths from 1 to 100."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(30, 16))
    vectors = centers[rng.integers(0, 30, 3000)] + 0.4 * rng.normal(size=(3000, 16))
    return (vectors * rng.uniform(1, 100, (3000, 1))).astype(np.float32)


def test_matches_are_those_of_numpy(write_table, clustered):
    table = write_table(clustered, label=[str(i % 7) for i in range(3000)])
    queries = clustered[70:140] + 1  # more than a block
    found = search(table.path, queries, 5)
    ids, cosines = nearest(clustered, queries, 5)
    assert [[match.id for match in row] for row in found] == ids
    np.testing.assert_allclose([[m.cosine for m in row] for row in found], cosines, atol=1e-6)
    best = found[0][0]
    assert (best.path, best.label, best.time) == (f"/photos/{best.id}.jpg", str(best.id % 7), None)


@settings(max_examples=15, deadline=None)
@given(scale=st.floats(1e-3, 1e3), number=st.integers(1, 40), seed=st.integers(0, 99))
def test_cosines_do_not_depend_on_lengths_and_descend(tmp_path_factory, scale, number, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(20, 4)).astype(np.float32)
    table = MemoryTable(vectors)
    (found,) = neighbors.nearest(table, vectors[:1], number)
    (other,) = neighbors.nearest(MemoryTable(scale * vectors), scale * vectors[:1], number)
    cosines = [match.cosine for match in found]
    assert len(found) == min(number, 20)
    assert found[0].id == 0
    assert cosines == sorted(cosines, reverse=True)
    np.testing.assert_allclose(cosines, [match.cosine for match in other], atol=1e-5)


class MemoryTable:
    """What `nearest` reads of a FeatureTable."""

    path, kept, dimensions = "memory", None, 4

    class lance:
        version = 1

    def __init__(self, vectors):
        self._vectors = vectors

    def count(self):
        return len(self._vectors)

    def vectors(self):
        return np.arange(len(self._vectors)), self._vectors.astype(np.float32)

    def refresh(self):
        pass

    def columns(self, names, where):
        rows = [
            {"id": i, "path": "", "time": None, "label": None} for i in range(len(self._vectors))
        ]
        return pa.Table.from_pylist(rows)


def test_search_sees_what_was_added_since(write_table):
    table = write_table(np.eye(3, dtype=np.float32))
    assert search(table, [[0, 0.1, 1]], 1)[0][0].id == 2
    table.add([{"id": 8, "path": "/photos/8.jpg", "vector": np.float32([0, 0.1, 1])}])
    assert search(table, [[0, 0.1, 1]], 1)[0][0].id == 8
    # By another process, in effect.
    FeatureTable(table.path).add(
        [{"id": 9, "path": "/photos/9.jpg", "vector": np.float32([1, 1, 0])}]
    )
    assert search(table, [[1, 1, 0]], 1)[0][0].id == 9


@pytest.mark.parametrize("kind", [None, "ivf_pq", "hnsw"])
def test_large_tables(write_table, clustered, monkeypatch, kind):
    """Without an index LanceDB compares all rows; with one, at least 95 % of the matches are the same."""
    monkeypatch.setattr(index, "EXACT_ROWS", 1000)
    table = write_table(clustered)
    monkeypatch.setattr(FeatureTable, "vectors", None)  # which would read them into memory
    if kind:
        assert index.build(table, kind) > 0
        kinds = {i.columns[0]: i.index_type.replace("_", "") for i in table.lance.list_indices()}
        assert kinds == {"id": "BTree", "vector": {"ivf_pq": "IvfPq", "hnsw": "IvfHnswSq"}[kind]}
    found = search(table.path, clustered[:40] + 1, 10)
    ids, cosines = nearest(clustered, clustered[:40] + 1, 10)
    hits = [len({m.id for m in row} & set(best)) for row, best in zip(found, ids, strict=True)]
    assert np.mean(hits) / 10 >= (0.95 if kind else 1)
    np.testing.assert_allclose([row[0].cosine for row in found], cosines[:, 0], atol=1e-5)
    assert all(match.path != "/photos/damaged.jpg" for row in found for match in row)


def test_rows_added_after_the_index_are_found(write_table, clustered, monkeypatch):
    monkeypatch.setattr(index, "EXACT_ROWS", 1000)
    table = write_table(clustered)
    index.build(table)
    new = np.full(16, 7, np.float32)
    table.add([{"id": 9000, "path": "/photos/new.jpg", "vector": new}])
    assert search(table, new[None], 1)[0][0].id == 9000
    table.optimize()
    assert search(table, new[None], 1)[0][0].id == 9000


def test_unknown_kind_of_index(write_table):
    with pytest.raises(ValueError, match="kind must be of ivf_pq, hnsw, got 'flat'"):
        index.build(write_table(np.eye(3, dtype=np.float32)), "flat")


def test_files_in_the_table_need_no_model(write_table, tmp_path):
    content = b"bytes of a file"
    hashes = ["x", hashlib.sha256(content).hexdigest(), "y"]
    table = write_table(np.eye(3, dtype=np.float32), hash=hashes)
    (tmp_path / "copy.jpg").write_bytes(content)
    assert search(table, [tmp_path / "copy.jpg"], 1)[0][0].id == 1
    assert search(table, [content], 1)[0][0].id == 1
    (tmp_path / "other.jpg").write_bytes(b"other")
    with pytest.raises(
        ValueError, match=r"model is missing: '.*other.jpg' is not in .*rotation_photos v"
    ):
        search(table, [tmp_path / "copy.jpg", tmp_path / "other.jpg"])


def test_files_by_the_model_of_the_table(tmp_path, exported, smooth_image):
    """The features of an image that is not in the table are those of the export."""
    import keras_ssl as kssl

    encoder = kssl.load(exported)
    table = FeatureTable.create(tmp_path / "t.lance", of_model(exported), encoder.output_shape[1])
    smooth_image(1, 32, 32).save(tmp_path / "a.png")
    dataset = kssl.data.from_folder(tmp_path, 32)
    vector = encoder(next(iter(dataset.batch(1)))["image"]).numpy()[0]
    table.add(
        [{"id": 5, "path": "/x", "vector": vector}, {"id": 6, "path": "/y", "vector": -vector}]
    )
    (found,) = kssl.search(table, [str(tmp_path / "a.png")], 2, model=str(exported))
    assert found[0].id == 5
    np.testing.assert_allclose([m.cosine for m in found], [1, -1], atol=1e-5)
    (tmp_path / "text.jpg").write_text("text")
    with pytest.raises(
        ValueError, match=r"images: '.*text.jpg' cannot be read as an image: Unknown"
    ):
        kssl.search(table, [tmp_path / "text.jpg"], model=exported)


def test_the_model_must_be_that_of_the_table(write_table, exported, tmp_path):
    (tmp_path / "a.jpg").write_text("text")
    table = write_table(np.eye(3, dtype=np.float32))
    with pytest.raises(
        ValueError, match=r"of the model rotation_photos version 1, not of rotation_digits"
    ):
        search(table, [tmp_path / "a.jpg"], model=str(exported))


@pytest.mark.parametrize(
    ("images", "number", "message"),
    [
        ([[1, 2, 3]], 0, "number must be an integer .* of at least 1, got 0"),
        ([[1, 2, 3]], 2.5, "number must be an integer"),
        ([[1, 2]], 1, r"images must be paths or an \(N, 3\) array of features, got shape \(1, 2\)"),
        ([1, 2, 3], 1, r"got shape \(3,\)"),
        (np.zeros((0, 3)), 1, r"got shape \(0, 3\)"),
        ([], 1, "images must be paths or"),
        (None, 1, "images must be paths or"),
        (
            "a.jpg",
            1,
            "images must be a list of paths or an array, got a single one: wrap it in a list",
        ),
        ([[0, 0, 0]], 1, "finite and not all 0"),
        ([[0, np.nan, 0]], 1, "finite and not all 0"),
        (["missing.jpg"], 1, "images: 'missing.jpg' cannot be read: No such file"),
    ],
)
def test_wrong_arguments(write_table, images, number, message):
    with pytest.raises(ValueError, match=message):
        search(write_table(np.eye(3, dtype=np.float32)), images, number)


def test_an_empty_table(tmp_path, identity):
    FeatureTable.create(tmp_path / "e.lance", identity, 3)
    with pytest.raises(
        ValueError, match=r"table: '.*e.lance' is empty: extract features into it first"
    ):
        search(tmp_path / "e.lance", [[1, 2, 3]])


def test_concatenated_frames_have_no_images(tmp_path, identity):
    table = FeatureTable.create(tmp_path / "c.lance", identity.with_clips(4, 1, "concat"), 8)
    with pytest.raises(ValueError, match="holds features of 4 concatenated frames"):
        search(table, ["a.jpg"])
