import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from keras_ssl.data.renderer import processes
from keras_ssl.data.renderer.scene import scene

CLIP = {
    "seed": 5, "size": 24, "frames": 2, "objects": (3, 6), "moving": 0.5, "exposure": 0.2, "noise": 2.0,
}  # fmt: skip


@pytest.fixture
def one(monkeypatch):
    """A single process."""
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    return processes.Processes()


def process_of(pool):
    return pool._idle.queue[0][0]


def test_a_process_renders_the_same_scene_and_one_that_was_killed_is_replaced(one):
    expected = scene(number=7, **CLIP)
    for _ in range(2):
        found = one.scene(number=7, **CLIP)
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name], name)
        process = process_of(one)
        assert "tensorflow" not in Path(f"/proc/{process.pid}/maps").read_text()
        process.kill()
        process.wait()


def test_a_process_that_never_answers_is_one_sentence(one, monkeypatch):
    monkeypatch.setattr(processes, "PROGRAM", "")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="renders scenes was killed: is there enough memory"):
            one.scene(number=0, **CLIP)
    monkeypatch.undo()
    assert one.scene(number=0, **CLIP)["image"].shape == (24, 24, 3)


def test_processes_end_with_the_one_that_asks():
    packages = processes.PROGRAM.partition("from keras_ssl")[0]
    program = packages.format(path=sys.path, packages=processes.PACKAGES) + (
        "from keras_ssl.data.renderer.processes import Processes\n"
        f"pool = Processes(); pool.scene(number=0, **{CLIP})\n"
        "print(pool._idle.queue[-1][0].pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as asking:
        child = int(asking.stdout.readline())
        os.kill(child, 0)
        asking.send_signal(signal.SIGKILL)
    for _ in range(100):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            return
        if "\nState:\tZ" in Path(f"/proc/{child}/status").read_text():
            return  # ended, and not yet reaped by the system
        time.sleep(0.1)
    pytest.fail("the process still runs")


def test_a_program_ends_while_a_dataset_prefetches():
    program = (
        "import keras_ssl as kssl\n"
        "scenes = iter(kssl.data.scenes(1000, 16).batch(10))\n"
        "print(next(scenes)['image'].shape)"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "(10, 16, 16, 3)\n"), done.stderr


def test_nothing_is_rendered_after_close(one):
    one.scene(number=0, **CLIP)
    process = process_of(one)
    one.close()
    assert process.poll() is not None
    with pytest.raises(RuntimeError, match="no scene is rendered any more: the program ends"):
        one.scene(number=0, **CLIP)


def test_close_waits_until_nobody_asks_any_more(one):
    one.scene(number=0, **CLIP)
    refused = []

    def ask():
        end = time.monotonic() + 1
        while time.monotonic() < end:
            try:
                one.scene(number=0, **CLIP)
            except RuntimeError:
                refused.append(time.monotonic())
            time.sleep(0.02)

    thread = threading.Thread(target=ask)
    thread.start()
    one.close()
    closed = time.monotonic()
    thread.join()
    assert len(refused) > 10
    assert closed - refused[-1] > 0.4
