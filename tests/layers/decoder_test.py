import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssl.layers import ChannelwiseDense, Decoder


@pytest.mark.parametrize(
    ("shape", "size", "filters"),
    [
        ((4, 4, 64), (32, 32), 16),
        ((2, 3, 40), (13, 24), 16),
        ((5, 5, 7), (5, 5), 7),  # already the requested size
        ((8, 8, 128), (16, 16), 64),
    ],
)
def test_output_has_the_requested_size(shape, size, filters):
    decoder = Decoder(shape, size)
    assert decoder.filters == filters
    assert decoder(tf.ones((2, *shape))).shape == (2, *size, filters)


def test_skips_are_concatenated_at_their_size():
    skips = [(6, 7, 5), (3, 4, 2), (12, 13, 3), (6, 7, 1)]
    decoder = Decoder((3, 4, 64), (12, 13), skips)
    maps = [tf.random.normal((2, *skip)) for skip in skips]
    x = tf.random.normal((2, 3, 4, 64))
    result = decoder(x, skips=maps)
    assert result.shape == (2, 12, 13, decoder.filters)
    assert decoder.filters == 16 + 3
    np.testing.assert_array_equal(result[..., 16:], maps[2])  # the last skip is unchanged
    for i in range(4):  # every skip has an effect
        changed = [m + 1 if i == j else m for j, m in enumerate(maps)]
        assert np.abs(decoder(x, skips=changed) - result).max() > 1e-3


def test_larger_maps_give_larger_images_with_the_same_weights():
    decoder = Decoder((4, 4, 32), (16, 16), [(8, 8, 3)])
    x, skip = tf.random.normal((1, 8, 12, 32)), tf.random.normal((1, 16, 24, 3))
    large = decoder(x, size=(32, 48), skips=[skip])
    assert large.shape == (1, 32, 48, 16)
    # Convolutions are local: a part of the map gives that part of the image, except at the border.
    small = decoder(x[:, :4, :4], skips=[skip[:, :8, :8]])
    np.testing.assert_allclose(large[:, :8, :8], small[:, :8, :8], rtol=1e-4, atol=1e-4)


def test_saves_and_loads(tmp_path):
    inputs = keras.Input((4, 4, 8))
    model = keras.Model(inputs, Decoder((4, 4, 8), (15, 16), least=2)(inputs))
    x = tf.random.normal((3, 4, 4, 8))
    model.save(tmp_path / "decoder.keras")
    copy = keras.models.load_model(tmp_path / "decoder.keras")
    np.testing.assert_array_equal(copy(x), model(x))


def test_refuses():
    with pytest.raises(ValueError, match="size must be at least that of the feature map"):
        Decoder((4, 4, 8), (3, 8))
    with pytest.raises(
        ValueError, match=r"skips must have the size of an upsampled map, one of .*, got \[\(5"
    ):
        Decoder((4, 4, 8), (16, 16), [(8, 8, 1), (5, 5, 1)])


def test_channelwise_dense_matches_one_dense_layer_per_channel():
    x = np.random.default_rng(0).normal(size=(5, 2, 3, 4)).astype(np.float32)
    layer = ChannelwiseDense()
    layer(x)
    layer.bias.assign(np.random.default_rng(1).normal(size=(4, 6)))
    kernel, bias = layer.kernel.numpy(), layer.bias.numpy()
    expected = np.empty_like(x)
    for c in range(4):
        flat = x[..., c].reshape(5, 6) @ kernel[c] + bias[c]
        expected[..., c] = flat.reshape(5, 2, 3)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert layer.count_params() == 4 * (36 + 6)
    # The initialization keeps the variance.
    wide = tf.random.normal((200, 16, 16, 2))
    assert float(tf.math.reduce_std(ChannelwiseDense()(wide))) == pytest.approx(1, abs=0.1)
