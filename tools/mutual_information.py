"""Draws bounds of mutual information for a known mutual information that rises from 2 to 10 nats.

It repeats figure 2 of Poole et al., "On Variational Bounds of Mutual Information", ICML 2019: x and y are
normal with 20 pairs of correlated coordinates, or y is cubed, which does not change the information. A critic
is trained with each bound, on batches of 64. This takes ten minutes on two cores; the paper uses 20,000
steps.

    python tools/mutual_information.py --steps 3000 --out docs/mutual_information.png
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from keras_ssl.losses import mutual_information as mi

DIMENSIONS, BATCH, LEVELS = 20, 64, (2, 4, 6, 8, 10)
AT_ONCE = 20  # steps per call of TensorFlow

# The second argument is the output of a network of y, which some bounds do not use.
BOUNDS = {
    "InfoNCE": lambda scores, _: mi.info_nce(scores),
    "Donsker-Varadhan": lambda scores, _: mi.donsker_varadhan(scores),
    "NWJ": lambda scores, _: mi.nwj(scores),
    "TUBA": mi.tuba,
    "Jensen-Shannon": lambda scores, _: mi.jensen_shannon(scores),
    "I$_\\alpha$, $\\alpha$ = 0.01": lambda scores, learned: mi.interpolated(scores, 0.01, learned),
    "SMILE, $\\tau$ = 5": lambda scores, _: mi.smile(scores, 5.0),
}


def perceptron(inputs, outputs):
    hidden = [keras.layers.Dense(256, activation="relu") for _ in range(2)]
    return keras.Sequential([keras.Input((inputs,)), *hidden, keras.layers.Dense(outputs)])


class Separable:
    """The critic g(x)' h(y): two networks, run K times each, as in SimCLR, CPC and Deep InfoMax."""

    def __init__(self):
        self.networks = perceptron(DIMENSIONS, 32), perceptron(DIMENSIONS, 32)

    def __call__(self, x, y):
        return tf.matmul(self.networks[1](y), self.networks[0](x), transpose_b=True)


class Concatenated:
    """The critic f([x, y]): one network, run K * K times."""

    def __init__(self):
        self.networks = (perceptron(2 * DIMENSIONS, 1),)

    def __call__(self, x, y):
        pairs = tf.concat([tf.tile(x, [BATCH, 1]), tf.repeat(y, BATCH, axis=0)], axis=1)
        return tf.reshape(self.networks[0](pairs), [BATCH, BATCH])


CRITICS = {"separable": Separable, "concatenated": Concatenated}


def sample(information, step, cubic):
    """Draws a batch of x and y with the given mutual information; the numbers follow from the step."""
    rho = tf.sqrt(1 - tf.exp(-2 * information / DIMENSIONS))
    x, noise = tf.unstack(tf.random.stateless_normal((2, BATCH, DIMENSIONS), [0, step]))
    y = rho * x + tf.sqrt(1 - rho**2) * noise
    return x, y**3 if cubic else y


def train(bound, critic, cubic, truth):
    """Trains a critic and returns the bound at each step; `truth` is the information at each step."""
    keras.utils.set_random_seed(0)
    critic, baseline = CRITICS[critic](), perceptron(DIMENSIONS, 1)
    # Clipped, since NWJ can have a gradient of 1e10 for a single batch, after which Adam would stand still.
    optimizer = keras.optimizers.Adam(5e-4, global_clipnorm=100.0)
    networks = (*critic.networks, baseline)
    variables = [v for network in networks for v in network.trainable_variables]
    optimizer.build(variables)

    def step(information, number):
        x, y = sample(information, number, cubic)
        with tf.GradientTape() as tape:
            loss = -BOUNDS[bound](critic(x, y), baseline(y)[:, 0])
        values = [v.value for v in variables]
        zero = tf.UnconnectedGradients.ZERO  # for the baseline, if the bound has none
        optimizer.apply(tape.gradient(loss, values, unconnected_gradients=zero), variables)
        return -loss

    @tf.function
    def steps(information, first):
        values = tf.TensorArray(tf.float32, AT_ONCE)
        for i in tf.range(AT_ONCE):
            values = values.write(i, step(information[i], first + i))
        return values.stack()

    starts = range(0, len(truth), AT_ONCE)
    return np.concatenate([steps(truth[i : i + AT_ONCE], tf.constant(i)).numpy() for i in starts])


def smoothed(values, window):
    """Computes the running median, since a few extreme batches dominate the mean."""
    padded = np.pad(values, window // 2, "edge")[: len(values) + window - 1]
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1)


def draw(curves, truth):
    """Draws one panel per bound and data set.

    Args:
        curves: dict from (bound, critic, cubic) to an array of the bound at each step.
        truth: array of the mutual information at each step.
    """
    figure = Figure((13, 4.6), layout="constrained", dpi=85)
    panels = figure.subplots(2, len(BOUNDS), sharex=True, sharey=True)
    for row, cubic in zip(panels, (False, True), strict=True):
        for axes, bound in zip(row, BOUNDS, strict=True):
            for k, critic in enumerate(CRITICS):
                values = curves[bound, critic, cubic]
                axes.plot(values[::10], color=f"C{k}", alpha=0.25, lw=0.6)
                median = smoothed(values, window=len(truth) // 40)
                axes.plot(median[::10], color=f"C{k}", lw=1.5, label=f"{critic} critic, median")
            axes.plot(truth[::10], color="black", lw=1, label="mutual information")
            axes.axhline(np.log(BATCH), color="gray", lw=1, ls=":", label=f"log {BATCH}")
            axes.set(ylim=(-1, 13), yticks=(0, *LEVELS), xticks=[])
            if not cubic:
                axes.set_title(bound, fontsize=10)
        row[0].set_ylabel("nats, y cubed" if cubic else "nats")
    panels[1, len(BOUNDS) // 2].set_xlabel(f"{len(truth):,} training steps")
    shown = axes.get_legend_handles_labels()
    figure.legend(*shown, loc="outside lower center", ncols=4, fontsize=9)
    return figure


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3000, help="at least 100")
    parser.add_argument("--out", default="docs/mutual_information.png")
    options = parser.parse_args()
    each = max(1, round(options.steps / len(LEVELS) / AT_ONCE)) * AT_ONCE
    truth = np.repeat(np.float32(LEVELS), each)

    runs = [(b, c, cubic) for c in CRITICS for cubic in (False, True) for b in BOUNDS]
    curves, begun = {}, time.perf_counter()
    for k, (bound, critic, cubic) in enumerate(runs, 1):
        values = curves[bound, critic, cubic] = train(bound, critic, cubic, truth)
        ends = values.reshape(len(LEVELS), -1)[:, each // 2 :]  # the second half of each level
        print(
            f"{k}/{len(runs)}, {time.perf_counter() - begun:.0f} s: {bound}, {critic} critic, "
            f"{'cubic' if cubic else 'Gaussian'}: "
            + ", ".join(
                f"{m:.2f}+-{s:.2f}" for m, s in zip(ends.mean(1), ends.std(1), strict=True)
            ),
            flush=True,
        )
    draw(curves, truth).savefig(options.out)


if __name__ == "__main__":
    main()
