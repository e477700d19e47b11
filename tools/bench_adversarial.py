"""Benchmark of the adversarial training step, versus the sum of its parts.

    python tools/bench_adversarial.py [--width 16] [--rounds 7]

The parts are encoder, decoder and discriminator. Each runs forward and backward separately, on tensors of the
same sizes as in the step (the discriminator on real and generated images), without losses, metrics and
optimizers. In each round all parts run in turn, so that other load on the machine affects them equally. The
ratio is the sum of the parts divided by the step; it is the median over the rounds.
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import keras_ssl as kssl

STEPS = 10


def forward_and_backward(network, inputs, variables):
    @tf.function
    def once(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = network(inputs)
        # Every output's gradient is 1: no loss is computed.
        return tape.gradient(outputs, [variables, inputs])

    def run():
        for _ in range(STEPS):
            gradients = once(inputs)
        tf.nest.flatten(gradients)[0].numpy()

    return run


def parts(task, x, y):
    """Returns a dict from the name of each part to a function that runs it alone, `STEPS` times."""
    y_pred = task(x, training=True)
    real, fake = task.discriminator_inputs(x, y, y_pred)
    shown = [tf.concat(both, 0) for both in zip(real, fake, strict=True)]
    if isinstance(task, kssl.tasks.GAN):
        encode = (
            lambda image: task.encode(image, training=True), x["image"],
            [*task.encoder.trainable_variables, task.code.kernel],
        )  # fmt: skip
        generator = [
            v for layer in (task.start, task.decoder, task.head) for v in layer.trainable_variables
        ]
        decode = lambda codes: task.generate(codes, training=True), x["noise"], generator
    else:
        *_, deepest = task.maps(x).values()
        encode = (
            lambda image: list(task.maps(image, training=True).values())[-1], x,
            task.maps.trainable_variables,
        )  # fmt: skip
        path = [task.connect, task.decoder, task.head]

        def paint(maps):
            return task.head(task.decoder(tf.nn.relu(task.connect(maps)), training=True))

        decode = paint, deepest, [v for layer in path for v in layer.trainable_variables]
    judge = (
        lambda shown: task.discriminator(shown, training=True), shown,
        task.discriminator.trainable_variables,
    )  # fmt: skip
    return {
        "encoder": forward_and_backward(*encode),
        "decoder": forward_and_backward(*decode),
        "discriminator": forward_and_backward(*judge),
    }


def step(task, x, y):
    iterator = iter(tf.data.Dataset.from_tensors((x, y)).cache().repeat())
    task.make_train_function()

    def run():
        for _ in range(STEPS):
            logs = task.train_function(iterator)
        float(logs["loss"])

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    pictures = np.random.default_rng(0).integers(0, 256, (options.batch_size, 32, 32, 3), np.uint8)
    for kind in (kssl.tasks.Inpainting, kssl.tasks.GAN):
        encoder = kssl.encoders.resnet((32, 32, 3), options.width, (1, 1, 1), stem="imagenet")
        task = kind(encoder)
        task.compile(keras.optimizers.Adam(1e-4, beta_1=0.5))
        x, y = next(iter(task.dataset(kssl.data.from_array(pictures), options.batch_size)))
        runs = {**parts(task, x, y), "step": step(task, x, y)}
        for run in runs.values():
            run()
        rounds = []
        for _ in range(options.rounds):
            seconds = {}
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                seconds[name] = (time.perf_counter() - start) / STEPS
            rounds.append(seconds)
        print(f"{kind.__name__}, width {options.width}, batch {options.batch_size}, ms:")
        for name in runs:
            print(f"  {name:14} {1000 * np.median([r[name] for r in rounds]):7.1f}")
        ratio = np.median([(sum(r.values()) - r["step"]) / r["step"] for r in rounds])
        print(f"  sum of the parts over the step: {ratio:.2f}")


if __name__ == "__main__":
    main()
