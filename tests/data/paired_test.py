import numpy as np
import pytest

import keras_ssl as kssl


def colored(number, value, **columns):
    pixels = (
        np.full((number, 4, 4, 3), value, np.uint8)
        + np.arange(number, dtype=np.uint8)[:, None, None, None]
    )
    return kssl.data.from_array(pixels, **columns)


def test_rows_get_the_images_of_the_other_data_set_which_begins_again():
    depth = np.ones((5, 4, 4, 1), np.float32)
    pairs = kssl.data.paired(colored(5, 100, depth=depth), real=colored(2, 50), other=colored(7, 0))
    found = kssl.data.to_arrays(pairs)
    assert found["image"][:, 0, 0, 0].tolist() == [100, 101, 102, 103, 104]
    assert found["real"][:, 0, 0, 0].tolist() == [50, 51, 50, 51, 50]
    assert found["other"][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert found["id"].tolist() == [0, 1, 2, 3, 4]
    assert set(found) == {"image", "id", "depth", "real", "other"}


def test_random_access_and_class_names_are_kept():
    pairs = kssl.data.paired(kssl.data.scenes(9, 8), real=kssl.data.scenes(4, 8, seed=1))
    assert pairs.class_names[0] == "sky"
    part = kssl.data.to_arrays(kssl.data.subset(pairs, [6]))
    here, there = (kssl.data.to_arrays(kssl.data.scenes(9, 8, seed=s)) for s in (0, 1))
    np.testing.assert_array_equal(part["image"][0], here["image"][6])
    np.testing.assert_array_equal(part["real"][0], there["image"][2])


def test_what_cannot_be_paired_is_named():
    with pytest.raises(ValueError, match="real must have random access"):
        kssl.data.paired(colored(3, 0), real=colored(3, 0).take(2))
    with pytest.raises(ValueError, match="has a column 'image' already"):
        kssl.data.paired(colored(3, 0), image=colored(3, 0))
