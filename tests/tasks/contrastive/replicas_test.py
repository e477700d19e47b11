"""Three replicas with an uneven last batch give what one gives, in another process with three devices."""

import json
import subprocess
import sys

import pytest

from keras_ssl.tasks import TASKS

PROGRAM = """
import json, sys
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, 3 * [tf.config.LogicalDeviceConfiguration()])
import keras
import keras_ssl as kssl

rng = np.random.default_rng(0)
pixels = rng.integers(0, 256, (11, 8, 8, 3), np.uint8)
images = kssl.data.from_array(pixels, np.arange(11) % 4)

def make(row):
    keras.utils.set_random_seed(0)
    encoder = kssl.encoders.resnet((8, 8, 3), width=2, blocks=(1,), synchronized=True)
    task = row.task(encoder)
    task.compile(keras.optimizers.SGD(0.1))
    x, _ = next(iter(task.dataset(images, 6)))
    task(x)
    return task

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1", "CPU:2"])
found = {}
for row in kssl.tasks.TASKS:
    if row.family != "contrastive":
        continue
    one = make(row)
    start = one.get_weights()
    with strategy.scope():
        three = make(row)
    three.set_weights(start)
    # Batches of 6 and 5 images: the last one is split into 2, 2 and 1.
    losses = [t.fit(t.dataset(images, 6), verbose=0).history["loss"][0] for t in (one, three)]
    weights = list(zip(start, one.get_weights(), three.get_weights()))
    changes = [np.abs(a - old).max() for old, a, _ in weights]
    errors = [np.abs(a - b).max() / max(1e-2, np.abs(a - old).max()) for old, a, b in weights]
    found[row.name] = {
        "losses": losses,
        "change": float(max(changes)),
        "error": float(max(errors)),  # relative to the change of the weight
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=900
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", [row.name for row in TASKS if row.family == "contrastive"])
def test_three_replicas_with_an_uneven_batch_match_one(found, name):
    one, three = found[name]["losses"]
    assert three == pytest.approx(one, rel=1e-5)
    assert found[name]["change"] > 1e-2
    assert found[name]["error"] < 2e-3
