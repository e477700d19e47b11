"""Fine-tuning with a part of the labels."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl import evaluation
from keras_ssl.evaluation.fine_tuning import _batches, balanced_rows


def test_balanced_rows_are_stratified_nested_and_seeded():
    labels = np.random.default_rng(0).permutation(np.repeat([2, 3, 7], [100, 60, 3]))
    few, many = (balanced_rows(labels, fraction) for fraction in (0.1, 0.4))
    assert np.bincount(labels[few])[[2, 3, 7]].tolist() == [10, 6, 1]
    assert np.bincount(labels[many])[[2, 3, 7]].tolist() == [40, 24, 1]
    assert set(few) < set(many)
    assert balanced_rows(labels, 1).tolist() == list(range(163))
    assert few.tolist() != balanced_rows(labels, 0.1, seed=1).tolist()


def test_batches_are_epochs_of_all_images_shifted_and_mirrored(noise):
    labels = np.arange(10) + 5
    images = kssl.data.from_array(noise[:10], labels)
    found = list(_batches(images, np.arange(10), 3, 5, True, seed=0).as_numpy_iterator())
    codes = np.concatenate([y for _, y in found])
    assert [sorted(codes[i : i + 10]) for i in (0, 10, 20)] == [list(range(10))] * 3
    assert codes[:10].tolist() != codes[10:20].tolist()
    mirrored = 0
    for x, y in found:
        for image, code in zip(x, y, strict=True):
            padded = np.pad(noise[code], ((4, 4), (4, 4), (0, 0)), "reflect")
            crops = np.lib.stride_tricks.sliding_window_view(padded, (32, 32, 3))[:, :, 0]
            plain = (crops == image).all((2, 3, 4)).sum()
            flipped = (crops == image[:, ::-1]).all((2, 3, 4)).sum()
            assert plain + flipped == 1
            mirrored += flipped
    assert 5 <= mirrored <= 25  # of 30


def test_learns_from_few_labels_and_copies_the_encoder(noise):
    # Two classes by the amount of red; no random access, labels that are not 0 and 1.
    labels = np.arange(40) % 2 * 3 + 4
    pixels = noise.copy()
    pixels[:, :, :, 0] //= np.where(labels == 4, 1, 3).astype("uint8")[:, None, None]
    train = kssl.data.from_array(pixels, labels).take(30)
    test = kssl.data.from_array(pixels[30:], labels[30:])
    encoder = kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,))
    encoder.trainable = False
    before = encoder.get_weights()
    accuracy = evaluation.fine_tune(
        encoder, train, test, fraction=0.5, epochs=60, batch_size=8, learning_rate=0.1
    )
    assert accuracy > 0.9
    for old, new in zip(before, encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_two_calls_train_the_same_network(noise, monkeypatch):
    from keras_ssl.evaluation import fine_tuning

    monkeypatch.setattr(fine_tuning, "_accuracy", lambda model, *_: model.get_weights())
    images = kssl.data.from_array(noise, np.arange(40) % 2)
    inputs = keras.Input((32, 32, 3))
    maps = keras.layers.Conv2D(2, 3, strides=2, activation="relu", name="stage1")(inputs)
    encoder = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(maps))
    initial = encoder.get_weights()
    keras.utils.set_random_seed(1)
    first = evaluation.fine_tune(encoder, images, images, epochs=2, batch_size=16)
    tf.random.normal([3])  # of the global generator, which must not matter
    second = evaluation.fine_tune(encoder, images, images, epochs=2, batch_size=16)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (first[0] != initial[0]).all()  # the whole network is trained


@pytest.mark.parametrize(
    ("change", "message"),
    [({"fraction": 0}, r"fraction must be in \(0, 1\].*got 0"), ({"fraction": 10}, "got 10"),
     ({"epochs": 0}, "epochs must be at least 1, got 0"),
     ({"batch_size": 0}, "batch_size must be at least 1")],
)  # fmt: skip
def test_invalid_arguments(task, noise, change, message):
    images = kssl.data.from_array(noise, np.arange(40) % 2)
    with pytest.raises(ValueError, match=message):
        evaluation.fine_tune(task.encoder, images, images, **change)


def test_invalid_labels(task, noise):
    images, one = kssl.data.from_array(noise), kssl.data.from_array(noise, np.full(40, 6))
    with pytest.raises(ValueError, match="train has no labels"):
        evaluation.fine_tune(task.encoder, images, one)
    with pytest.raises(ValueError, match="at least two classes, got only label 6"):
        evaluation.fine_tune(task.encoder, one, one)
