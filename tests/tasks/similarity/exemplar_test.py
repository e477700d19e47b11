import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.ops.random import split
from keras_ssl.tasks.similarity import exemplars


def make(num_images=40, size=32, **arguments):
    encoder = kssl.encoders.resnet((size, size, 3), width=2, blocks=(1,))
    return kssl.tasks.Exemplar(encoder, num_images, **arguments)


def seeds(number, epoch=0):
    return tf.stack([tf.fill(number, np.int64(epoch)), tf.range(number, dtype=tf.int64)], 1)


def test_each_image_is_a_class_with_new_transformations_per_epoch(noise):
    task = make()
    batch = {"image": noise[7:20], "id": np.arange(7, 20)}
    x, y = task.pretext(batch, seeds(13))
    assert x.shape == (13, 24, 24, 3)
    np.testing.assert_array_equal(y, range(7, 20))
    later, same = task.pretext(batch, seeds(13, epoch=1))
    np.testing.assert_array_equal(same, y)
    assert (np.abs(later.numpy() - x.numpy()).max((1, 2, 3)) > 1).all()
    # The seed patch is the same in both epochs, and transformed by `exemplars.transform`.
    fixed = tf.stack([tf.zeros(13, tf.int64), tf.range(7, 20, dtype=tf.int64)], 1)
    corners = exemplars.strong_corners(noise[7:20], fixed, 24)
    seed = split(seeds(13, epoch=1), 1)[0]
    np.testing.assert_array_equal(later, exemplars.transform(noise[7:20], corners, seed, 24))


@pytest.mark.parametrize("name", ["Exemplar", "ExemplarTriplet"])
def test_noise_of_the_task_is_that_of_its_patches(name, noise):
    encoder = kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,))
    arguments = {"num_images": 40} if name == "Exemplar" else {}
    batch = {"image": noise, "id": np.arange(40)}
    plain, noisy = (
        getattr(kssl.tasks, name)(encoder, noise=n, **arguments).pretext(batch, seeds(40))[0]
        for n in (0.0, 3.0)
    )
    inside = (plain.numpy() > 30) & (plain.numpy() < 225)
    assert (noisy - plain).numpy()[inside].std() == pytest.approx(3, rel=0.05)


def test_fixed_number_of_transformations(noise):
    task = make(num_transformations=3)
    batch = {"image": noise[:2], "id": np.arange(2)}
    seen = [set(), set()]
    for epoch in range(60):
        x, _ = task.pretext(batch, seeds(2, epoch))
        for i in range(2):
            seen[i].add(x[i].numpy().tobytes())
    assert [len(s) for s in seen] == [3, 3]
    assert not seen[0] & seen[1]


def test_refuses_ids_beyond_the_classes(noise):
    task = make(num_images=10)
    with pytest.raises(tf.errors.InvalidArgumentError, match="below num_images, 10"):
        task.pretext({"image": noise[:11], "id": np.arange(11)}, seeds(11))
    with pytest.raises(ValueError, match="images are 40, more than the num_images=10 classes"):
        task.dataset(kssl.data.from_array(noise), 8)


def test_learns_to_classify_patches(gratings):
    task = kssl.tasks.Exemplar(kssl.encoders.resnet((32, 32, 3), width=8, blocks=(1, 1)), 16)
    task.compile(keras.optimizers.Adam(0.01))
    images = kssl.data.from_array(gratings)
    history = task.fit(task.dataset(images, 16, epochs=60), epochs=60, verbose=0).history
    assert np.mean(history["accuracy"][-10:]) > 0.3  # chance: 0.0625


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_images": 1}, "num_images must be at least 2"),
        ({"patch": 40}, r"patch must be in 1\.\.32"),
        ({"patch": 0}, r"patch must be in 1\.\.32"),
        ({"num_transformations": 0}, "num_transformations"),
    ],
)
def test_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        make(**arguments)
