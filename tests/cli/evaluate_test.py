import pytest
import tensorflow as tf

from keras_ssl.cli.evaluate import parse_percent


@pytest.fixture
def eagerly():
    """A few eager steps take less time than tracing."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def test_prints_fine_tuning_and_psnr_and_ssim_of_a_generation_task(command, photos, eagerly):
    small = ("--width", 2, "--blocks", "1,1", "--size", 16, "--epochs", 1, "--batch-size", 8)
    assert command("pretrain", "super_resolution", "--data", photos, *small)[0] == 0
    code, out, _ = command(
        "evaluate", "super_resolution_photos.keras", "--data", photos, "--maps",
        "--fine-tune", "50", "--epochs", 1, "--no-flip",
    )  # fmt: skip
    assert code == 0
    assert "maps of about 9,000 numbers (Zhang et al. 2017)" in out
    lines = out.splitlines()
    start = lines.index("labels  fine-tuned  untrained")
    percent, _, *accuracies = lines[start + 1].split()
    assert percent == "50"
    assert all(float(accuracy) in (0, 25, 50, 75, 100) for accuracy in accuracies)
    *_, names, numbers = out.splitlines()
    assert names.split() == ["psnr", "ssim", "baseline_psnr", "baseline_ssim"]
    psnr, ssim, baseline, _ = (float(number) for number in numbers.split())
    assert psnr == pytest.approx(baseline, abs=2)  # one epoch is hardly more than bicubic
    assert ssim <= 1


def test_parses_percentages():
    assert parse_percent("") == []
    assert parse_percent("1,10,100") == [0.01, 0.1, 1.0]
    for text in ("a", "1,", "0", "101", "nan"):
        with pytest.raises(ValueError, match="--fine-tune must be percentages"):
            parse_percent(text)
