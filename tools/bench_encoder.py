"""Benchmark of the exported encoder in a graph Session, versus the same network without normalization.

    python tools/bench_encoder.py [--width 16] [--rounds 15]

TensorFlow folds the fused batch normalization into the preceding convolution, so it should cost nothing in
serving. Both networks run in turn in one process; the ratio is the median over the rounds.
"""

import argparse
import tempfile
import time
from unittest import mock

import keras
import numpy as np

import keras_ssl as kssl
from keras_ssl.serving.server.servable import Servable

BATCH, CALLS = 32, 20


@keras.saving.register_keras_serializable()
class Identity(keras.layers.Layer):
    """Replaces batch normalization by the identity."""

    def __init__(self, momentum=0, epsilon=0, synchronized=False, **kwargs):
        super().__init__(**kwargs)

    def call(self, x):
        return x


def servable(width, normalization, folder):
    with mock.patch("keras_ssl.encoders.residual.BatchNormalization", normalization):
        encoder = kssl.encoders.resnet((32, 32, 3), width)
    task = kssl.tasks.Rotation(encoder)
    task(np.zeros((1, 4, 32, 32, 3)))
    return Servable(kssl.export(task, folder))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    x = np.random.default_rng(0).integers(0, 256, (BATCH, 32, 32, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        variants = {
            name: servable(options.width, layer, f"{folder}/{name}")
            for name, layer in (("normalized", kssl.layers.BatchNormalization), ("bare", Identity))
        }
    seconds = {name: [] for name in variants}
    for round in range(options.rounds + 1):
        for name, model in variants.items():
            start = time.perf_counter()
            for _ in range(CALLS):
                model.run({"images": x})
            if round:  # the first round warms up
                seconds[name].append((time.perf_counter() - start) / CALLS)
    for name, values in seconds.items():
        print(f"{name:12} {BATCH / np.median(values):6.0f} images/s")
    ratio = np.median(np.array(seconds["bare"]) / np.array(seconds["normalized"]))
    print(f"the exported encoder runs at {ratio:.3f} of the speed without normalization")


if __name__ == "__main__":
    main()
