import numpy as np
import pytest

from keras_ssl.optimizers import sgd_cosine


@pytest.mark.parametrize("steps", [5, 100])
def test_warm_up_then_half_a_cosine(steps):
    optimizer = sgd_cosine(0.4, steps)
    rate = optimizer._learning_rate
    warm_up = steps // 10
    for step in range(steps + 1):
        done = (step - warm_up) / (steps - warm_up)
        expected = 0.4 * step / warm_up if step < warm_up else 0.2 * (1 + np.cos(np.pi * done))
        assert float(rate(step)) == pytest.approx(expected, abs=1e-6)
    assert optimizer.nesterov
    assert optimizer.momentum == 0.9


@pytest.mark.parametrize("arguments", [(0, 10), (-1, 10), (float("nan"), 10), (0.1, 0)])
def test_refuses(arguments):
    with pytest.raises(ValueError, match="learning_rate and steps must be positive"):
        sgd_cosine(*arguments)
