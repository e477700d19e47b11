import keras
import numpy as np
import pytest

import keras_ssl as kssl
from keras_ssl.callbacks import KNN


def colors(number, noise=0):
    """Images of three colors, sorted by class."""
    labels = np.sort(np.arange(number) % 3)
    pixels = np.full((number, 32, 32, 3), 20 + noise)
    pixels[np.arange(number), :, :, labels] = 200
    return kssl.data.from_array(pixels.astype(np.uint8), labels)


def test_logs_the_accuracy_of_the_features(make_linear_task):
    task, images = make_linear_task(), colors(60)
    task.compile(keras.optimizers.SGD(0.0))
    data = task.dataset(images, 20, epochs=3)
    history = task.fit(data, epochs=3, verbose=0, callbacks=[KNN(images, every=2)]).history
    assert history["knn"] == [1.0]  # after the second epoch
    shuffled = np.random.default_rng(0).integers(0, 3, 60)
    noisy = kssl.data.from_array(kssl.data.to_arrays(images)["image"], shuffled)
    found = task.fit(data, epochs=3, verbose=0, callbacks=[KNN(noisy, every=3)]).history["knn"][-1]
    assert 0.1 < found < 0.6


def test_takes_evenly_spaced_images(make_linear_task):
    task, images = make_linear_task(), colors(600)
    monitor = KNN(images, number=30)
    monitor.set_model(task)
    monitor.on_train_begin()
    assert np.bincount(monitor.labels).tolist() == [10, 10, 10]
    logs = {}
    monitor.on_epoch_end(0, logs)
    assert logs == {"knn": 1.0}


def test_invalid_arguments(make_linear_task):
    for arguments, message in (
        ({"k": 0}, r"k must be an integer \(int64\) of at least 1, got 0"),
        ({"every": 0}, r"every must be an integer \(int64\) of at least 1, got 0"),
        ({"number": 1}, r"number must be an integer \(int64\) of at least 2, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            KNN([], **arguments)
    for images, message in (
        ([], "images must yield dicts with `image` and `id`, .* got a list"),
        (colors(1), "images must hold at least two images to compare, got one"),
    ):
        monitor = KNN(images)
        monitor.set_model(make_linear_task())
        with pytest.raises(ValueError, match=message):
            monitor.on_train_begin()
    monitor = KNN(kssl.data.from_array(np.zeros((4, 32, 32, 3), np.uint8)))
    monitor.set_model(make_linear_task())
    with pytest.raises(
        ValueError, match="images must yield dicts with `label`, got image, id: use"
    ):
        monitor.on_train_begin()
