import pytest
from PIL import Image

import keras_ssl as kssl
from keras_ssl.data.named import load_dataset


def test_train_and_test_folders_are_used_as_they_are(tmp_path):
    for part, number in (("train", 10), ("test", 1)):
        for name in ("red", "blue"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(number):
                Image.new("RGB", (9, 9)).save(tmp_path / part / name / f"{i}.png")
            if (part, name) == (
                "test",
                "red",
            ):  # alone it would be class 0; in train/ it is class 1
                with pytest.raises(ValueError, match="same class folders"):
                    load_dataset(str(tmp_path), 16, split=True)
    train, test = load_dataset(str(tmp_path), 16, split=True)
    assert (int(train.cardinality()), int(test.cardinality())) == (20, 2)
    assert kssl.data.to_arrays(test)["label"].tolist() == [0, 1]
    assert int(load_dataset(str(tmp_path), 16)[0].cardinality()) == 20


def test_every_fifth_image_of_a_folder_is_a_test_image(tmp_path):
    for name in ("red", "blue"):
        (tmp_path / name).mkdir()
        for i in range(10):
            Image.new("RGB", (9, 9)).save(tmp_path / name / f"{i}.png")
    train, test = load_dataset(str(tmp_path), 16, split=True)
    assert (int(train.cardinality()), int(test.cardinality())) == (16, 4)
    assert sorted(kssl.data.to_arrays(test)["label"]) == [0, 0, 1, 1]


def test_scenes_are_rendered_in_the_size_and_with_the_frames_that_are_needed():
    train, test = load_dataset("scenes", 16, split=True)
    assert (int(train.cardinality()), int(test.cardinality())) == (10_000, 2_000)
    first, other = (next(part.as_numpy_iterator()) for part in (train, test))
    assert first["image"].shape == (16, 16, 3)
    assert "flow" not in first
    assert (first["image"] != other["image"]).any()
    clips, none = load_dataset("scenes", (16, 16), needs=("image", "flow"))
    assert none is None
    assert clips.element_spec["frames"].shape == (3, 16, 16, 3)
    clips, _ = load_dataset("scenes", 16, needs=("frames",))  # TemporalOrder needs five
    assert clips.element_spec["frames"].shape == (5, 16, 16, 3)
    with pytest.raises(ValueError, match="scenes has square images"):
        load_dataset("scenes", (16, 20))


def test_real_images_are_paired_with_rendered_ones(tmp_path):
    pairs, _ = load_dataset("digits", 32, needs=("image", "depth", "real"))
    digits = next(kssl.data.digits().as_numpy_iterator())
    row = next(pairs.as_numpy_iterator())
    assert int(pairs.cardinality()) == 1437
    assert (row["real"] == digits["image"]).all()
    assert row["depth"].shape == (32, 32, 1)
    kssl.data.to_tfrecord(kssl.data.scenes(3, 32, seed=5), tmp_path, verbose=0)
    pairs, _ = load_dataset("digits", 32, needs=("image", "real"), synthetic=str(tmp_path))
    assert int(pairs.cardinality()) == 3
    expected = next(kssl.data.scenes(3, 32, seed=5).as_numpy_iterator())
    assert (next(pairs.as_numpy_iterator())["image"] == expected["image"]).all()
