"""tensorflow-datasets: a small data set on disk, no network."""

import sys

import numpy as np
import pytest

import keras_ssl as kssl


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(data_dir, images in the order of reading) of a data set `dots` of 7 images of different sizes."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="needs keras-ssl[tfds]")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (9 + i, 12, 3), np.uint8) for i in range(7)]

    class Dots(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=["red", "blue"]),
            }
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i, image in enumerate(images):
                yield i, {"image": image, "label": i % 2}

    folder = tmp_path_factory.mktemp("tfds")
    builder = Dots(data_dir=folder)
    builder.download_and_prepare()
    order = [row["image"] for row in tfds.as_numpy(builder.as_dataset(split="train"))]
    return folder, order


def test_images_in_order_and_resized(prepared):
    folder, order = prepared
    dataset = kssl.data.from_tfds("dots", size=8, data_dir=folder)
    arrays = kssl.data.to_arrays(dataset)
    assert int(dataset.cardinality()) == 7
    assert arrays["id"].tolist() == list(range(7))
    assert dataset.class_names == ["red", "blue"]
    for image, label, original in zip(arrays["image"], arrays["label"], order, strict=True):
        np.testing.assert_array_equal(image, kssl.images.resize(original, 8, 8))
        assert label == (len(original) - 9) % 2
    again = kssl.data.to_arrays(kssl.data.from_tfds("dots", size=8, data_dir=folder))
    np.testing.assert_array_equal(again["image"], arrays["image"])
    part = kssl.data.from_tfds("dots", "train[2:5]", size=(8, 6), data_dir=folder)
    assert part.element_spec["image"].shape == (8, 6, 3)
    assert int(part.cardinality()) == 3
    assert kssl.data.to_arrays(part)["label"].tolist() == arrays["label"][2:5].tolist()


def test_invalid_arguments(prepared):
    folder = prepared[0]
    for arguments, words in (
        ({"name": "no_such_dots"}, "name must be a data set .* got 'no_such_dots'"),
        ({"name": "dots", "split": "test"}, "split must be one of train,.* got 'test'"),
        ({"name": "dots", "size": 0}, "size must be at least 1 pixel"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            kssl.data.from_tfds(**{"size": 8, "data_dir": folder, **arguments})
        assert "\n" not in str(error.value)


def test_without_tensorflow_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r'pip install "keras-ssl\[tfds\]"'):
        kssl.data.from_tfds("dots", size=8)
