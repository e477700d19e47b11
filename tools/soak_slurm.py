"""Runs deploy/slurm.sh on a real Slurm cluster of network namespaces, and compares interrupted training runs.

    sudo python tools/soak_slurm.py [--nodes 2] [--shaping "rate 1gbit delay 5ms"]

It trains three times on the same images: once without interruption, once with `scontrol requeue` in the
middle, and once with `scancel` and a second sbatch. All weights must be equal bit for bit. It prints how long
each run took, and how many bytes the first node sent per step. It has the same requirements as
tools/slurm_cluster.sh, and needs keras-ssl in the same folder as this Python.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np

TOOLS = Path(__file__).resolve().parent
IMAGES, BATCH, EPOCHS = 256, 32, 12
STEPS = EPOCHS * IMAGES // BATCH
OPTIONS = (f"--epochs={EPOCHS}", f"--batch-size={BATCH}", "--size=32", "--checkpoint-every=5")


def run(*command, env=None):
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env)
    return found.stdout.strip()


def cluster(*arguments):
    return run(TOOLS / "slurm_cluster.sh", *arguments)


def write_photos(folder):
    """Writes gray gradients with a bright spot: pixels that show which way is up."""
    import cv2

    rng = np.random.default_rng(0)
    folder.mkdir()
    for k in range(IMAGES):
        image = np.linspace(0, 200, 40)[:, None, None] + rng.uniform(0, 50, (1, 40, 3))
        image[5:15, 20:30] = rng.uniform(0, 255, 3)
        cv2.imwrite(str(folder / f"{k:03}.png"), image.astype(np.uint8))


class Job:
    """A job of deploy/slurm.sh; its results are in `out`."""

    def __init__(self, photos, out):
        self.out = out
        out.mkdir(exist_ok=True)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "DATA": str(photos), "OUT": str(out)}
        self.number = run(
            "sbatch", "--parsable", "--cpus-per-task=1", f"--output={out}/log",
            TOOLS.parent / "deploy" / "slurm.sh", *OPTIONS, env=env,
        )  # fmt: skip

    def state(self):
        shown = run("scontrol", "show", "job", self.number)
        return shown.split("JobState=")[1].split()[0]

    def wait(self, seconds, until):
        """Waits until `until()`; raises RuntimeError with the log if the job has failed or is too slow."""
        end = time.monotonic() + seconds
        while not until():
            if self.state() in ("FAILED", "NODE_FAIL", "TIMEOUT") or time.monotonic() > end:
                raise RuntimeError(f"job {self.number} is {self.state()}: {self.log()}")
            time.sleep(0.5)

    def complete(self):
        self.wait(600, lambda: self.state() == "COMPLETED")

    def train_half(self):
        """Waits until half of the epochs are in the log of the training run."""
        rows = self.out / "rotation.csv"
        self.wait(300, lambda: rows.exists() and len(rows.read_text().splitlines()) > EPOCHS // 2)

    def log(self):
        return (self.out / "log").read_text()[-4000:]

    def weights(self):
        found = {}

        def keep(name, item):
            if isinstance(item, h5py.Dataset):
                found[name] = item[()]

        with zipfile.ZipFile(self.out / "rotation.keras") as parts:
            content = io.BytesIO(parts.read("model.weights.h5"))
        with h5py.File(content) as file:
            file.visititems(keep)
        return found


def sent():
    """Returns how many bytes the first node has sent."""
    return int(Path("/sys/class/net/veth1/statistics/rx_bytes").read_text())


def requeued(photos, out):
    job = Job(photos, out)
    job.train_half()
    run("scontrol", "requeue", job.number)
    job.wait(60, lambda: job.state() == "PENDING")
    run("scontrol", "update", f"JobId={job.number}", "StartTime=now")  # not in two minutes
    job.complete()
    return job


def cancelled(photos, out):
    job = Job(photos, out)
    job.train_half()
    run("scancel", job.number)
    job.wait(60, lambda: job.state() == "CANCELLED")
    job = Job(photos, out)
    job.complete()
    return job


def uninterrupted(photos, out):
    before = sent()
    job = Job(photos, out)
    job.complete()
    print(f"bytes that the first node sent per step: {(sent() - before) / STEPS:,.0f}", flush=True)
    return job


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--shaping", default="", help="of each node's network, as netem takes it")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        os.environ["WORK"] = str(Path(folder, "slurm"))
        photos = Path(folder, "photos")
        write_photos(photos)
        try:
            setting = cluster("up", str(options.nodes), options.shaping)
            os.environ["SLURM_CONF"] = setting.partition("=")[2]
            expected = None
            for way in (uninterrupted, requeued, cancelled):
                start = time.monotonic()
                weights = way(photos, Path(folder, way.__name__)).weights()
                seconds = time.monotonic() - start
                expected = expected or weights
                assert len(weights) > 10
                assert weights.keys() == expected.keys()
                different = [k for k in weights if not np.array_equal(weights[k], expected[k])]
                print(f"{way.__name__}: {seconds:.0f} s, {len(weights)} arrays", flush=True)
                if different:
                    raise SystemExit(f"{way.__name__}: other values in {', '.join(different)}")
        finally:
            cluster("down")


if __name__ == "__main__":
    main()
