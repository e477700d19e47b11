import numpy as np
import pytest

from keras_ssl.optimizers import adam_cosine, sgd_cosine


@pytest.mark.parametrize("steps", [5, 100])
@pytest.mark.parametrize("kind", [sgd_cosine, adam_cosine])
def test_warm_up_then_half_a_cosine(kind, steps):
    optimizer = kind(0.4, steps)
    rate = optimizer._learning_rate
    warm_up = steps // 10
    for step in range(steps + 1):
        done = (step - warm_up) / (steps - warm_up)
        expected = 0.4 * step / warm_up if step < warm_up else 0.2 * (1 + np.cos(np.pi * done))
        assert float(rate(step)) == pytest.approx(expected, abs=1e-6)


def test_momentum():
    assert sgd_cosine(0.4, 10).nesterov
    assert sgd_cosine(0.4, 10).momentum == 0.9
    assert adam_cosine(0.4, 10, beta_1=0.5).beta_1 == 0.5


@pytest.mark.parametrize("arguments", [(0, 10), (-1, 10), (float("nan"), 10), (0.1, 0)])
@pytest.mark.parametrize("kind", [sgd_cosine, adam_cosine])
def test_refuses(kind, arguments):
    with pytest.raises(ValueError, match="learning_rate and steps must be positive"):
        kind(*arguments)
