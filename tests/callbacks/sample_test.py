"""Samples are spread over datasets with random access."""

import numpy as np
import pytest
import tensorflow as tf

from keras_ssl.callbacks.sample import Sample


def test_random_access_spreads_the_sample(images, linear_task):
    columns = {"id": tf.range(70, dtype=tf.int64), "label": tf.range(70, dtype=tf.int64) // 7}
    load = lambda row: {"image": tf.fill((32, 32, 3), tf.cast(row["id"], tf.uint8)), **row}  # noqa: E731
    dataset = tf.data.Dataset.from_tensor_slices(columns).map(load)
    first = Sample(linear_task, dataset, 10).elements
    np.testing.assert_array_equal(first["id"], range(10))
    dataset.columns, dataset.load_row = columns, load  # as keras_ssl.data.columns sets them
    spread = Sample(linear_task, dataset, 10).elements
    np.testing.assert_array_equal(spread["label"], range(10))
    np.testing.assert_array_equal(spread["image"][:, 3, 5, 1], spread["id"])
    whole = Sample(linear_task, dataset, 500)
    np.testing.assert_array_equal(whole.elements["id"], range(70))
    expected = linear_task.features(whole.elements["image"])  # more than one batch
    np.testing.assert_allclose(whole.features(), expected, rtol=1e-5, atol=1e-6)


def test_invalid_datasets(images, linear_task):
    with pytest.raises(ValueError, match="images must yield dicts with `image` and `id`"):
        Sample(linear_task, linear_task.dataset(images, 5), 10)
    with pytest.raises(ValueError, match="images must hold at least one image, got none"):
        Sample(linear_task, images.take(0), 10)
