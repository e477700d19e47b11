import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl


@pytest.fixture(scope="module")
def halves():
    return kssl.encoders.color_halves((32, 32, 3), width=4, blocks=(1,))


def make(encoder, **arguments):
    return kssl.tasks.CMC(
        encoder, **{"num_images": 8, "negatives": 5, "dimensions": 6, **arguments}
    )


def normalized(z):
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def test_each_view_asks_the_bank_of_the_other(halves, batch, seeds):
    task, ids = make(halves, momentum=0.25), batch["id"]
    x, y = task.pretext(batch, seeds(6))
    before = [bank.read(np.arange(8)).numpy() for bank in task.banks]
    found = task(x, training=True).numpy()
    features = np.split(halves(x["image"], training=True).numpy(), 2, axis=1)
    embedded = [normalized(head(z).numpy()) for head, z in zip(task.heads, features, strict=True)]
    losses = []
    for own in (0, 1):
        other = 1 - own
        drawn = tf.random.stateless_uniform((5,), (other, 0), maxval=8, dtype=tf.int32).numpy()
        bank = before[other]
        rows = np.concatenate([bank[ids][:, None], bank[drawn][None].repeat(6, 0)], 1)
        scores = np.einsum("bd,bkd->bk", embedded[own], rows) / 0.07
        expected = scores - np.log(np.exp(scores.astype(np.float64)).mean()) - np.log(5)
        expected[:, 1:][drawn[None] == ids[:, None]] = -1e9
        np.testing.assert_allclose(found[:, own], expected, atol=2e-3)
        mixed = normalized(0.25 * before[own][ids] + 0.75 * embedded[own])
        np.testing.assert_allclose(task.banks[own].rows.numpy()[ids], mixed, atol=1e-4)
        losses.append(np.log(np.exp(expected - expected[..., :1]).sum(-1)))
    assert float(task.default_loss()(y, found)) == pytest.approx(np.sum(losses) / 6, rel=1e-3)
    assert not np.array_equal(*before)  # two banks, not one twice


def test_no_term_trains_the_other_half_through_the_bank(halves, batch, seeds):
    task = make(halves)
    x, y = task.pretext(batch, seeds(6))
    half = {
        name: [
            variable
            for layer in halves.layers
            if layer.name.startswith(name)
            for variable in layer.trainable_variables
        ]
        for name in ("lightness", "colors")
    }
    assert len(half["lightness"]) == len(half["colors"]) > 1
    for row, (own, other) in enumerate([("lightness", "colors"), ("colors", "lightness")]):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(kssl.losses.NCE()(y, task(x)[:, row : row + 1]))
        trained, others = tape.gradient(loss, [half[own], half[other]])
        assert all(gradient is None or not np.any(gradient) for gradient in others)
        assert all(np.any(gradient) for gradient in trained)


def test_refuses_an_encoder_without_halves(encoder, halves):
    with pytest.raises(ValueError, match="'resnet' has no two halves, of lightness and of colors"):
        make(encoder)
    joined = keras.layers.Concatenate()([halves.output, halves.output[:, :1]])
    with pytest.raises(ValueError, match="has no two halves"):
        make(keras.Model(halves.input, joined))


def test_warns_of_images_without_colors(halves, noise):
    with pytest.warns(UserWarning, match="images have no colors, or the first ones do not"):
        make(halves).dataset(kssl.data.from_array(noise[:8, ..., :1].repeat(3, -1)), 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(halves).dataset(kssl.data.from_array(noise[:8]), 4)
    with pytest.raises(ValueError, match="images are 9, more than the num_images=8"):
        make(halves).dataset(kssl.data.from_array(noise[:9]), 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 0}, "num_images must be an integer"),
        ({"temperature": -1}, "temperature must be a positive number"),
        ({"storage": "float64"}, "storage must be one of"),
        ({"recipe": "CCM"}, "recipe must be a Recipe or one of"),
        ({"recipe": "SIMCLR_SMALL"}, "recipe must have gray=0, since a gray image has no colors"),
        ({"seed": 1.5}, "seed must be an integer .* of at least 0, got 1.5"),
    ],
)
def test_invalid_arguments(halves, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(halves, **arguments)


def test_the_preview_shows_what_each_view_sees(halves):
    image = np.zeros((1, 32, 32, 3), np.float32)
    image[:, :, 16:] = (200.0, 30.0, 30.0)
    x = {"image": image, "id": np.array([0])}
    ((gray, first), (flat, second)) = make(halves).preview(x, np.array([0]))[0]
    assert (first, second) == ("lightness", "colors")
    assert np.ptp(gray, axis=-1).max() < 1
    assert np.ptp(gray) > 50
    lightness = kssl.ops.lab.rgb_to_lab(flat).numpy()[..., 0]
    np.testing.assert_allclose(lightness, 60, atol=1)
    assert np.abs(flat[:, :16] - flat[:, 16:]).max() > 50
