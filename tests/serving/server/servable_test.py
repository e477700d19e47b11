"""Executors of a servable, and which signatures run on slices of their rows."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from keras_ssl.serving.server.servable import MAX_SELECTIONS, Servable

NAMES = [f"y{i}" for i in range(6)]


@pytest.fixture(scope="module")
def servable(tmp_path_factory):
    """y0 to y5 = x to x + 5 in the default signature; `gram` is x x', and `mean` the mean of x."""
    path = str(tmp_path_factory.mktemp("outputs") / "1")
    spec = [tf.TensorSpec((None, 1), tf.float32, "x")]
    several = tf.function(lambda x: {n: x + i for i, n in enumerate(NAMES)}, spec)
    others = {
        "gram": lambda x: {"y": x @ tf.transpose(x)},
        "mean": lambda x: {"y": tf.reduce_mean(x), "x": x},
    }
    signatures = {
        "serving_default": several,
        **{n: tf.function(f, spec) for n, f in others.items()},
    }
    tf.saved_model.save(tf.Module(), path, signatures)
    servable = Servable(path)
    yield servable
    servable.close()


def test_selections_of_outputs_share_executors(servable):
    """There are 1,956 ordered selections of six outputs, and each executor takes 0.7 MB."""
    x = np.ones((2, 1), np.float32)
    for size in range(1, 7):
        for names in itertools.permutations(NAMES, size):
            outputs = servable.run({"x": x}, outputs=names)
            assert {name: array[0, 0] for name, array in outputs.items()} == {
                name: 1 + NAMES.index(name) for name in names
            }
    # All outputs, in addition.
    assert len(servable._callables["serving_default"]) <= MAX_SELECTIONS + 1


def test_which_signatures_run_on_slices(servable):
    assert servable.sliceable("serving_default")
    assert servable.sliceable("serving_default", ("y3",))
    assert not servable.sliceable("gram")
    assert not servable.sliceable("mean")
    assert servable.sliceable("mean", ("x",))
