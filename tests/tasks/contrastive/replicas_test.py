"""Three replicas with an uneven last batch give what one gives, in another process with three devices.

Two replicas with an uneven batch are in the conformance test, for all tasks. Here are the tasks with state
that replicas share, and the losses that compare all images, value and gradient.
"""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, 3 * [tf.config.LogicalDeviceConfiguration()])
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # takes long
import keras
import keras_ssl as kssl

rng = np.random.default_rng(0)
pixels = rng.integers(0, 256, (11, 8, 8, 3), np.uint8)
images = kssl.data.from_array(pixels, np.arange(11) % 4)

def make(kind):
    keras.utils.set_random_seed(0)
    encoder = kssl.encoders.resnet((8, 8, 3), width=2, blocks=(1,), synchronized=True)
    task = kind(encoder)
    task.compile(keras.optimizers.SGD(0.1))
    x, _ = next(iter(task.dataset(images, 6)))
    task(x)
    return task

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1", "CPU:2"])
found = {}
for kind in (kssl.tasks.MoCo, kssl.tasks.BYOL):
    one = make(kind)
    start = one.get_weights()
    with strategy.scope():
        three = make(kind)
    three.set_weights(start)
    # Batches of 6 and 5 images: the last one is split into 2, 2 and 1.
    logs = [t.fit(t.dataset(images, 6), verbose=0).history for t in (one, three)]
    weights = list(zip(start, one.get_weights(), three.get_weights()))
    changes = [np.abs(a - old).max() for old, a, _ in weights if a.dtype.kind == "f"]
    errors = [np.abs(a - b).max() / max(1e-2, np.abs(a - old).max()) for old, a, b in weights]
    found[kind.__name__] = {
        "logs": logs,
        "change": float(max(changes)),
        "error": float(max(errors)),  # relative to the change of the weight
    }

# The losses alone, of embeddings: value and gradient, on 2, 2 and 1 images.
def normal(*shape):
    return rng.normal(size=shape).astype("float32")

views, labels = normal(5, 2, 7), np.arange(5) % 3

def loss_and_gradient(loss, labels, z):
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = kssl.training.distribute.balance(loss(labels, z), z)
    return value, tape.gradient(value, z)

for loss, z in (
    (kssl.losses.NTXent(0.05), views),
    (kssl.losses.SupervisedContrastive(0.1), views),
    (kssl.losses.SupervisedContrastive(0.1, "inside"), views),
    (kssl.losses.AlignmentUniformity(), views),
    (kssl.losses.PredictiveCoding(2), normal(5, 3, 5, 4, 7)),
    (kssl.losses.MultiscaleInfoNCE((4, 9)), normal(5, 2, 15, 7)),
    *((kssl.losses.InfoMax(bound), normal(5, 4, 7)) for bound in ("JSD", "InfoNCE", "DV")),
):
    def part():
        index = tf.distribute.get_replica_context().replica_id_in_sync_group
        mine = slice(2 * index, tf.minimum(2 * index + 2, 5))
        x = tf.ensure_shape(tf.constant(z)[mine], (None, *z.shape[1:]))
        return loss_and_gradient(loss, tf.constant(labels)[mine], x)

    expected, gradient = loss_and_gradient(loss, labels, tf.constant(z))
    values, gradients = tf.function(lambda: strategy.run(part))()
    # Keras averages over the replicas, whatever their numbers of images.
    weighted = sum(n * v for n, v in zip((2, 2, 1), strategy.experimental_local_results(values)))
    parts = np.concatenate(strategy.experimental_local_results(gradients))
    gradient = gradient.numpy()
    error = abs(parts - gradient).max() / abs(gradient).max()
    found.setdefault("losses", []).append((float(expected), float(weighted) * 3 / 5, float(error)))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=900
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["MoCo", "BYOL"])
def test_three_replicas_with_an_uneven_batch_match_one(found, name):
    one, three = found[name]["logs"]
    assert set(one) == set(three)
    for metric, value in one.items():
        # Similarities that are equal but for rounding may count as right or wrong.
        tolerance = 0.1 if metric == "accuracy" else 1e-5
        assert three[metric] == pytest.approx(value, rel=1e-5, abs=tolerance), metric
    assert found[name]["change"] > 1e-2
    assert found[name]["error"] < 2e-3


def test_losses_and_gradients_of_three_replicas_match_one(found):
    for expected, value, error in found["losses"]:
        assert value == pytest.approx(expected, rel=1e-5)
        assert error < 1e-5
