"""Writes files of every kind and acknowledges each finished one; `soak_power.py` records its system calls.

    python tools/power_writers.py FOLDER [kind ...]

Every kind writes below FOLDER/<kind>. Acknowledged files must survive a power failure.
"""

import os
import sys
import types
import warnings
from pathlib import Path

import numpy as np

IMAGES = 60  # in the extraction
MARK = b"acknowledged "


def acknowledge(path):
    """Marks a file or folder as done in the record of system calls."""
    os.write(1, MARK + os.fsencode(path) + b"\n")


def write_file(folder):
    from keras_ssl import files

    for i in range(4):
        with files.complete(folder / "a.txt") as draft:
            Path(draft).write_text(f"{i}" * (3000 + 4000 * i))
        acknowledge(folder / "a.txt")


def tiny_task():
    import keras_ssl as kssl

    task = kssl.tasks.Rotation(kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,)))
    task.compile("adam")
    return task


def write_export(folder):
    import keras_ssl as kssl

    task = tiny_task()
    for _ in range(2):
        acknowledge(kssl.export(task, folder / "models" / "m"))


def write_keras(folder):
    from keras_ssl import files

    for _ in range(3):
        task = tiny_task()
        with files.complete(folder / "task.keras") as draft:  # as keras-ssl pretrain does
            task.save(draft)
        acknowledge(folder / "task.keras")


def write_checkpoints(folder, log=None):
    import keras_ssl as kssl

    class Acknowledged(kssl.callbacks.Checkpoint):
        def save(self, step):
            super().save(step)
            acknowledge(self.directory / f"step-{step:09d}.npz")

    class AcknowledgedLog(kssl.callbacks.CSVLog):
        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            acknowledge(self.path)

    task, images = tiny_task(), kssl.data.digits("test")
    callbacks = [
        AcknowledgedLog(log) if log else Acknowledged(folder / "runs" / "a", every_steps=1, keep=2)
    ]
    data = task.dataset(images, 120, epochs=4)
    task.fit(data, epochs=4, callbacks=callbacks, verbose=0)


def write_log(folder):
    write_checkpoints(folder, folder / "log.csv")


class Client:
    """Responds to image i with i, as a server would; every seventh image is unreadable."""

    model, label, version, batch_size, address = "m", None, None, 8, "nowhere"

    def _responses(self, signature, paths):
        for start in range(0, len(paths), self.batch_size):
            numbers = [int(Path(path).stem) for path in paths[start : start + self.batch_size]]
            if any(number % 7 == 0 for number in numbers):
                error = ValueError("unreadable")
                error.code = "INVALID_ARGUMENT"
                raise error
            rows = np.repeat(np.array(numbers, np.float32)[:, None], 300, axis=1)
            yield types.SimpleNamespace(version=1, count=len(rows), outputs={"features": rows})


def photos(folder):
    """Returns the paths of the files to extract, which exist beforehand."""
    return [str(folder / f"{i:04d}.jpg") for i in range(IMAGES)]


def write_extraction(folder):
    from keras_ssl.serving.client import extraction

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        extraction.extract(Client(), photos(folder.parent / "photos"), folder / "features.npz")
    acknowledge(folder / "features.npz")


def write_tfrecord(folder):
    import keras_ssl as kssl

    images = kssl.data.subset(kssl.data.digits("test"), range(40))
    kssl.data.to_tfrecord(images, folder / "data" / "digits", shards=3, verbose=0)
    acknowledge(folder / "data" / "digits")


KINDS = {
    "file": write_file,
    "export": write_export,
    "keras": write_keras,
    "checkpoints": write_checkpoints,
    "log": write_log,
    "extraction": write_extraction,
    "tfrecord": write_tfrecord,
}


if __name__ == "__main__":
    for kind in sys.argv[2:]:
        KINDS[kind](Path(sys.argv[1], kind))
