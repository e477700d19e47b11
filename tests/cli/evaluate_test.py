import pytest


def test_prints_psnr_and_ssim_of_a_generation_task(command, photos):
    small = ("--width", 2, "--blocks", "1,1", "--size", 16, "--epochs", 1, "--batch-size", 8)
    assert command("pretrain", "super_resolution", "--data", photos, *small)[0] == 0
    code, out, _ = command("evaluate", "super_resolution_photos.keras", "--data", photos)
    assert code == 0
    *_, names, numbers = out.splitlines()
    assert names.split() == ["psnr", "ssim", "baseline_psnr", "baseline_ssim"]
    psnr, ssim, baseline, _ = (float(number) for number in numbers.split())
    assert psnr == pytest.approx(baseline, abs=2)  # one epoch is hardly more than bicubic
    assert ssim <= 1
