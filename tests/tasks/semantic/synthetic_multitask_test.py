import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.tasks.semantic.synthetic_multitask import HEADS, Head

SIZE = 16


def rows(number=12):
    real = kssl.data.from_array(
        np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
    )
    return kssl.data.paired(kssl.data.scenes(number, SIZE, seed=2), real=real)


def make(**arguments):
    keras.utils.set_random_seed(1)
    encoder = kssl.encoders.resnet((SIZE, SIZE, 3), width=4, blocks=(1, 1))
    return kssl.tasks.SyntheticMultitask(encoder, **arguments)


@pytest.fixture(scope="module")
def trained():
    """A task after some steps, with its data and the losses of its first and last epoch."""
    task = make(adversarial=0.5)
    task.compile(keras.optimizers.Adam(3e-3))
    data = task.dataset(rows(48), 12, epochs=12)
    logs = task.fit(data, epochs=12, verbose=0).history
    return task, logs


def test_inputs_are_one_color_channel_and_labels_are_the_columns():
    task, images = make(), rows()
    batch = next(iter(images.batch(12)))
    seed = tf.constant(np.random.default_rng(0).integers(0, 2**40, (12, 2)))
    x, y = task.pretext(batch, seed)
    channels = set()
    for k in range(12):
        found = [
            c for c in range(3) if np.array_equal(x["image"][k, ..., 0], batch["image"][k, ..., c])
        ]
        assert len(found) == 1
        channels.add(found[0])
    assert channels == {0, 1, 2}
    for name in ("image", "real"):
        assert x[name].shape == (12, SIZE, SIZE, 3)
        np.testing.assert_array_equal(x[name][..., 0], x[name][..., 2])
    for name in ("depth", "normals", "contours"):
        np.testing.assert_array_equal(y[name], tf.cast(batch[name], tf.float32))
    other = task.pretext(batch, seed + 1)[0]
    assert (other["real"].numpy() != x["real"].numpy()).any()


def test_loss_is_the_weighted_sum_of_the_heads_and_of_the_adversary():
    task = make(adversarial=0.3)
    task.compile("sgd")
    x, y = next(iter(task.dataset(rows(), 12)))
    logs = task.evaluate(x, y, batch_size=12, verbose=0, return_dict=True)
    y_pred = task(x)
    expected = sum(
        head.weight * np.mean(head.loss.call(y[head.column], y_pred[head.column])) for head in HEADS
    )
    real, rendered = (
        task.discriminator(tf.reshape(y_pred[name], [-1, y_pred[name].shape[-1]])).numpy()
        for name in ("real_map", "image_map")
    )
    generator = np.log1p(np.exp(-rendered)).mean()
    discriminator = np.log1p(np.exp(-real)).mean() + np.log1p(np.exp(rendered)).mean()
    assert logs["loss"] == pytest.approx(expected + 0.3 * generator, rel=1e-4)
    assert logs["generator_loss"] == pytest.approx(generator, rel=1e-4)
    assert logs["discriminator_loss"] == pytest.approx(discriminator, rel=1e-4)


def test_the_adversary_acts_on_the_encoder_through_the_rendered_images_only():
    task = make(adversarial=0.5)
    x, y = next(iter(task.dataset(rows(), 12)))
    real, rendered = task.discriminator_inputs(x, y, task(x))
    assert real[0].shape == rendered[0].shape == (12 * 8 * 8, 8)
    with tf.GradientTape() as tape:
        tape.watch([*real, *rendered])
        both = tf.concat([real[0], rendered[0]], axis=0)
        _, fake = tf.split(task.discriminator([both]), 2)
        loss = tf.reduce_mean(tf.nn.softplus(-fake))
    real_gradient, rendered_gradient = tape.gradient(loss, [real[0], rendered[0]])
    assert np.abs(rendered_gradient).max() > 0
    assert np.abs(real_gradient).max() == 0
    assert not task.encodes_real


def test_it_learns_depth_normals_and_contours(trained):
    _, logs = trained
    for name in ("depth_loss", "normals_loss", "contours_loss"):
        assert (
            logs[name][-1] < 0.7 * logs[name][0]
            if name != "contours_loss"
            else logs[name][-1] < 0.69
        )


def test_prediction_is_in_the_units_of_the_columns(trained):
    task, _ = trained
    image = kssl.data.to_arrays(rows())["image"]
    found = task.prediction(image)
    np.testing.assert_allclose(np.linalg.norm(found["normals"], axis=-1), 1, atol=1e-4)
    assert 0 <= found["contours"].numpy().min() <= found["contours"].numpy().max() <= 1
    x = {"image": np.repeat(image[..., 1:2], 3, axis=-1).astype(np.float32)}
    raw = task({**x, "real": x["image"]}, training=False)
    np.testing.assert_allclose(found["depth"], np.exp(raw["depth"]), rtol=1e-4)


def test_a_label_of_your_own_joins_as_one_line():
    colors = Head("color", 3, keras.losses.MeanSquaredError(), 2.0)
    task = make(heads=[HEADS[0], colors], adversarial=0.0)
    assert task.needs == ("image", "depth", "color", "real")
    task.compile("adam")
    arrays = kssl.data.to_arrays(rows())
    images = kssl.data.from_array(
        arrays["image"], depth=arrays["depth"], color=arrays["image"] / 255, real=arrays["real"]
    )
    logs = task.fit(task.dataset(images, 12), verbose=0).history
    assert logs["loss"][0] == pytest.approx(
        2.5 * logs["depth_loss"][0] + 2 * logs["color_loss"][0], rel=1e-4
    )
    again = kssl.tasks.SyntheticMultitask.from_config(task.get_config())
    assert [head.column for head in again.heads] == ["depth", "color"]
    assert again.heads[1].loss.get_config() == colors.loss.get_config()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": []}, "heads must have one or more"),
        ({"heads": [HEADS[0], HEADS[0]]}, "different columns"),
        ({"adversarial": -0.1}, "adversarial"),
        ({"units": 0}, "units"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)
