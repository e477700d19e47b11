import pytest

import keras_ssl as kssl


def test_logs_both_terms(noise):
    encoder = kssl.encoders.resnet((32, 32, 3), width=8, blocks=(1,))
    task = kssl.tasks.AlignUniform(encoder, alignment=0.75, uniformity=0.5)
    task.compile("sgd")
    data = task.dataset(kssl.data.from_array(noise[:18]), 8)  # the last batch has 2 images
    logs = task.evaluate(data, verbose=0, return_dict=True)
    assert set(logs) == {"loss", "accuracy", "positive", "negative", "alignment", "uniformity"}
    assert logs["loss"] == pytest.approx(
        0.75 * logs["alignment"] + 0.5 * logs["uniformity"], rel=1e-5
    )
    assert 0 < logs["alignment"] < 4
    assert -8 < logs["uniformity"] < 0
    # The mean squared distance of unit vectors is 2 minus twice their mean similarity.
    assert logs["alignment"] == pytest.approx(2 - 2 * logs["positive"], rel=1e-4)


@pytest.mark.parametrize("name", ["alpha", "t"])
def test_invalid_arguments(encoder, name):
    with pytest.raises(ValueError, match=f"{name} must be a positive number, got 0"):
        kssl.tasks.AlignUniform(encoder, **{name: 0})


@pytest.mark.parametrize("value", [-1, float("nan"), "1", None])
def test_invalid_weights(encoder, value):
    for name in ("alignment", "uniformity"):
        with pytest.raises(ValueError, match=f"{name} must be a number of at least 0, got"):
            kssl.tasks.AlignUniform(encoder, **{name: value})
