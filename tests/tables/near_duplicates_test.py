"""Groups of near-duplicates: against all pairs, chains, planted copies of images."""

import io

import numpy as np
import pytest
from PIL import Image

from keras_ssl.tables import FeatureTable, duplicates, index, near_duplicates
from keras_ssl.tables.update import update


def ids(groups):
    return [[match.id for match in group] for group in groups]


def test_many_copies_of_an_image_are_few_links():
    matrix = np.eye(3, dtype=np.float32)[[0] * 300 + [1] * 200 + [2]]
    links = near_duplicates._pairs(matrix, 0.9)
    assert len(links) == 299 + 199
    assert sorted(map(len, near_duplicates._components(links, 501))) == [200, 300]


@pytest.fixture
def planted():
    """200 random vectors, where 50 to 59 are close to 0 to 9, 60 to 0, 150 to 50, and 199 to 140."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(200, 24)).astype(np.float32)
    vectors[50:60] = 3 * vectors[:10] + 0.1 * rng.normal(size=(10, 24))
    vectors[60] = vectors[0] + 0.05 * rng.normal(size=24)
    vectors[150] = vectors[50] / 2
    vectors[199] = vectors[140] + 0.05
    return vectors


def test_groups_are_the_components_of_all_pairs(write_table, planted, monkeypatch):
    monkeypatch.setattr(near_duplicates, "BLOCK", 64)  # pairs within a block and across
    monkeypatch.setattr(near_duplicates, "WIDTH", 48)
    unit = planted / np.linalg.norm(planted, axis=1, keepdims=True)
    expected = {i: {i} for i in range(200)}
    for i, j in zip(*np.nonzero(unit @ unit.T > 0.98), strict=True):
        merged = expected[i] | expected[j]
        for k in merged:
            expected[k] = merged
    expected = {frozenset(group) for group in expected.values() if len(group) > 1}
    groups = duplicates(write_table(planted).path, 0.98)
    assert {frozenset(group) for group in ids(groups)} == expected
    assert frozenset({0, 50, 60, 150}) in expected
    assert len(groups[0]) == 4  # the largest first
    assert frozenset({140, 199}) in expected  # both in later blocks than the first
    assert len(groups) == 11
    for group in groups:
        assert group[0].cosine == 1
        for match in group[1:]:
            assert match.cosine == pytest.approx(unit[match.id] @ unit[group[0].id], abs=1e-6)


def test_the_image_with_most_pixels_is_the_first(write_table):
    vectors = np.float32([[1, 0], [0, 1], [1, 0.01], [1, 0]])
    table = write_table(vectors, height=[10, 90, 30, 20], width=[10, 90, 5, 10])
    assert ids(duplicates(table)) == [[3, 2, 0]]


def test_by_the_index(write_table, planted, monkeypatch):
    monkeypatch.setattr(near_duplicates, "EXACT_ROWS", 100)
    table = write_table(np.concatenate([planted, np.random.default_rng(5).normal(size=(100, 24))]))
    exact = ids(duplicates(table))
    index.build(table)
    monkeypatch.setattr(near_duplicates, "_pairs", None)
    assert ids(duplicates(table)) == exact


def test_no_duplicates(write_table):
    assert duplicates(write_table(np.eye(3, dtype=np.float32))) == []
    assert duplicates(write_table(np.ones((1, 3), np.float32), "one.lance")) == []


def test_copies_of_images(tmp_path, identity, encoder, smooth_image):
    """Recompressed, resized, cropped by 5 %: all are in the group of their original, and nothing else."""
    (tmp_path / "photos").mkdir()
    for seed in range(12):
        original = smooth_image(seed)
        width, height = original.size
        copies = {"": original}
        if seed < 3:
            recompressed = io.BytesIO()
            original.save(recompressed, "JPEG", quality=30)
            cut = round(0.05 * width / 2), round(0.05 * height / 2)
            copies["_recompressed"] = Image.open(recompressed)
            copies["_resized"] = original.resize((width // 2, height // 2))
            copies["_cropped"] = original.crop((*cut, width - cut[0], height - cut[1]))
        for name, image in copies.items():
            image.save(tmp_path / "photos" / f"{seed}{name}.png")
    update(tmp_path / "f.lance", tmp_path / "photos", identity, encoder)
    groups = duplicates(tmp_path / "f.lance", 0.98)
    names = [sorted(m.path.rpartition("/")[2] for m in group) for group in groups]
    assert sorted(names) == [
        [f"{seed}.png", f"{seed}_cropped.png", f"{seed}_recompressed.png", f"{seed}_resized.png"]
        for seed in range(3)
    ]
    for group in groups:
        assert "_resized" not in group[0].path
        assert "_cropped" not in group[0].path


@pytest.mark.parametrize("above", [-0.1, 1.1, "0.9", None])
def test_thresholds_that_are_no_cosine(write_table, above):
    with pytest.raises(ValueError, match=r"above must be in 0\.\.1, got"):
        duplicates(write_table(np.eye(3, dtype=np.float32)), above)


def test_an_empty_table(tmp_path, identity):
    FeatureTable.create(tmp_path / "e.lance", identity, 3)
    with pytest.raises(ValueError, match="is empty: extract features into it first"):
        duplicates(tmp_path / "e.lance")
