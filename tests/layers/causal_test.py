import numpy as np
import pytest
import tensorflow as tf

from keras_ssl import layers


def reach(blocks, rows=5, columns=4):
    """Which of the outputs (r, c) depend on which of the inputs: (rows, columns, rows, columns) bool."""
    network = layers.causal_rows((rows, columns), channels=3, hidden=6, blocks=blocks)
    rng = np.random.default_rng(0)
    network.set_weights([rng.normal(size=w.shape) for w in network.get_weights()])
    x = tf.Variable(rng.normal(size=(8, rows, columns, 3)).astype("float32"))
    with tf.GradientTape(persistent=True) as tape:
        total = tf.reduce_sum(network(x), axis=[0, 3])
    jacobian = tape.jacobian(total, x, experimental_use_pfor=False)
    return np.abs(jacobian).max(axis=(2, 5)) > 0


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_an_output_depends_on_the_rows_above_it_only(blocks):
    found = reach(blocks)
    rows, columns = np.mgrid[:5, :4]
    above = rows[:, :, None, None] - rows
    aside = np.abs(columns[:, :, None, None] - columns)
    expected = (above >= 0) & (above <= blocks) & (aside <= blocks)
    np.testing.assert_array_equal(found, expected)


def test_the_first_rows_do_not_depend_on_the_size_of_the_grid():
    small, large = (layers.causal_rows((rows, 3), 2, 4, 2) for rows in (3, 5))
    large.set_weights(small.get_weights())
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 2)).astype("float32")
    np.testing.assert_allclose(small(x[:, :3]), large(x)[:, :3], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["channels", "hidden", "blocks"])
def test_invalid_arguments(name):
    arguments = {"channels": 2, "hidden": 2, "blocks": 1, name: 0}
    with pytest.raises(ValueError, match=rf"{name} must be an integer .*of at least 1, got 0"):
        layers.causal_rows((3, 3), **arguments)
    with pytest.raises(ValueError, match="rows must be an integer"):
        layers.causal_rows((0, 3), 2)
