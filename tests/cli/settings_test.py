import warnings

import pytest

import keras_ssl as kssl
from keras_ssl.cli.settings import make_task, patch_arguments


@pytest.fixture(scope="module")
def encoder():
    return kssl.encoders.resnet((32, 32, 3), width=1, blocks=(1,))


@pytest.mark.parametrize(
    ("text", "flip"),
    [
        ("false", False),
        ("no", False),
        ("False", False),
        ("0", False),
        ("true", True),
        ("YES", True),
    ],
)
def test_switches(encoder, text, flip):
    assert make_task("rotation", encoder, [f"flip={text}"], None).flip is flip


def test_numbers_lists_and_names(encoder):
    settings = ["angles=[0, 180]", "shift=0"]
    task = make_task("rotation", encoder, settings, None)
    assert (tuple(task.angles), task.shift) == ((0, 180), 0)
    assert make_task("jigsaw", encoder, ["gray=1", "tile=None"], None).gray == 1
    for text in ("ab_bins", "'ab_bins'"):
        assert make_task("colorization", encoder, [f"target={text}"], None).target == "ab_bins"


def test_the_encoder_gets_the_patches_of_the_task(command, photos):
    settings = ["patch=12", "blocks=1", "stride=5"]
    assert patch_arguments("cpc", settings) == {"patch": 12, "stride": 5}
    assert patch_arguments("cpc", ["blocks=1"]) == {}
    assert patch_arguments("rotation", ["shift=0"]) == {}  # whose encoder has no patches
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        chosen = [part for one in settings for part in ("--set", one)]
        code, _, errors = command("preview", "cpc", "--data", photos, "--size", 32, *chosen)
    assert code == 0, errors
