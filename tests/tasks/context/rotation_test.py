import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl


def make(**arguments):
    return kssl.tasks.Rotation(kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,)), **arguments)


def seeds(number):
    return tf.stack([tf.zeros(number, tf.int64), tf.range(number, dtype=tf.int64)], 1)


@pytest.mark.parametrize(
    ("arguments", "turns"),
    [({}, [0, 1, 2, 3]), ({"num_rotations": 2}, [0, 2]), ({"angles": (90, 270)}, [1, 3])],
)
def test_labels_match_rotations(noise, arguments, turns):
    x, y = make(shift=0, flip=False, **arguments).pretext({"image": noise[:3]}, seeds(3))
    assert x.shape == (3, len(turns), 32, 32, 3)
    np.testing.assert_array_equal(y, [list(range(len(turns)))] * 3)
    for k, turn in enumerate(turns):
        np.testing.assert_array_equal(x[:, k], np.rot90(noise[:3], turn, axes=(1, 2)))


def test_all_rotations_of_an_image_have_the_same_shift(noise):
    x, _ = make().pretext({"image": noise[:8]}, seeds(8))
    upright = x[:, 0].numpy()
    assert (upright != noise[:8]).any(axis=(1, 2, 3)).sum() >= 7  # one in 162 is not changed
    for k in range(1, 4):
        np.testing.assert_array_equal(x[:, k], np.rot90(upright, k, axes=(1, 2)))


def test_loss_and_accuracy_in_closed_form(noise):
    task = make()
    task.compile("sgd")
    x, y = task.pretext({"image": noise[:3]}, seeds(3))
    task(x)
    # A head that always predicts 270 degrees, with a logit of 2: one in four predictions is correct.
    task.head.set_weights([np.zeros((2, 4), "f4"), np.array([0, 0, 0, 2], "f4")])
    logs = task.evaluate(x, y, verbose=0, return_dict=True)
    assert logs["accuracy"] == pytest.approx(0.25)
    assert logs["loss"] == pytest.approx(np.log(3 + np.exp(2)) - 2 / 4, rel=1e-5)


def test_prediction_of_single_images(noise):
    task = make()
    logits = task(noise[:8].reshape(2, 4, 32, 32, 3))
    np.testing.assert_allclose(
        task.prediction(noise[:8])["rotation"], np.reshape(logits, (8, 4)), rtol=1e-4, atol=1e-6
    )


def test_learns_orientation():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 60, (256, 16, 16, 3))
    x[:, :8] += 150  # sky above
    encoder = kssl.encoders.resnet((16, 16, 3), width=4, blocks=(1, 1))
    task = kssl.tasks.Rotation(encoder)
    task.compile(keras.optimizers.Adam(3e-3))
    task.fit(
        task.dataset(kssl.data.from_array(x.astype("uint8")), 32, epochs=8), epochs=8, verbose=0
    )
    held_out = np.zeros((1, 16, 16, 3), "uint8")
    held_out[:, :8] = 180
    for k in range(4):
        turned = np.rot90(held_out, k, axes=(1, 2))
        assert int(np.argmax(task.prediction(turned)["rotation"])) == k


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"num_rotations": 3}, "num_rotations"), ({"angles": (0, 45)}, "angles"), ({"angles": (0,)}, "angles"),
     ({"angles": (0, 360)}, "angles"), ({"angles": "ab"}, "angles"),
     ({"shift": 0.6}, "shift"), ({"shift": -0.1}, "shift")],
)  # fmt: skip
def test_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        make(**arguments)


def test_nonsquare_images_allow_only_180_degrees():
    encoder = kssl.encoders.resnet((16, 32, 3), width=2, blocks=(1,))
    with pytest.raises(ValueError, match="16x32"):
        kssl.tasks.Rotation(encoder)
    task = kssl.tasks.Rotation(encoder, num_rotations=2)
    x, _ = task.pretext({"image": np.zeros((2, 16, 32, 3), "uint8")}, seeds(2))
    assert x.shape == (2, 2, 16, 32, 3)
