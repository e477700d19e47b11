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
