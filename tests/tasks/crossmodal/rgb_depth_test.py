import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl import losses
from keras_ssl.ops import depth


def resnet(size=(32, 32, 3), **arguments):
    return kssl.encoders.resnet(size, **{"width": 2, "blocks": (1, 1), **arguments})


@pytest.fixture(scope="module")
def encoder():
    return resnet()


@pytest.fixture(scope="module")
def pairs(noise):
    """12 images and their depth, which is unknown in some pixels, and everywhere in the last one."""
    distance = np.random.default_rng(1).uniform(1, 9, (12, 32, 32, 1)).astype(np.float32)
    distance[:, :2, 5:], distance[3, 9], distance[11] = np.nan, 0, np.inf
    return noise[:12], distance


def seeds(number):
    return tf.stack([tf.zeros(number, tf.int64), tf.range(number, dtype=tf.int64)], 1)


def test_inputs_and_labels_show_the_same_pixels(encoder, pairs):
    task = kssl.tasks.RGBDepth(encoder, near=1.0, far=9.0)
    batch = dict(zip(("image", "depth"), pairs, strict=True))
    x, y = task.pretext(batch, seeds(12))
    np.testing.assert_allclose(y["image"], x["image"] / 127.5 - 1, atol=1e-5)
    np.testing.assert_array_equal(x["depth"], depth.to_image(y["depth"], 1.0, 9.0))
    assert x["image"].shape == x["depth"].shape == y["image"].shape == (12, 32, 32, 3)
    known = np.isfinite(y["depth"]) & (y["depth"] > 0)
    np.testing.assert_array_equal(x["depth"][..., 2:] == 255, known)
    assert not x["depth"].numpy()[~known[..., 0]].any()


def test_each_encoder_sees_one_sensor_only(encoder, pairs):
    task = kssl.tasks.RGBDepth(encoder)
    x, _ = task.pretext(dict(zip(("image", "depth"), pairs, strict=True)), seeds(12))
    for loss_of, trained, other in (
        ("depth", task.encoder, task.depth_encoder),
        ("image", task.depth_encoder, task.encoder),
    ):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            loss = tf.reduce_sum(task(x)[loss_of] ** 2)
        assert all(np.any(g) for g in tape.gradient(loss, trained.trainable_variables)[:1])
        unused = tape.gradient(loss, [*other.trainable_variables, x[loss_of]])
        assert unused == [None] * len(unused)
    names = {v.path for v in task.encoder.variables}
    assert len(task.trainable_variables) == len({id(v) for v in task.trainable_variables})
    assert len(names) == len(task.encoder.variables)


def test_the_depth_encoder_has_untrained_weights_of_its_own(encoder):
    trained = resnet()
    trained.set_weights([w + 1 for w in trained.get_weights()])
    first, *_, last = kssl.tasks.RGBDepth(trained).depth_encoder.get_weights()
    assert abs(first.mean()) < 0.3
    assert (last == 1).all()  # the variance of batch normalization
    assert np.abs(first + 1 - trained.get_weights()[0]).max() > 0.1
    other = resnet(width=3)
    assert kssl.tasks.RGBDepth(encoder, other).depth_encoder is other


def test_first_prediction_is_the_middle_of_the_range(encoder, pairs):
    task = kssl.tasks.RGBDepth(encoder, near=1.0, far=16.0)
    predicted = task.prediction(tf.cast(pairs[0], tf.float32))["depth"]
    assert predicted.shape == (12, 32, 32, 1)
    np.testing.assert_allclose(predicted, 4, rtol=0.2)


def test_loss_is_that_of_the_known_pixels_plus_that_of_the_image(encoder, pairs):
    task = kssl.tasks.RGBDepth(encoder)
    x, y = task.pretext(dict(zip(("image", "depth"), pairs, strict=True)), seeds(12))
    task.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    y_pred = task(x, training=True)
    logs = task.train_on_batch(x, y, return_dict=True)
    total = []
    for true, guess in zip(y["depth"].numpy(), y_pred["depth"].numpy(), strict=True):
        known = np.isfinite(true) & (true > 0)
        d = guess[known] - np.log(true[known])
        total.append((d**2).mean() - 0.5 * d.mean() ** 2 if known.any() else 0)
    assert total[-1] == 0  # nothing is known of the last image
    image = float(np.mean((y_pred["image"] - y["image"]) ** 2))
    assert float(logs["depth_loss"]) == pytest.approx(np.mean(total), rel=1e-4)
    assert float(logs["image_loss"]) == pytest.approx(image, rel=1e-4)
    assert float(logs["loss"]) == pytest.approx(np.mean(total) + image, rel=1e-4)
    errors = kssl.metrics.abs_rel(y["depth"], tf.exp(y_pred["depth"])).numpy()
    assert float(logs["depth_abs_rel"]) == pytest.approx(errors[:11].mean(), rel=1e-4)
    assert set(logs) == {"loss", "depth_loss", "image_loss", "depth_abs_rel", "image_psnr"}


def test_only_unknown_depth_trains_nothing_of_the_depth_side(encoder, noise):
    """Not even by rounding: no NaN, and no gradient."""
    task = kssl.tasks.RGBDepth(encoder)
    batch = {"image": noise[:4], "depth": np.full((4, 32, 32, 1), np.nan, np.float32)}
    x, y = task.pretext(batch, seeds(4))
    with tf.GradientTape() as tape:
        loss = losses.ScaleInvariantDepth()(y["depth"], task(x, training=True)["depth"])
    assert float(loss) == 0
    for gradient in tape.gradient(loss, task.encoder.trainable_variables):
        assert not np.any(gradient)


def test_learns_the_depth_of_a_brightness():
    keras.utils.set_random_seed(0)
    gray = np.random.default_rng(0).integers(0, 256, (64, 4, 4, 1)).astype(np.float32)
    gray = tf.image.resize(gray, (32, 32), "nearest").numpy()
    distance = (2 ** (gray / 85)).astype(np.float32)  # 1 to 8 m
    images = kssl.data.from_array(gray.repeat(3, -1).astype(np.uint8), depth=distance)
    task = kssl.tasks.RGBDepth(resnet(width=4))
    task.compile(keras.optimizers.Adam(1e-2))
    history = task.fit(task.dataset(images, 16, epochs=15), epochs=15, verbose=0).history
    baseline = np.mean(kssl.metrics.abs_rel(distance, np.exp(np.log(distance).mean())))
    assert history["depth_abs_rel"][-1] < baseline / 2
    assert history["image_loss"][-1] < history["image_loss"][0] / 2


def test_both_encoders_are_exported(encoder, pairs, tmp_path):
    task = kssl.tasks.RGBDepth(encoder)
    path = kssl.export(kssl.PretextModel(task.depth_encoder), tmp_path / "depth")
    pixels = depth.to_image(pairs[1], 0.5, 100.0)
    np.testing.assert_allclose(
        kssl.load(path)(pixels), task.depth_encoder(pixels), rtol=1e-5, atol=1e-5
    )


def test_preview_shows_both_sensors_and_both_predictions(encoder, pairs):
    task = kssl.tasks.RGBDepth(encoder, near=1.0, far=9.0)
    x, y = task.pretext(dict(zip(("image", "depth"), pairs, strict=True)), seeds(12))
    exact = {"depth": depth.log(y["depth"]), "image": y["image"]}
    row = task.preview(x, y, exact)[0]
    captions = ["image", "depth", "predicted depth", "predicted image"]
    assert [caption for _, caption in row] == captions
    shown = [pixels for pixels, _ in row]
    np.testing.assert_allclose(shown[0], shown[3], atol=1e-3)
    unknown = (shown[1] == [0, 0, 120]).all(-1)
    np.testing.assert_array_equal(unknown, x["depth"][0, ..., 2] == 0)
    np.testing.assert_allclose(shown[1][~unknown], shown[2][~unknown], atol=1.01)
    assert shown[1][~unknown].min() == 40
    assert shown[1][~unknown].max() == 255
    assert len(task.preview(x, y)[0]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"near": 0}, "near must be a positive number, got 0"),
        ({"far": np.inf}, "far must be a positive number, got inf"),
        ({"near": 2, "far": 2}, "near must be less than far, got 2 and 2"),
    ],
)
def test_invalid_ranges(encoder, arguments, message):
    with pytest.raises(ValueError, match=message):
        kssl.tasks.RGBDepth(encoder, **arguments)
    with pytest.raises(ValueError, match=message):
        depth.to_image(tf.ones((1, 1)), **{"near": 1, "far": 3, **arguments})


def test_invalid_encoders_and_data(encoder, noise):
    with pytest.raises(
        ValueError, match=r"depth_encoder must take \(32, 32, 3\) .* got \(32, 32, 2\)"
    ):
        kssl.tasks.RGBDepth(encoder, resnet((32, 32, 2)))
    with pytest.raises(ValueError, match="encoder must take images"):
        kssl.tasks.RGBDepth(resnet((32, 32, 1)))
    task = kssl.tasks.RGBDepth(encoder)
    wrong = kssl.data.from_array(noise[:4], depth=np.ones((4, 16, 16, 1)))
    with pytest.raises(ValueError, match=r"`depth` must have .* \(32, 32, 1\), got \(16, 16, 1\)"):
        task.dataset(wrong, 4)
    with pytest.raises(ValueError, match=r"`depth`, which RGBDepth needs, .*from_stereo"):
        task.dataset(kssl.data.from_array(noise[:4]), 4)
