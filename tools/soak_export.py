"""Kills exports at random moments and checks that every remaining version can be loaded.

python tools/soak_export.py [--kills 20]
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from keras_ssl.serving.server.servable import Servable
from keras_ssl.zoo import versions

EXPORTS_FOREVER = """
import sys
import keras_ssl as kssl
task = kssl.tasks.Rotation(kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,)))
print("ready", flush=True)
while True:
    print(kssl.export(task, sys.argv[1]), flush=True)
"""


def kill_one(folder, moment, count=1):
    """Starts exports into a folder and kills them `moment` seconds after some versions are written."""
    command = [sys.executable, "-c", EXPORTS_FOREVER, str(folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        process.stdout.readline()  # ready
        for _ in range(count):
            process.stdout.readline()
        time.sleep(moment)
        os.kill(process.pid, signal.SIGKILL)


def check(folder):
    """Runs every version in a folder and returns their number; raises if one cannot be loaded."""
    for version in versions(folder):
        servable = Servable(Path(folder) / str(version))
        assert servable.run({"images": np.zeros((1, 32, 32, 3), np.uint8)})["features"].shape == (
            1,
            2,
        )
        servable.close()
    return len(versions(folder))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    kills = parser.parse_args().kills
    with tempfile.TemporaryDirectory() as folder:
        for i in range(kills):
            kill_one(folder, random.uniform(0, 3))
            drafts = len(list(Path(folder).glob(".export-*")))
            print(
                f"kill {i + 1}: {check(folder)} complete versions, {drafts} hidden drafts",
                flush=True,
            )


if __name__ == "__main__":
    main()
