import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.ops import recipes

PLAIN = recipes.Recipe()


def make(encoder, **arguments):
    return kssl.tasks.PIRL(
        encoder, **{"num_images": 8, "negatives": 5, "dimensions": 6, **arguments}
    )


def normalized(z):
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


@pytest.fixture
def marked():
    """Images whose cells are of one color each: 20 times the number of the cell."""
    cells = np.arange(9).reshape(3, 3).repeat(10, 0).repeat(10, 1)
    image = np.pad(cells, ((1, 1), (1, 1)), mode="edge")[..., None].repeat(3, -1) * 20
    return {"image": np.stack(8 * [image]).astype("uint8"), "id": np.arange(8)}


def test_patches_are_one_per_cell_in_every_order(encoder, marked, seeds, monkeypatch):
    monkeypatch.setattr("keras_ssl.tasks.contrastive.pirl.WHOLE", PLAIN)  # no crop before the cut
    task = make(encoder, recipe=PLAIN)
    x, _ = task.pretext(marked, seeds(8))
    assert x["patches"].shape == (8, 9, 8, 8, 3)
    found = np.round(x["patches"].numpy().mean((2, 3, 4)) / 20).astype(int)
    assert [sorted(row) for row in found.tolist()] == 8 * [[*range(9)]]
    assert len({tuple(row) for row in found.tolist()}) == 8  # of 362,880
    np.testing.assert_allclose(x["image"], marked["image"], atol=1e-3)
    # Every cell comes in every place.
    many = {"image": marked["image"][:1].repeat(200, 0), "id": np.zeros(200, int)}
    seed = tf.stack([tf.range(200, dtype=tf.int64), tf.zeros(200, tf.int64)], 1)
    places = np.round(task.pretext(many, seed)[0]["patches"].numpy().mean((2, 3, 4)) / 20)
    counts = np.stack([(places == cell).sum(0) for cell in range(9)])
    assert counts.min() > 5
    assert counts.max() < 45  # 22 each


def test_each_patch_has_its_own_colors_and_flip(encoder, seeds):
    ramp = np.tile(np.arange(32, dtype="float32")[None, :, None] * 4 + 50, (32, 1, 3))
    task = make(encoder, recipe=recipes.Recipe(flip=0.5, jitter=1.0, brightness=0.4))
    batch = {"image": ramp[None].repeat(8, 0), "id": np.arange(8)}
    x = task.pretext(batch, seeds(8))[0]["patches"].numpy()
    mirrored = (x[:, :, :, 1] > x[:, :, :, -2]).mean((2, 3)) > 0.5
    assert 0.2 < mirrored.mean() < 0.8
    assert any(row.any() and not row.all() for row in mirrored)  # not all patches of an image alike
    slopes = np.abs(x[:, :, 0, 1, 0] - x[:, :, 0, -2, 0])
    assert (np.ptp(slopes, axis=1) > 0).all()  # brightness scales the slope


def test_rotation_by_each_angle(encoder, batch, seeds):
    task = make(encoder, transformation="rotation", recipe=PLAIN)
    number = 40
    images = {"image": batch["image"][:1].repeat(number, 0), "id": np.zeros(number, int)}
    seed = tf.stack([tf.range(number, dtype=tf.int64), tf.zeros(number, tf.int64)], 1)
    x = task.pretext(images, seed)[0]["patches"].numpy()
    assert x.shape == (number, 1, 32, 32, 3)
    turned = [np.rot90(batch["image"][0], k) for k in range(4)]
    found = [[np.abs(image[0] - t).max() < 1e-2 for t in turned].index(True) for image in x]
    assert min(np.bincount(found, minlength=4)) >= 4


def test_both_embeddings_ask_the_bank_and_only_the_image_is_written(encoder, batch, seeds):
    task = make(encoder, momentum=0.25)
    x, y = task.pretext(batch, seeds(6))
    before = task.bank.read(np.arange(8)).numpy()
    first = task.bank.rows.numpy()  # the first epoch writes the first half of them
    ids = batch["id"]
    found = task(x, training=True).numpy()
    image = normalized(task.image_head(encoder(x["image"], training=True)).numpy())
    parts = task.patch_head(encoder.call(tf.reshape(x["patches"], (54, 8, 8, 3)), training=True))
    joint = normalized(task.joint_head(tf.reshape(parts, (6, 54))).numpy())
    drawn = tf.random.stateless_uniform((5,), (0, 0), maxval=8, dtype=tf.int32).numpy()
    rows = np.concatenate([before[ids][:, None], before[drawn][None].repeat(6, 0)], 1)
    scores = np.einsum("bqd,bkd->bqk", np.stack([image, joint], 1), rows) / 0.07
    expected = scores - np.log(np.exp(scores.astype(np.float64)).mean()) - np.log(5)
    expected[:, :, 1:][(drawn[None] == ids[:, None])[:, None].repeat(2, 1)] = -1e9
    np.testing.assert_allclose(found, expected, atol=2e-3)
    mixed = normalized(0.25 * before[ids] + 0.75 * image)
    np.testing.assert_allclose(task.bank.rows.numpy()[ids], mixed, atol=1e-4)
    np.testing.assert_array_equal(task.bank.rows.numpy()[6:], first[6:])
    # lambda weights the transformed image.
    losses = np.log(np.exp(expected - expected[..., :1]).sum(-1))
    for weight in (0.0, 0.2, 1.0):
        loss = make(encoder, weight=weight).default_loss()(y, found)
        expected_loss = ((1 - weight) * losses[:, 0] + weight * losses[:, 1]).mean()
        assert float(loss) == pytest.approx(expected_loss, rel=1e-3)


def test_an_unknown_id_is_an_error(encoder, batch, seeds):
    for wrong in (8, -1):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"must be in 0..7, the rows of"):
            make(encoder).pretext({**batch, "id": np.array([0, 1, 2, 3, 4, wrong])}, seeds(6))
    with pytest.raises(ValueError, match="images must be a tf.data.Dataset of dicts"):
        make(encoder).dataset(np.zeros((8, 32, 32, 3), np.uint8), 4)
    with pytest.raises(ValueError, match="images are 9, more than the num_images=8 of the task's"):
        make(encoder).dataset(kssl.data.from_array(np.zeros((9, 32, 32, 3), np.uint8)), 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 1}, "num_images must be an integer .* of at least 2, got 1"),
        ({"transformation": "shuffle"}, "transformation must be one of jigsaw, rotation, got"),
        ({"grid": 1}, "grid must be an integer .* of at least 2, got 1"),
        ({"grid": 12}, "grid=12 gives patches of 2 pixels, less than 4: choose a smaller grid"),
        ({"weight": 1.1}, "weight must be in 0..1, got 1.1"),
        ({"negatives": 0}, "negatives must be an integer"),
        ({"seed": "a"}, "seed must be an integer .* of at least 0, got 'a'"),
        ({"recipe": "PURL"}, "recipe must be a Recipe or one of .*PIRL"),
    ],
)
def test_invalid_arguments(encoder, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(encoder, **arguments)


def test_images_to_be_rotated_are_square():
    encoder = kssl.encoders.resnet((32, 40, 3), width=2, blocks=(1,))
    with pytest.raises(ValueError, match="'rotation' needs square images, got 32x40"):
        make(encoder, transformation="rotation")


def test_preview(encoder, batch, seeds):
    task = make(encoder, grid=2)
    x, y = task.pretext(batch, seeds(6))
    rows = task.preview(*(tf.nest.map_structure(np.asarray, part) for part in (x, y, task(x))))
    assert [caption[:5] for _, caption in rows[0]] == ["image", *4 * ["patch"]]
    assert rows[0][0][1].startswith("image, log-odds ")
