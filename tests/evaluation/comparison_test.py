"""The comparison of all stages with an untrained encoder, and its table."""

import keras
import numpy as np
import pytest

import keras_ssl as kssl
from keras_ssl import evaluation

COLUMNS = {"knn", "knn200", "linear", "l2", "validation", "selected"}


def test_compare_every_stage_with_untrained_and_chance(task):
    train, test = kssl.data.digits("train").take(300), kssl.data.digits("test").take(100)
    untrained = keras.models.clone_model(task.encoder)
    results = evaluation.compare(task.encoder, untrained, train, test)
    rows = evaluation.table(results)
    labels = kssl.data.to_arrays(test)["label"]
    assert results.pop("chance") == np.bincount(labels).max() / 100
    assert list(results) == ["stage1", "stage2", "features"]
    for row in results.values():
        assert set(row) == COLUMNS | {f"{name}_untrained" for name in COLUMNS}
    features, others = evaluation.extract(task.encoder, train)
    queries, _ = evaluation.extract(task.encoder, test)
    arrays = features["stage1"], others["label"], queries["stage1"], labels
    row = results["stage1"]
    assert row["knn"] == evaluation.knn(*arrays)
    assert row["knn200"] == evaluation.knn(*arrays, k=200)
    assert (row["l2"], row["validation"]) == evaluation.choose_l2(*arrays[:2])
    assert row["linear"] == evaluation.linear_probe(*arrays, l2=row["l2"])
    # One stage is selected for each encoder, and marked in the table.
    for suffix in ("", "_untrained"):
        selected = [row for row in results.values() if row[f"selected{suffix}"]]
        best = max(row[f"validation{suffix}"] for row in results.values())
        assert [row[f"validation{suffix}"] for row in selected] == [best]
    stars = [row[0].endswith(" *") for row in rows[1:]]
    assert stars == [row["selected"] for row in results.values()]


def test_compare_maps_and_more_than_ten_classes(task, noise):
    labels = np.arange(40) % 12
    train, test = kssl.data.from_array(noise, labels), kssl.data.from_array(noise[:20], labels[:20])
    results = evaluation.compare(task.encoder, task.encoder, train, test, maps=True)
    features, _ = evaluation.extract(task.encoder, train, dimensions=9000, stages=["stage1"])
    assert results["stage1"]["validation"] == evaluation.choose_l2(features["stage1"], labels)[1]
    assert results["stage1"]["linear"] == 1  # 4,096 features tell 40 images apart, four do not
    assert results["features"]["linear"] < 1
    assert evaluation.table(results)[0][5:10:2] == ("kNN top-5", "linear", "linear top-5")
    assert results.pop("chance") == 0.1
    for row in results.values():
        assert row["linear"] <= row["linear_top5"]
        assert row["knn200"] <= row["knn200_top5"] < 1


def test_compare_needs_labels(task, noise):
    with pytest.raises(ValueError, match="test has no labels"):
        evaluation.compare(
            task.encoder, task.encoder, kssl.data.digits(), kssl.data.from_array(noise)
        )
