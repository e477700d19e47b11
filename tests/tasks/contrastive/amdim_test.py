import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl import encoders, losses
from keras_ssl.ops import augment, recipes
from keras_ssl.tasks.contrastive import amdim


@pytest.fixture(scope="module")
def task():
    keras.utils.set_random_seed(0)
    return kssl.tasks.AMDIM(encoders.local_resnet((32, 32, 3), 2, (1, 1)), dimensions=6)


@pytest.fixture
def plain():
    """A recipe that changes nothing."""
    return recipes.Recipe()


def test_both_views_are_mirrored_alike(noise, seeds, plain):
    encoder = encoders.local_resnet((32, 32, 3), 2, (1,))
    task = kssl.tasks.AMDIM(encoder, shift=0, recipe=plain)
    x, y = task.pretext({"image": noise, "id": np.arange(40)}, seeds(40))
    np.testing.assert_array_equal(y, range(40))
    np.testing.assert_array_equal(x["views"][:, 0], x["views"][:, 1])
    as_is = (x["views"][:, 0] == noise).numpy().all((1, 2, 3))
    mirrored = (x["views"][:, 0] == noise[:, :, ::-1]).numpy().all((1, 2, 3))
    np.testing.assert_array_equal(as_is, ~mirrored)
    assert 5 < as_is.sum() < 35


def test_views_are_shifted_and_augmented_independently(noise, seeds):
    encoder = encoders.local_resnet((32, 32, 3), 2, (1,))
    shifts = kssl.tasks.AMDIM(encoder, recipe=recipes.Recipe())
    x, _ = shifts.pretext({"image": noise, "id": np.arange(40)}, seeds(40))
    # At the center, where no border is mirrored, a view is the image moved by up to 4 pixels.
    moves = []
    for views, image in zip(x["views"].numpy(), noise.astype("float32"), strict=True):
        image = image if any((views[0][8:24, 8:24] == image[8 + i : 24 + i, 8 + j : 24 + j]).all()
                             for i in range(-4, 5) for j in range(-4, 5)) else image[:, ::-1]  # fmt: skip
        found = [
            (i, j) for view in views for i in range(-4, 5) for j in range(-4, 5)
            if (view[8:24, 8:24] == image[8 + i : 24 + i, 8 + j : 24 + j]).all()
        ]  # fmt: skip
        assert len(found) == 2
        moves.append(found)
    moves = np.array(moves)  # (40, 2 views, 2 axes)
    assert moves.min() == -4
    assert moves.max() == 4
    assert (moves[:, 0] != moves[:, 1]).any(axis=1).mean() > 0.8
    colors = kssl.tasks.AMDIM(encoder, shift=0)
    x, _ = colors.pretext({"image": noise, "id": np.arange(40)}, seeds(40))
    assert (np.abs(x["views"][:, 0] - x["views"][:, 1]).max((1, 2, 3)) > 1).mean() > 0.8


def test_places_are_random_in_every_view(task, batch, seeds):
    place = task.pretext(batch, seeds(6))[0]["place"].numpy()
    assert place.shape == (6, 2)
    assert len(set(place.ravel())) == 12
    assert ((place >= 0) & (place < 1)).all()


def test_the_prediction_has_the_embeddings_of_all_levels(task, noise):
    views = tf.cast(noise[:6].reshape(3, 2, 32, 32, 3), tf.float32)
    place = np.float32([[0, 0.999], [0.5, 0.04], [0.2, 0.7]])
    found = task({"views": views, "place": place}).numpy()
    assert task.locations == (25, 49)
    assert found.shape == (3, 2, 2 + 25 + 49, 6)
    flat = tf.reshape(views, [6, 32, 32, 3])
    maps = encoders.maps(task.encoder)(flat)
    vector = task.encoder(flat)[:, None, None]
    expected = [
        np.reshape(head(values), (3, 2, -1, 6))
        for head, values in zip(task.heads, (vector, maps["stage3"], maps["stage2"]), strict=True)
    ]
    np.testing.assert_allclose(found[:, :, :1], expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[:, :, 2:27], expected[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[:, :, 27:], expected[2], rtol=1e-4, atol=1e-5)
    for image, view in np.ndindex(3, 2):
        location = int(place[image, view] * 25)
        np.testing.assert_array_equal(found[image, view, 1], found[image, view, 2 + location])


def test_swapping_views_and_places_swaps_the_prediction_and_keeps_the_loss(task, noise):
    views = tf.cast(noise[:8].reshape(4, 2, 32, 32, 3), tf.float32)
    place = np.random.default_rng(0).uniform(size=(4, 2)).astype("float32")
    loss = losses.MultiscaleInfoNCE(task.locations, reduction="none")
    found = task({"views": views, "place": place})
    swapped = task({"views": views[:, ::-1], "place": place[:, ::-1]})
    np.testing.assert_allclose(swapped, found[:, ::-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(loss([0] * 4, swapped), loss([0] * 4, found), rtol=1e-4)


def test_a_pixel_changes_the_locations_that_see_it_only(task, noise):
    views = noise[:4].reshape(2, 2, 32, 32, 3).astype("float32")
    changed = views.copy()
    changed[0, 1, 0, 0] = 255 - changed[0, 1, 0, 0]
    place = np.full((2, 2), 0.9, "float32")
    before, after = (task({"views": v, "place": place}).numpy() for v in (views, changed))
    different = (before != after).any(axis=-1)
    # The vector of the view, and the upper left location of either map.
    expected = np.zeros_like(different)
    expected[0, 1, [0, 2, 27]] = True
    np.testing.assert_array_equal(different, expected)


def test_heads_start_as_normalized_copies():
    head = amdim.embedding_head(3, 5, "head")
    x = np.random.default_rng(0).normal(2, 3, size=(4, 2, 2, 3)).astype("float32")
    found = head(x, training=True).numpy()
    normalized = (x - x.mean((0, 1, 2))) / x.std((0, 1, 2))
    np.testing.assert_allclose(found[..., :3], normalized, atol=0.05)
    assert (found.std((0, 1, 2)) > 0.5).all()  # also of the channels that are no copy
    assert amdim.embedding_head(5, 3, "head")(np.ones((1, 1, 1, 5))).shape == (1, 1, 1, 3)
    kinds = [v for v in head.layers if isinstance(v, keras.layers.BatchNormalization)]
    assert [(type(v), v.synchronized) for v in kinds] == [(kssl.layers.BatchNormalization, True)]


def test_metrics_match_a_loop():
    y = np.random.default_rng(1).normal(size=(4, 2, 7, 3)).astype("float32")
    y[:2, 1, 2:] += y[:2, 0, :1]  # some are found
    right, total = np.zeros(4), 0
    for view, other in ((0, 1), (1, 0)):
        for source, targets in ((0, range(2, 4)), (0, range(4, 7)), (1, range(2, 4))):
            for b in range(4):
                hits = [
                    all(y[b, view, source] @ y[b, other, t] > y[b, view, source] @ y[n, other, u]
                        for n in range(4) if n != b for u in targets)
                    for t in targets
                ]  # fmt: skip
                right[b] += np.mean(hits) / 6
    accuracy = amdim.LocalContrast((2, 3))
    np.testing.assert_allclose(accuracy.found(None, y), right, rtol=1e-6)
    assert 0.05 < right.mean() < 0.95
    accuracy.update_state(np.zeros(4), y)
    assert float(accuracy.result()) == pytest.approx(right.mean(), rel=1e-6)
    penalty = amdim.LocalContrast((2, 3), penalty=0.2, name="penalty")
    penalty.update_state(np.zeros(4), y)
    loss = losses.MultiscaleInfoNCE((2, 3), penalty=0.2)
    none = losses.MultiscaleInfoNCE((2, 3), penalty=0)
    total = float(loss(np.zeros(4), y)) - float(none(np.zeros(4), y))
    assert float(penalty.result()) == pytest.approx(total, rel=1e-4)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(penalty))
    assert copy.get_config() == penalty.get_config()


def test_takes_other_encoders_with_two_maps(noise):
    task = kssl.tasks.AMDIM(encoders.resnet((32, 32, 3), 2, (1, 1, 1, 1)), dimensions=4)
    assert task.locations == (4 * 4, 8 * 8)
    views = noise[:4].reshape(2, 2, 32, 32, 3).astype("float32")
    assert task({"views": views, "place": np.zeros((2, 2))}).shape == (2, 2, 2 + 16 + 64, 4)
    for encoder, sizes in (
        (encoders.resnet((32, 32, 3), 2, (1,)), "32x32"),
        (encoders.resnet((None, None, 3), 2, (1, 1)), "NonexNone, NonexNone"),
    ):
        with pytest.raises(ValueError, match=f"at least two stages .* got maps of {sizes}: use"):
            kssl.tasks.AMDIM(encoder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dimensions": 0}, r"dimensions must be an integer \(int64\) of at least 1, got 0"),
        ({"clip": 0}, "clip must be a positive number, got 0"),
        ({"penalty": -1}, "penalty must be a number of at least 0, got -1"),
        ({"shift": 1.0}, r"shift must be in 0..0.5, got 1.0"),
        ({"recipe": "AMDIM_TINY"}, "recipe must be a Recipe or one of .*'AMDIM_TINY'"),
        ({"recipe": "SIMCLR"}, "recipe must have flip=0, since AMDIM mirrors both views alike"),
    ],
)
def test_invalid_arguments(task, arguments, message):
    with pytest.raises(ValueError, match=message):
        kssl.tasks.AMDIM(task.encoder, **arguments)


def test_warns_of_an_encoder_that_pads(task):
    with pytest.warns(
        UserWarning, match="pads its input, so that locations may see the whole image"
    ):
        kssl.tasks.AMDIM(encoders.resnet((32, 32, 3), width=2, blocks=(1, 1)))


def test_the_shift_replaces_the_crop(task):
    found = [kssl.tasks.AMDIM(task.encoder, recipe=r).shift for r in ("AMDIM_SMALL", "AMDIM")]
    assert found == [0.125, 0]
    assert kssl.tasks.AMDIM(task.encoder, shift=0.2, recipe="AMDIM").shift == 0.2


def test_defaults_of_the_authors(task):
    loss = task.default_loss()
    assert (loss.clip, loss.penalty, loss.locations) == (20, 0.05, (25, 49))
    optimizer = task.default_optimizer(1000)
    assert type(optimizer) is keras.optimizers.Adam
    assert optimizer.get_config()["learning_rate"]["config"]["warmup_target"] == 2e-4
    assert task.architecture is encoders.local_resnet


def test_recipe_without_crop_keeps_the_shift_alone(task, batch, seeds):
    """`view` of each half of the batch has its own seeds."""
    only = dataclasses.replace(recipes.AMDIM_SMALL, gray=0.0)
    task = kssl.tasks.AMDIM(task.encoder, shift=0, recipe=only)
    x, _ = task.pretext(batch, seeds(6))
    mirror, _, _, _, *seeds_of = amdim.split(seeds(6), 6)
    image = augment.random_shift(batch["image"], mirror, 0, flip=True)
    for k, seed in enumerate(seeds_of):
        np.testing.assert_array_equal(x["views"][:, k], augment.view(image, seed, only))
