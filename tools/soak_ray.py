"""Kills machines, workers and drivers of `keras-ssl extract --engine ray`, and checks the table.

    python tools/soak_ray.py [--images 4000] [--drivers 4] [--seed 0]

Two nodes with one CPU each, of ray.cluster_utils.Cluster, encode a folder of generated images, some of them
unreadable. Every driver is a `keras-ssl extract` process. It loses a node or a worker process at a random
moment, and is itself killed by SIGKILL at another moment, except for the last one, which completes the table
in this process. Then each image must have one row, with the same features as from the encoder without Ray.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
from bench_ray import descendants, write_images

import keras_ssl as kssl
from keras_ssl.tables import FeatureTable, ray_cleanup, store
from keras_ssl.tables.encode import LocalEncoder
from keras_ssl.tables.identity import of_model
from keras_ssl.tables.ray_engine import RayEngine, update_by_ray
from keras_ssl.tables.update import update

# Leaves enough time for kills.
SLOW = """
import time
from keras_ssl.tables.encode import LocalEncoder
files = LocalEncoder.files
def slow(self, items):
    yield from files(self, items)
    time.sleep({pause})
LocalEncoder.files = slow
"""
COMMAND = """
import runpy, sys
sys.argv[0] = "keras-ssl"
from keras_ssl.tables import update
update.FRAGMENT = {fragment}
runpy.run_path({script!r}, run_name="__main__")
"""
COLUMNS = ["id", "path", "vector", "reason", "hash", "height", "width", "bytes", "modified"]


class Cluster:
    """Two nodes with one CPU each."""

    def __init__(self):
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        warnings.filterwarnings("ignore", "lancedb fork support")
        from ray.cluster_utils import Cluster

        self._folder = tempfile.mkdtemp(prefix="soak-")  # names of sockets must be short
        head = {"num_cpus": 1, "include_dashboard": False, "temp_dir": self._folder}
        # The cluster writes its address to a folder that it does not create.
        with mock.patch.dict(os.environ, RAY_TMPDIR=self._folder):
            os.mkdir(os.path.join(self._folder, "ray"))
            self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address, self._other = self._cluster.address, None
        self.complete()

    def complete(self):
        """Adds a second node if there is none."""
        if self._other is None:
            self._other = self._cluster.add_node(num_cpus=1)

    def kill_node(self):
        self._cluster.remove_node(self._other, allow_graceful=False)
        self._other = None

    def kill_worker(self):
        """Kills one worker process by SIGKILL."""
        workers = [pid for pid in descendants() if command_of(pid).startswith("ray::Worker")]
        os.kill(workers[-1], signal.SIGKILL)

    def close(self):
        self._cluster.shutdown()
        for pid in ray_cleanup.users(self._folder) - {os.getpid()}:  # processes of killed nodes
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self._folder)


def command_of(pid):
    try:
        return Path("/proc", str(pid), "cmdline").read_text()
    except OSError:
        return ""


class Extraction:
    """`keras-ssl extract` of a folder to a table.

    Args:
        folder: pathlib.Path with `photos` and room for other files.
        model: str.
        fragment, batch_size: int.
        pause: seconds that a worker waits after each batch.
    """

    def __init__(self, folder, model, fragment=1024, batch_size=64, pause=0.3):
        self._folder = folder
        script = str(Path(sys.executable).with_name("keras-ssl"))
        self._code = COMMAND.format(fragment=fragment, script=script)
        (folder / "slow.py").write_text(SLOW.format(pause=pause))
        self._arguments = ["extract", str(folder / "photos"), "--model", os.path.abspath(model)]
        self._arguments += ["--batch-size", str(batch_size)]

    def start(self, table, *more):
        """Starts a process that writes to `table`, and returns the subprocess.Popen."""
        return subprocess.Popen(
            [sys.executable, "-c", self._code, *self._arguments, "--out", table, *more],
            cwd=self._folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"},
        )  # fmt: skip

    def rows(self, table):
        """Returns a dict of paths to the rows of a table; raises AssertionError if a path has two."""
        if not store.exists(self._folder / table):
            return {}
        found = FeatureTable(self._folder / table).columns(COLUMNS).to_pylist()
        rows = {row["path"]: row for row in found}
        assert len(rows) == len(found), f"{len(found) - len(rows)} images have two rows"
        return rows

    def wait(self, child, table, number, seconds=300):
        """Waits until a table has that number of rows; returns how many it has."""
        end = time.monotonic() + seconds
        while (has := len(self.rows(table))) < number:
            if child.poll() is not None or time.monotonic() > end:
                child.kill()
                raise SystemExit(f"{has} of {number} rows: {child.communicate()[1][-2000:]}")
            time.sleep(0.05)
        return has


def soak(folder, model, images, drivers, seed=0, **sizes):
    """Kills as described in the docstring of the file.

    Returns:
        (moments, difference): the number of rows of the table at each kill, and the largest difference
        between its features and those of the encoder in this process.
    """
    random, moments = np.random.default_rng(seed), []
    write_images(folder / "photos", images, 64)
    for i in range(0, images, 29):
        (folder / "photos" / f"{i}.jpg").write_text(f"no image {i}")
    extraction = Extraction(folder, model, **sizes)
    alone = LocalEncoder(kssl.load(model))
    print(update(folder / "alone.lance", folder / "photos", of_model(model), alone), flush=True)
    expected = extraction.rows("alone.lance")
    cluster = Cluster()
    engine = ("--engine", "ray", "--address", cluster.address, "--import", "slow")
    try:
        stops = np.sort(random.choice(np.arange(1, 8), 2 * drivers - 2, replace=drivers > 4)) / 8.5
        for i, (first, second) in enumerate((stops * len(expected)).reshape(-1, 2)):
            child = extraction.start("ray.lance", *engine)
            has = extraction.wait(child, "ray.lance", first)
            (cluster.kill_worker if i % 2 else cluster.kill_node)()
            moments.append(("worker" if i % 2 else "node", has))
            moments.append(("driver", extraction.wait(child, "ray.lance", second)))
            child.kill()
            child.communicate()
            if i < drivers - 2:  # the last driver encodes the rest
                cluster.complete()
        engine = RayEngine(model, of_model(model), kssl.load, 64, cluster.address)
        print(update_by_ray(folder / "ray.lance", folder / "photos", of_model(model), engine))
    finally:
        cluster.close()
    found = extraction.rows("ray.lance")
    assert found.keys() == expected.keys(), f"{len(found)} rows instead of {len(expected)}"
    assert sorted(row["id"] for row in found.values()) == list(range(len(found)))
    difference = 0.0
    for path, row in found.items():
        for name in set(COLUMNS) - {"id", "vector"}:
            assert row[name] == expected[path][name], (path, name)
        if row["vector"] is not None:
            change = np.subtract(row["vector"], expected[path]["vector"])
            difference = max(difference, np.abs(change).max())
        else:
            assert expected[path]["vector"] is None
    return moments, difference


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--drivers", type=int, default=4)
    parser.add_argument("--model", default="saved_models/simclr_cifar10")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        moments, difference = soak(
            Path(folder), options.model, options.images, options.drivers, options.seed, fragment=128
        )
    killed = ", ".join(f"{what} at {has} rows" for what, has in moments)
    print(f"killed: {killed}; each image has one row; largest difference {difference:g}")


if __name__ == "__main__":
    main()
