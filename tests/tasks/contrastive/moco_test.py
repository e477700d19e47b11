import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl


def make(encoder, **arguments):
    return kssl.tasks.MoCo(encoder, **{"queue": 24, "dimensions": 8, **arguments})


def normalized(z):
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def prediction(task, query, keys, queue):
    """Oracle: similarity with the positive, soft maximum and maximum over the queue."""
    negative, t = query.astype(np.float64) @ queue.T, task.temperature
    soft = t * np.log(np.exp(negative / t).sum(-1))
    return np.stack([(query * keys).sum(-1), soft, negative.max(-1)], axis=-1)


def keys_by_groups(task, images, order, groups):
    """Oracle: sorts the images by their random numbers and normalizes each group by itself."""
    order, size = np.argsort(order), -(-len(images) // groups)
    keys = np.zeros((len(images), task.dimensions), np.float32)
    for start in range(0, groups * size, size):
        rows = order[np.arange(start, start + size) % len(images)]
        z = task.key_head(task.key_encoder(images[rows], training=True)).numpy()
        for row, key, place in zip(rows, z, range(start, start + size), strict=True):
            if place < len(images):
                keys[row] = key
    return normalized(keys)


def queries_by_groups(task, images, groups):
    """Oracle: embeds consecutive parts of the batch, the last one filled up with the first images."""
    size = -(-len(images) // groups)
    rows = np.arange(groups * size).reshape(groups, size) % len(images)
    parts = [task.head(task.encoder(images[part], training=True)) for part in rows]
    return normalized(np.concatenate(parts)[: len(images)])


@pytest.mark.parametrize(("groups", "number"), [(1, 6), (2, 6), (3, 6), (4, 6), (8, 5)])
def test_keys_are_normalized_in_groups(encoder, batch, seeds, groups, number):
    task = make(encoder, groups=groups)
    x, _ = task.pretext({k: v[:number] for k, v in batch.items()}, seeds(number))
    found = task(x).numpy()
    assert found.shape == (number, 1, 3)
    np.testing.assert_allclose(found[:, 0], one_sided(task, x), atol=1e-4)


def test_the_order_differs_from_batch_to_batch_and_follows_from_the_seed(encoder, batch, seeds):
    task = make(encoder)
    order = task.pretext(batch, seeds(6))[0]["order"].numpy()
    assert ((order >= 0) & (order < 1)).all()
    assert len(set(order)) == 6
    np.testing.assert_array_equal(task.pretext(batch, seeds(6))[0]["order"], order)
    assert not np.array_equal(task.pretext(batch, seeds(6) + 1)[0]["order"], order)


@pytest.mark.parametrize(("groups", "number"), [(1, 6), (2, 6), (4, 6), (8, 5)])
@pytest.mark.parametrize("symmetric", [False, True])
def test_appends_the_keys_once_after_the_similarities(
    encoder, batch, seeds, symmetric, groups, number
):
    task = make(encoder, symmetric=symmetric, groups=groups)
    x, _ = task.pretext({k: v[:number] for k, v in batch.items()}, seeds(number))
    before = task.earlier.keys().numpy()
    similarity = task(x, training=True).numpy()
    after, views = task.earlier.keys().numpy(), np.moveaxis(x["views"].numpy(), 1, 0)
    appended = (1 + symmetric) * number
    np.testing.assert_array_equal(after[appended:], before[appended:])
    for k in range(1 + symmetric):
        keys = keys_by_groups(task, views[1 - k], x["order"].numpy(), groups)
        np.testing.assert_allclose(after[:appended][k :: 1 + symmetric], keys, atol=1e-4)
        query = queries_by_groups(task, views[k], groups)
        expected = prediction(task, query, keys, before)
        np.testing.assert_allclose(similarity[:, k], expected, atol=1e-4)
    # In evaluation nothing changes.
    task(x)
    np.testing.assert_array_equal(task.earlier.keys(), after)


def test_each_view_is_a_query_if_symmetric(encoder, batch, seeds):
    task = make(encoder, symmetric=True)
    x, _ = task.pretext(batch, seeds(6))
    found = task(x).numpy()
    swapped = task({**x, "views": x["views"][:, ::-1]}).numpy()
    assert found.shape == (6, 2, 3)
    np.testing.assert_allclose(found[:, 0], one_sided(task, x), atol=1e-4)
    np.testing.assert_allclose(found[:, 1], swapped[:, 0], atol=1e-4)


def one_sided(task, x):
    query = normalized(task.head(task.encoder(x["views"][:, 0])).numpy())
    keys = keys_by_groups(task, x["views"][:, 1].numpy(), x["order"].numpy(), task.groups)
    return prediction(task, query, keys, task.earlier.keys().numpy())


def test_the_loss_is_that_of_all_negatives(encoder, batch, seeds):
    task = make(encoder)
    x, y = task.pretext(batch, seeds(6))
    query = normalized(task.head(encoder(x["views"][:, 0])).numpy())
    keys = keys_by_groups(task, x["views"][:, 1].numpy(), x["order"].numpy(), task.groups)
    negative = query @ task.earlier.keys().numpy().T
    similarity = np.concatenate([(query * keys).sum(-1, keepdims=True), negative], axis=1)
    expected = kssl.losses.InfoNCE(task.temperature)(y, similarity)
    assert float(task.default_loss()(y, task(x))) == pytest.approx(float(expected), abs=1e-4)


@keras.saving.register_keras_serializable(package="moco_test")
def logarithm(x):
    return tf.sign(x) * tf.math.log(tf.abs(x) + 1e-6)


def normalizing(kind):
    """An encoder whose features depend on the statistics of the batch, in 48 channels."""
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    x = kind(epsilon=1e-8, name="stage1")(x)
    # Its inputs are all 0 or 200, and the mean shifts both: the logarithm makes the shift large.
    return keras.Model(inputs, keras.layers.Activation(logarithm)(x))


def test_batch_statistics_give_the_positive_away_without_groups():
    """Accuracy 1.00 and 0.31, if only the keys are split 0.75; 0.004 without any shortcut."""
    images = 200 * np.random.default_rng(0).integers(0, 2, (1536, 4, 4, 3))
    images = kssl.data.from_array(images.astype(np.uint8))
    accuracy = {}
    for groups in (1, 8):
        keras.utils.set_random_seed(0)
        task = make(
            normalizing(kssl.layers.BatchNormalization),
            **{
                "groups": groups,
                "queue": 256,
                "dimensions": 128,
                "recipe": kssl.ops.recipes.Recipe(),
            },
        )
        task.compile(keras.optimizers.SGD(0.0))
        history = task.fit(task.dataset(images, 256, epochs=2), epochs=2, verbose=0).history
        accuracy[groups] = history["accuracy"][-1]  # when the queue holds no random keys any more
    assert accuracy[1] > 0.9
    assert accuracy[8] < 0.4


def test_the_key_encoder_is_a_moving_average(encoder, noise):
    task = make(encoder, momentum=0.75)
    task.compile(keras.optimizers.SGD(0.5))
    images = kssl.data.from_array(noise[:16])
    start = [v.numpy() for v in encoder.trainable_variables]
    task.fit(task.dataset(images, 8), verbose=0, steps_per_epoch=1)
    after = [v.numpy() for v in encoder.trainable_variables]
    task.fit(task.dataset(images, 8), verbose=0, steps_per_epoch=1)
    pairs = zip(task.key_encoder.variables, encoder.variables, strict=True)
    found = [mine.numpy() for mine, theirs in pairs if theirs.trainable]
    for mine, old, new in zip(found, start, after, strict=True):
        np.testing.assert_allclose(mine, 0.75 * old + 0.25 * new, rtol=1e-5, atol=1e-6)
    assert not task.key_encoder.trainable_variables


def test_no_gradient_flows_into_keys(encoder, batch, seeds):
    task = make(encoder)
    x, _ = task.pretext(batch, seeds(6))
    with tf.GradientTape() as tape:
        tape.watch([v.value for v in task.key_encoder.variables])
        loss = tf.reduce_sum(task(x, training=True))
    assert tape.gradient(loss, [v.value for v in task.key_encoder.variables]) == [None] * len(
        task.key_encoder.variables
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"momentum": -0.1}, r"momentum must be in 0..1, got -0.1"),
        ({"temperature": 0}, "temperature must be a positive number, got 0"),
        ({"groups": 0}, r"groups must be an integer \(int64\) of at least 1, got 0"),
        ({"symmetric": "no"}, "symmetric must be True or False, got 'no'"),
        ({"queue": 0}, r"queue must be an integer \(int64\) of at least 1, got 0"),
    ],
)
def test_invalid_arguments(encoder, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(encoder, **arguments)


@pytest.mark.parametrize(
    ("arguments", "batch_size", "message"),
    [
        ({}, np.int64(25), "batch_size must be at most 24, since each image adds 1 of 24 keys"),
        ({"symmetric": True}, 13, "batch_size must be at most 12, since each image adds 2 of 24"),
        ({}, 1, "batch_size must be at least 2, since MoCo compares"),
        ({}, 2.5, "batch_size must be an integer"),
    ],
)
def test_invalid_batch_sizes(encoder, noise, arguments, batch_size, message):
    with pytest.raises(ValueError, match=message):
        make(encoder, **arguments).dataset(kssl.data.from_array(noise), batch_size)


def test_keras_batch_normalization_splits_the_keys_only(batch, seeds):
    encoder = normalizing(keras.layers.BatchNormalization)
    with pytest.warns(UserWarning, match="'stage1' normalizes the queries over the whole batch"):
        task = make(encoder, groups=2)
    x, _ = task.pretext({**batch, "image": batch["image"][:, :4, :4]}, seeds(6))
    before = task.earlier.keys().numpy()
    similarity = task(x, training=True).numpy()
    keys = keys_by_groups(task, x["views"][:, 1].numpy(), x["order"].numpy(), 2)
    query = queries_by_groups(task, x["views"][:, 0].numpy(), 1)
    expected = prediction(task, query, keys, before)
    np.testing.assert_allclose(similarity[:, 0], expected, atol=1e-4)


@pytest.mark.parametrize("policy", ["float64", "bfloat16"])
def test_warns_of_normalization_that_cannot_be_split(policy):
    inputs = keras.Input((4, 4, 3))
    x = kssl.layers.BatchNormalization(dtype=policy, name="stage1")(inputs)
    encoder = keras.Model(inputs, keras.layers.GlobalAveragePooling2D(dtype="float32")(x))
    with pytest.warns(UserWarning, match="'stage1' normalizes the queries .* float32 variables"):
        make(encoder)


def test_images_may_have_weights(encoder, batch, seeds):
    task = make(encoder, symmetric=True)
    task.compile("sgd")
    x, y = task.pretext(batch, seeds(6))
    assert task.test_on_batch(x, y, sample_weight=np.zeros(6))[0] == 0
    assert task.test_on_batch(x, y, sample_weight=np.ones(6))[0] > 0


def test_two_replicas_match_one(two_replicas, noise):
    """A symmetric loss, in training and evaluation, with four groups of four images."""
    images = kssl.data.from_array(noise[:32, :8, :8])

    def create():
        encoder = kssl.encoders.resnet((8, 8, 3), width=2, blocks=(1,), synchronized=True)
        task = make(encoder, queue=64, groups=4, symmetric=True)
        task.compile(keras.optimizers.SGD(0.1))
        return task

    one = create()
    with two_replicas.scope():
        two = create()
    two.set_weights(one.get_weights())
    losses = [t.fit(t.dataset(images, 16), verbose=0).history["loss"] for t in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    losses = [t.evaluate(t.dataset(images, 16), verbose=0)[0] for t in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
