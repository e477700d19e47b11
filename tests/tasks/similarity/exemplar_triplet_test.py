import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl


def make(**arguments):
    encoder = kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,))
    return kssl.tasks.ExemplarTriplet(encoder, **arguments)


def seeds(number, epoch=0):
    return tf.stack([tf.fill(number, np.int64(epoch)), tf.range(number, dtype=tf.int64)], 1)


def test_input_is_two_transformations_of_one_seed_patch(noise):
    task, exemplar = make(), kssl.tasks.Exemplar(make().encoder, num_images=40)
    batch = {"image": noise[:6], "id": np.arange(6)}
    x, y = task.pretext(batch, seeds(6))
    assert x.shape == (6, 2, 24, 24, 3)
    np.testing.assert_array_equal(y, range(6))
    assert (np.abs(x[:, 0] - x[:, 1]).max((1, 2, 3)) > 1).all()
    np.testing.assert_array_equal(x[:, 0], exemplar.pretext(batch, seeds(6))[0])  # the same patch


def test_prediction_is_similarities_of_all_pairs(noise):
    task = make()
    x, y = task.pretext({"image": noise[:5], "id": np.arange(30, 35)}, seeds(5))
    similarities = task(x).numpy()
    embedding = task.head(task.encoder.call(tf.reshape(x, (10, 24, 24, 3)))).numpy()
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    embedding = embedding.reshape(5, 2, -1)
    np.testing.assert_allclose(
        similarities, embedding[:, 0] @ embedding[:, 1].T, rtol=1e-3, atol=1e-4
    )
    labels, weight = task.late_labels(x, y, similarities)
    np.testing.assert_array_equal(labels, range(5))  # the positions in the batch, not the ids
    assert weight is None


def test_negatives_come_from_all_replicas(noise, two_replicas):
    with two_replicas.scope():
        task = make()
    x, _ = task.pretext({"image": noise[:5], "id": np.arange(5)}, seeds(5))
    whole = task(x).numpy()
    parts = two_replicas.experimental_distribute_values_from_function(
        lambda c: x[:3] if c.replica_id_in_sync_group == 0 else x[3:]
    )

    @tf.function
    def step(part):
        similarities = task(part)
        return similarities, task.late_labels(part, None, similarities)[0]

    similarities, labels = two_replicas.run(step, args=(parts,))
    found = [np.asarray(s) for s in two_replicas.experimental_local_results(similarities)]
    np.testing.assert_allclose(np.concatenate(found), whole, rtol=1e-4, atol=1e-5)
    columns = [np.asarray(p) for p in two_replicas.experimental_local_results(labels)]
    np.testing.assert_array_equal(np.concatenate(columns), range(5))


def test_learns_to_distinguish_patches(gratings):
    task = kssl.tasks.ExemplarTriplet(kssl.encoders.resnet((32, 32, 3), width=8, blocks=(1, 1)))
    task.compile(keras.optimizers.Adam(0.01))
    images = kssl.data.from_array(gratings)
    history = task.fit(task.dataset(images, 16, epochs=40), epochs=40, verbose=0).history
    assert np.mean(history["accuracy"][-5:]) > 0.2  # chance: 0.0625


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"margin": 0}, "margin"),
        ({"margin": 2.5}, "margin"),
        ({"dimensions": 0}, "dimensions"),
        ({"patch": 33}, r"patch must be in 1\.\.32"),
    ],
)
def test_refuses(arguments, words):
    with pytest.raises(ValueError, match=words):
        make(**arguments)


def test_refuses_batches_of_one(noise):
    with pytest.raises(ValueError, match="batch_size must be at least 2"):
        make().dataset(kssl.data.from_array(noise), 1)
    with pytest.raises(ValueError, match="batch_size"):
        make().dataset(kssl.data.from_array(noise[:5]), 4)
