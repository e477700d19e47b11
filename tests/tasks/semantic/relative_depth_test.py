import keras
import numpy as np
import pytest
import tensorflow as tf
from unlabeled import check_learns_nothing

import keras_ssl as kssl
from keras_ssl.data.relative_depth import percentile

SIZE = 16


def make(**arguments):
    keras.utils.set_random_seed(0)
    encoder = kssl.encoders.resnet((SIZE, SIZE, 3), width=4, blocks=(1, 1))
    return kssl.tasks.RelativeDepth(encoder, **{"pairs": 64, **arguments})


@pytest.fixture(scope="module")
def task():
    return make()


@pytest.fixture(scope="module")
def batch():
    """Depth is the brightness of the first channel; unknown in some pixels, and in image 2 everywhere."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
    depth = (image[..., :1] / 255).astype(np.float32)
    depth[1, :, 2:], depth[2] = np.nan, np.nan
    return {"image": image, "relative_depth": depth, "id": np.arange(5)}


def seeds(number, epoch=0):
    return tf.stack(
        [tf.fill([number], tf.constant(epoch, tf.int64)), tf.range(number, dtype=tf.int64)], 1
    )


def test_image_and_label_are_shifted_and_flipped_alike(task, batch):
    x, y = task.pretext(batch, seeds(5))
    assert x["image"].shape == (5, SIZE, SIZE, 3)
    assert y.shape == (5, SIZE, SIZE, 1)
    known = np.isfinite(y)
    np.testing.assert_allclose(y[known], x["image"][..., :1][known] / 255, atol=1e-6)
    assert (x["image"].numpy() != batch["image"]).any((1, 2, 3)).sum() >= 4
    assert not known[2].any()


def test_pairs_are_drawn_among_the_known_pixels_only(batch):
    task = make(pairs=600)
    x, y = task.pretext(batch, seeds(5))
    pairs, y = x["pairs"].numpy(), y.numpy().reshape(5, -1)
    assert pairs.shape == (5, 600, 2)
    assert x["pairs"].dtype == tf.int32
    for k in (0, 1, 3, 4):
        known = set(np.flatnonzero(np.isfinite(y[k])))
        drawn = set(pairs[k].ravel())
        assert drawn <= known
        assert len(drawn) > 0.95 * len(
            known
        )  # of 1,200 draws, 256 pixels are left out with e^-4.7 each
    assert 0 <= pairs.min() <= pairs.max() < SIZE * SIZE
    again, _ = task.pretext(batch, seeds(5))
    np.testing.assert_array_equal(again["pairs"], pairs)
    other, _ = task.pretext(batch, seeds(5, epoch=1))
    assert (other["pairs"].numpy()[0] != pairs[0]).any()


def test_orders_are_those_of_the_label(batch):
    task = make(equal=0.1)
    x, y = task.pretext(batch, seeds(5))
    labels, weight = task.late_labels(x, y, None)
    assert weight is None
    np.testing.assert_array_equal(labels[..., :2], x["pairs"])
    flat, seen = y.numpy().reshape(5, -1), set()
    for k in (0, 1, 3, 4):
        for first, second, r in labels[k].numpy():
            difference = flat[k, int(first)] - flat[k, int(second)]
            expected = 0 if abs(difference) <= 0.1 else 1 if difference > 0 else -1
            assert r == expected  # 1: the first pixel of the pair is farther
            seen.add(expected)
    assert seen == {-1, 0, 1}
    assert np.isnan(labels[2, :, 2]).all()


def test_a_batch_without_any_label_has_loss_0_and_changes_no_weight():
    task = make()
    image = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    nothing = np.full((3, SIZE, SIZE, 1), np.nan, np.float32)
    x, y = task.pretext({"image": image, "relative_depth": nothing}, seeds(3))
    check_learns_nothing(task, x, y)


@pytest.fixture(scope="module")
def trained():
    """Trained on images that are brighter where they are farther."""
    task = make()
    rng = np.random.default_rng(0)
    depth = tf.image.resize(rng.uniform(0, 1, (96, 4, 4, 1)), (SIZE, SIZE), "nearest").numpy()
    pixels = (255 * depth).repeat(3, -1).astype(np.uint8)
    images = kssl.data.from_array(pixels, relative_depth=depth.astype(np.float32))
    task.compile(keras.optimizers.Adam(1e-2))
    logs = task.fit(task.dataset(images, 16, epochs=12), epochs=12, verbose=0).history
    return task, pixels, depth, logs


def test_it_learns_the_order(trained):
    _, _, _, logs = trained
    assert logs["ordered"][0] < 0.85 < 0.9 < logs["ordered"][-1]
    assert logs["loss"][-1] < 0.6 * logs["loss"][0]


def test_prediction_is_the_percentile(trained):
    task, pixels, depth, _ = trained
    found = task.prediction(pixels[:4])["relative_depth"].numpy()
    score = task.score(tf.cast(pixels[:4], tf.float32)).numpy()
    assert found.shape == (4, SIZE, SIZE, 1)
    for k in range(4):
        expected = percentile(score[k])
        np.testing.assert_allclose(found[k], expected, atol=3 / SIZE**2)  # equal scores
        assert np.corrcoef(found[k].ravel(), depth[k].ravel())[0, 1] > 0.8
    assert (found.min(), found.max()) == (0, 1)


def test_preview_draws_the_label_and_the_prediction(trained, batch):
    task, *_ = trained
    x, y = task.pretext(batch, seeds(5))
    x, y = {name: part.numpy() for name, part in x.items()}, y.numpy()
    rows = task.preview(x, y, y)
    assert [caption for _, caption in rows[0]] == ["image", "relative depth", "predicted"]
    np.testing.assert_array_equal(rows[0][1][0], rows[0][2][0])
    assert rows[0][1][0][np.unravel_index(y[0].argmin(), (SIZE, SIZE))].argmax() == 0  # near: red
    assert not rows[2][1][0].any()  # unknown: black
    assert len(task.preview(x, y)[0]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": 0}, "pairs must be an integer .* of at least 1, got 0"),
        ({"pairs": 2.0}, "pairs must be an integer"),
        ({"equal": -0.1}, "equal must be in 0..1, got -0.1"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_data_without_the_column_names_the_function_that_adds_it(task, batch):
    images = kssl.data.from_array(batch["image"])
    with pytest.raises(ValueError, match=r"`relative_depth`, .*with_relative_depth\(clips\)"):
        task.dataset(images, 5)
    wrong = kssl.data.from_array(batch["image"], relative_depth=batch["relative_depth"][:, :4])
    with pytest.raises(ValueError, match=r"`relative_depth` must have one channel"):
        task.dataset(wrong, 5)
    with pytest.raises(ValueError, match="encoder must take images"):
        kssl.tasks.RelativeDepth(kssl.encoders.resnet((SIZE, SIZE, 1), width=2, blocks=(1,)))
