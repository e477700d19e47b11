"""Extraction of features keeps the order and the columns."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_ssl as kssl
from keras_ssl import evaluation
from keras_ssl.evaluation.extract import map_batches


def test_extract_keeps_order_and_stages(task, noise):
    columns, others = evaluation.extract(task.encoder, kssl.data.from_array(noise, range(40)), 16)
    np.testing.assert_allclose(columns["features"], task.features(noise), rtol=1e-4, atol=1e-5)
    assert {k: v.shape for k, v in columns.items()} == {
        "stage1": (40, 4), "stage2": (40, 8), "features": (40, 8),
    }  # fmt: skip
    assert others["id"].tolist() == others["label"].tolist() == list(range(40))


def test_columns_in_pixels_are_not_collected(task, noise):
    images = kssl.data.from_array(noise[:9], frames=noise[:9, None], motion=np.ones((9, 6)))
    _, others = evaluation.extract(task.encoder, images)
    assert {k: v.shape for k, v in others.items()} == {"id": (9,), "motion": (9, 6)}


def test_batches_of_a_dataset_and_of_a_list(capfd):
    numbers = np.arange(7.0)
    batches = tf.data.Dataset.from_tensor_slices(numbers).batch(3)
    found = map_batches(lambda x: {"half": x / 2, "same": x}, batches, verbose=1)
    assert "3/3" in capfd.readouterr().out
    np.testing.assert_array_equal(found["half"], numbers / 2)
    np.testing.assert_array_equal(map_batches(tf.square, [numbers[:4], numbers[4:]]), numbers**2)


def test_traces_the_encoder_once_for_batches_of_all_sizes(noise):
    calls = []

    class Counted(layers.Layer):
        def call(self, inputs):
            calls.append(inputs.shape)
            return inputs

    inputs = keras.Input((32, 32, 3))
    maps = layers.Conv2D(2, 3, name="stage1")(Counted()(inputs))
    encoder = keras.Model(inputs, layers.GlobalAveragePooling2D()(maps))
    before = len(calls)
    images = kssl.data.from_array(noise)
    features, others = kssl.evaluation.extract(encoder, images, batch_size=16)
    assert len(calls) - before == 1  # batches of 16, 16 and 8
    np.testing.assert_allclose(features["features"], encoder(noise), rtol=1e-5, atol=1e-5)
    assert others["id"].tolist() == list(range(40))


@pytest.mark.parametrize("dimensions", [36, 100])
def test_maps_are_pooled_to_the_positions_of_the_protocol(dimensions):
    inputs = keras.Input((10, 13, 3))
    outputs = layers.Conv2D(4, 1, name="stage1")(inputs)
    encoder = keras.Model(inputs, layers.GlobalAveragePooling2D()(outputs))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 10, 13, 3), np.uint8)
    found, _ = evaluation.extract(encoder, kssl.data.from_array(pixels), dimensions=dimensions)
    maps = np.asarray(kssl.encoders.maps(encoder)(pixels)["stage1"])
    windows = {  # from the definition of adaptive average pooling: floor(i h / s) to ceil((i + 1) h / s)
        36: [[(0, 4), (3, 7), (6, 10)], [(0, 5), (4, 9), (8, 13)]],
        100: [
            [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)],
            [(0, 3), (2, 6), (5, 8), (7, 11), (10, 13)],
        ],
    }[dimensions]
    pooled = [maps[:, a:b, c:d].mean((1, 2)) for a, b in windows[0] for c, d in windows[1]]
    np.testing.assert_allclose(
        found["stage1"], np.concatenate(pooled, axis=1), rtol=1e-4, atol=1e-3
    )
    np.testing.assert_allclose(found["features"], maps.mean((1, 2)), rtol=1e-4, atol=1e-3)


def test_maps_of_alexnet_have_the_published_numbers():
    # conv1 to conv5 of AlexNet: 9,600, 9,216, 9,600, 9,600 and 9,216 numbers.
    for channels, size, expected in ((96, 55, 9600), (256, 27, 9216), (384, 13, 9600)):
        inputs = keras.Input((size, size, channels), name="images")
        outputs = layers.Activation("linear", name="stage1")(inputs)
        encoder = keras.Model(inputs, layers.GlobalAveragePooling2D()(outputs))
        assert kssl.encoders.stages(encoder, 9000).output["stage1"].shape == (None, expected)


def test_invalid_stages_and_dimensions(task, noise):
    images = kssl.data.from_array(noise)
    with pytest.raises(ValueError, match=r"stages must be of .*stage2.*, got \['stage9'\]"):
        evaluation.extract(task.encoder, images, stages=["stage1", "stage9"])
    with pytest.raises(ValueError, match="dimensions must be at least 1, got 0"):
        evaluation.extract(task.encoder, images, dimensions=0)
    free = kssl.encoders.resnet((None, None, 3), width=2, blocks=(1,))
    with pytest.raises(ValueError, match="dimensions needs maps of fixed size"):
        kssl.encoders.stages(free, 9000)


@pytest.mark.parametrize("pool", ["mean", "concat"])
def test_features_of_the_frames_of_clips(task, noise, pool):
    frames = np.stack([noise[:6], noise[6:12], noise[12:18]], axis=1)
    clips = kssl.data.from_array(noise[20:26], range(6), frames=frames)
    columns, others = evaluation.extract(task.encoder, clips, 4, pool=pool)
    single = np.stack([task.features(frames[:, t]) for t in range(3)], axis=1)
    expected = (
        single.mean(axis=1) if pool == "mean" else np.concatenate(list(single.swapaxes(0, 1)), 1)
    )
    np.testing.assert_allclose(columns["features"], expected, rtol=1e-4, atol=1e-5)
    assert columns["stage1"].shape == (6, 4 if pool == "mean" else 12)
    assert others["label"].tolist() == list(range(6))


def test_pool_of_clips_is_checked(task, noise):
    with pytest.raises(ValueError, match="pool='mean' needs clips with `frames`, got image, id"):
        evaluation.extract(task.encoder, kssl.data.from_array(noise), pool="mean")
    clips = kssl.data.from_array(noise, frames=noise[:, None])
    with pytest.raises(ValueError, match="pool must be 'mean' or 'concat', got 'max'"):
        evaluation.extract(task.encoder, clips, pool="max")
