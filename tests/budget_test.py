"""The selection of images in tools/budget.py, which the comparison tools share."""

import budget
import numpy as np

import keras_ssl as kssl


def test_random_subset_is_of_all_classes_and_numbers_its_images():
    """The images are sorted by class, as a folder with one subfolder per class gives them."""
    pixels = np.arange(100, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    images = kssl.data.from_array(pixels, np.arange(100) // 10)
    found = kssl.data.to_arrays(budget.random_subset(images, 40))
    assert set(found["label"]) == set(range(10))
    np.testing.assert_array_equal(found["id"], range(40))  # the classes of an exemplar task
    rows = found["image"][:, 0, 0, 0]
    assert len(set(rows)) == 40
    np.testing.assert_array_equal(found["label"], rows // 10)
    again = kssl.data.to_arrays(budget.random_subset(images, 40))
    np.testing.assert_array_equal(again["image"], found["image"])
    everything = kssl.data.to_arrays(budget.random_subset(images, 1000))
    np.testing.assert_array_equal(everything["image"], pixels)
    np.testing.assert_array_equal(everything["id"], range(100))
    other = kssl.data.to_arrays(budget.random_subset(images, 40, seed=1))
    assert (other["image"] != found["image"]).any()
