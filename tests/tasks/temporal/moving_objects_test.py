import keras
import numpy as np
import pytest
import tensorflow as tf
from unlabeled import check_learns_nothing

import keras_ssl as kssl

SIZE = 16


def make():
    keras.utils.set_random_seed(0)
    return kssl.tasks.MovingObjects(kssl.encoders.resnet((SIZE, SIZE, 3), width=4, blocks=(1, 1)))


@pytest.fixture(scope="module")
def task():
    return make()


@pytest.fixture(scope="module")
def batch():
    """What is bright moves; uncertain at the left of image 1, in image 2 everywhere; nothing moves in 3."""
    image = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), np.uint8)
    moving = (image[..., :1] > 128).astype(np.float32)
    moving[1, :, :5], moving[2], moving[3] = np.nan, np.nan, 0
    return {"image": image, "moving": moving, "id": np.arange(5)}


def seeds(number):
    numbers = tf.range(number, dtype=tf.int64)
    return tf.stack([tf.zeros_like(numbers), numbers], axis=1)


def test_image_and_mask_are_shifted_and_flipped_alike(task, batch):
    x, y = (part.numpy() for part in task.pretext(batch, seeds(5)))
    assert x.shape == (5, SIZE, SIZE, 3)
    assert y.shape == (5, SIZE, SIZE, 1)
    for k in (0, 1, 4):
        certain = np.isfinite(y[k])
        np.testing.assert_array_equal(y[k][certain], x[k, ..., :1][certain] > 128)
    assert np.isnan(y[1]).any()
    assert np.isnan(y[2]).all()
    assert (x != batch["image"]).any((1, 2, 3)).sum() >= 4


@pytest.mark.parametrize("value", [np.nan, 0])
def test_a_batch_in_which_nothing_moves_has_loss_0_and_changes_no_weight(value):
    task = make()
    image = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    mask = np.full((3, SIZE, SIZE, 1), value, np.float32)
    x, y = task.pretext({"image": image, "moving": mask}, seeds(3))
    check_learns_nothing(task, x, y)


@pytest.fixture(scope="module")
def trained():
    """Trained on what is brighter than the rest, with uncertain pixels."""
    task = make()
    rng = np.random.default_rng(0)
    truth = (rng.uniform(0, 1, (96, 4, 4, 1)) < 0.3).repeat(4, axis=1).repeat(4, axis=2)
    pixels = (100 + 100 * truth + rng.integers(0, 50, truth.shape)).repeat(3, axis=-1)
    moving = np.where(rng.uniform(0, 1, truth.shape) < 0.2, np.nan, truth).astype(np.float32)
    images = kssl.data.from_array(pixels.astype(np.uint8), moving=moving)
    task.compile(keras.optimizers.Adam(1e-2))
    logs = task.fit(task.dataset(images, 16, epochs=12), epochs=12, verbose=0).history
    return task, pixels, truth, logs


def test_it_learns_the_mask(trained):
    task, pixels, truth, logs = trained
    assert logs["iou"][0] < 0.6 < 0.7 < logs["iou"][-1]
    assert logs["loss"][-1] < 0.6 * logs["loss"][0]
    found = task.prediction(pixels[:8].astype(np.uint8))["moving"].numpy()
    assert found.shape == (8, SIZE, SIZE, 1)
    assert 0 <= found.min() < 0.3 < 0.7 < found.max() <= 1
    assert found[truth[:8]].mean() > found[~truth[:8]].mean() + 0.4


def test_preview_marks_what_is_uncertain(trained, batch):
    task, *_ = trained
    x, y = (part.numpy() for part in task.pretext(batch, seeds(5)))
    logits = np.zeros_like(y)
    rows = task.preview(x, y, logits + 100)
    captions = ["image", "moving (gray: unknown)", "predicted"]
    assert [caption for _, caption in rows[0]] == captions
    np.testing.assert_array_equal(rows[0][1][0], 255 * y[0].repeat(3, -1))
    np.testing.assert_array_equal(rows[2][1][0], 127.5)
    np.testing.assert_array_equal(rows[0][2][0], 255)
    assert len(task.preview(x, y)[0]) == 2


def test_data_without_the_column_names_the_function_that_adds_it(task, batch):
    images = kssl.data.from_array(batch["image"])
    with pytest.raises(ValueError, match=r"`moving`, .*with_motion_masks\(clips\)"):
        task.dataset(images, 5)
    wrong = kssl.data.from_array(batch["image"], moving=batch["moving"][:, :4])
    with pytest.raises(ValueError, match="`moving` must have one channel"):
        task.dataset(wrong, 5)
    with pytest.raises(ValueError, match="encoder must take images"):
        kssl.tasks.MovingObjects(kssl.encoders.resnet((SIZE, SIZE, 1), width=2, blocks=(1,)))
