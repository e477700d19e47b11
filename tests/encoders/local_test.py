"""Encoders with local receptive fields."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import keras_ssl as kssl
from keras_ssl import encoders
from keras_ssl.encoders.local import _reductions


@pytest.fixture(scope="module")
def encoder():
    """Its second convolutions, which start at zero, have random numbers."""
    keras.utils.set_random_seed(0)
    encoder = encoders.local_resnet((32, 32, 3), width=4, blocks=(2, 1))
    rng = np.random.default_rng(0)
    encoder.set_weights(
        [w if w.any() or w.ndim == 1 else rng.normal(size=w.shape) for w in encoder.get_weights()]
    )
    return encoder


def sides(*arguments, **keywords):
    maps = encoders.maps(encoders.local_resnet(*arguments, **keywords)).output.values()
    assert all(m.shape[1] == m.shape[2] for m in maps)
    return [m.shape[1] for m in maps]


def test_maps_have_the_sizes_of_the_authors():
    small = {"width": 2, "blocks": (1,)}
    assert sides((32, 32, 3), **small) == [14, 7, 5, 1]
    assert sides((64, 64, 3), **small) == [30, 14, 7, 5, 1]
    assert sides((128, 128, 3), **small, stem="imagenet") == [30, 14, 7, 5, 1]
    assert sides((48, 48, 3), **small) == [22, 10, 5, 3, 1]
    assert sides((10, 10, 1), **small) == [4, 2, 1]
    assert sides((19, 19, 3), **small, stem="imagenet") == [4, 2, 1]


@given(st.integers(8, 500))
def test_every_size_ends_in_two_maps_and_a_vector(side):
    maps = []
    for stage in _reductions(side):
        for kernel, stride in stage:
            assert kernel <= side
            side = (side - kernel) // stride + 1
        maps.append(side)
    assert maps[-1] == 1
    assert 2 <= maps[-2] == maps[-3] - 2 <= 6
    assert all(larger > 8 for larger in maps[:-3])


def test_blocks_give_widths_and_depths():
    encoder = encoders.local_resnet((32, 32, 3), width=4, blocks=(2, 1, 3))
    channels = [m.shape[3] for m in encoders.maps(encoder).output.values()]
    assert channels == [4, 8, 16, 16]  # the authors' ratios
    assert encoder.output_shape == (None, 16)
    kernels = [v.kernel_size[0] for v in encoder.layers if isinstance(v, keras.layers.Conv2D)]
    # Each reduction, then 1x1 blocks; each convolution is followed by a 1x1 convolution.
    reductions = [3, *(4, 1), 2, *(3, 1, 1), *(3, 1, 1), *(3, 1, 1)]
    assert kernels == [3, *(k for first in reductions[1:] for k in (first, 1))]
    assert not any("ormalization" in type(v).__name__ for v in encoder.layers)
    assert not [v for v in encoder.layers if getattr(v, "padding", "valid") == "same"]


def test_starts_as_average_pooling_of_the_stem(noise):
    encoder = encoders.local_resnet((32, 32, 3), width=3, blocks=(2, 1))
    stem = keras.Model(encoder.input, encoder.get_layer("stem").output)(noise[:2])
    found = encoders.maps(encoder)(noise[:2])
    pooled = tf.nn.avg_pool2d(tf.nn.avg_pool2d(stem, 4, 2, "VALID"), 2, 2, "VALID")
    np.testing.assert_allclose(found["stage2"][..., :3], pooled, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["stage2"][..., 3:], np.zeros((2, 7, 7, 3)))


def test_a_position_sees_eight_pixels(encoder, noise):
    """A changed pixel changes exactly the positions whose square of pixels it is in."""
    before = encoders.maps(encoder)(noise[:1])
    fields = {"stage1": (6, 2), "stage2": (8, 4), "stage3": (16, 4)}
    for row, column in ((0, 0), (31, 0), (0, 31), (31, 31), (13, 20)):
        changed = noise[:1].copy()
        changed[0, row, column] = 255 - changed[0, row, column]
        after = encoders.maps(encoder)(changed)
        for name, (size, stride) in fields.items():
            starts = stride * np.arange(before[name].shape[1])
            sees = [(starts <= p) & (p < starts + size) for p in (row, column)]
            difference = np.any(before[name][0] != after[name][0], axis=-1)
            np.testing.assert_array_equal(difference, np.outer(*sees), err_msg=name)
        assert (before["stage4"] != after["stage4"]).numpy().any()


def test_features_do_not_depend_on_the_batch(encoder, noise):
    np.testing.assert_allclose(
        encoder(noise[:5], training=True)[:2], encoder(noise[:2]), rtol=1e-5, atol=1e-6
    )


def test_is_exported_and_loaded(encoder, noise, tmp_path):
    found = kssl.load(kssl.export(kssl.tasks.Rotation(encoder), tmp_path / "local"))
    np.testing.assert_allclose(found(noise[:3]), encoder(noise[:3]), rtol=1e-5, atol=1e-5)
    pooled = encoders.stages(encoder)(noise[:3])
    assert {k: v.shape[1] for k, v in pooled.items()} == {
        "stage1": 4, "stage2": 8, "stage3": 8, "stage4": 8, "features": 8
    }  # fmt: skip


def test_gradients_of_odd_batches_match_float64(encoder, noise):
    """Kernels and strides that no other network has; tools/soak_shapes.py tries them at random shapes."""
    pixels, gradients = noise[:5].astype("float64"), []
    for dtype in ("float64", "float32"):
        keras.config.set_dtype_policy(dtype)
        try:
            copy = encoders.local_resnet(
                (32, 32, 3), 4, (2, 1), preprocessing=keras.layers.Rescaling(1 / 255, dtype=dtype)
            )
        finally:
            keras.config.set_dtype_policy("float32")
        copy.set_weights(encoder.get_weights())
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(encoders.maps(copy)(tf.constant(pixels, dtype))["stage4"] ** 2)
        gradients.append(tape.gradient(loss, [v.value for v in copy.trainable_variables]))
    for expected, found in zip(*gradients, strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (32, 32)}, r"input_shape must be \(side, side, channels\)"),
        ({"input_shape": (32, 48, 3)}, r"input_shape .* got \(32, 48, 3\)"),
        ({"input_shape": (None, None, 3)}, r"input_shape .* got \(None, None, 3\)"),
        ({"input_shape": (9, 9, 3)}, "a side of at least 10 pixels for the stem 'small'"),
        (
            {"input_shape": (18, 18, 3), "stem": "imagenet"},
            "at least 19 pixels for the stem 'image",
        ),
        ({"width": 0}, "width must be a positive integer, got 0"),
        ({"input_shape": 32}, r"input_shape must be \(side, side, channels\) .* got 32"),
        ({"blocks": 2}, "blocks must be positive integers, got 2"),
        ({"blocks": ()}, r"blocks must be positive integers, got \(\)"),
        ({"blocks": (1, 0)}, r"blocks must be positive integers, got \(1, 0\)"),
        ({"blocks": (1,) * 5}, "blocks must have at most 4 numbers, .* images of 32 pixels"),
        ({"stem": "large"}, 'stem must be "small" or "imagenet", got \'large\''),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        encoders.local_resnet(**{"input_shape": (32, 32, 3), **arguments})
