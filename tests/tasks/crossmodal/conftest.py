"""A small ego-motion task."""

import pytest

import keras_ssl as kssl


@pytest.fixture(scope="module")
def encoder():
    return kssl.encoders.resnet((16, 16, 3), width=2, blocks=(1,))


@pytest.fixture
def make(encoder):
    return lambda **arguments: kssl.tasks.EgoMotion(encoder, **{"hidden": 8, **arguments})
