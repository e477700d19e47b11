"""Small models whose answers name their version."""

import pytest
import tensorflow as tf


def write_version(folder, version):
    """Writes a SavedModel that adds its version to a column `x` (N, 1) and fails for x < 0."""
    module = tf.Module()
    module.version = tf.Variable(float(version))

    def add(x):
        with tf.control_dependencies(
            [tf.debugging.assert_non_negative(x, "x must not be negative")]
        ):
            return {"y": x + module.version}

    spec = tf.TensorSpec((None, 1), tf.float32, "x")
    tf.saved_model.save(
        module, str(folder / str(version)), tf.function(add, input_signature=[spec])
    )


@pytest.fixture(scope="session")
def counter(tmp_path_factory):
    """Folder of a model `counter` with the versions 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("counters") / "counter"
    for version in (1, 2, 3):
        write_version(folder, version)
    return folder
