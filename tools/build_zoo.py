"""Trains, evaluates and exports saved_models/rotation_cifar10 within a budget of minutes.

    python tools/build_zoo.py --data cifar10/ --minutes 45

`--data` is a folder with train/<class>/ and test/<class>/; without it Keras downloads CIFAR-10.
The budget is the wall-clock time of `fit`: a trial run of some steps determines the number of epochs.
Training runs in bfloat16, evaluation and export in float32.
"""

import argparse
import platform
import time

import keras
import numpy as np
from budget import LABELS, TRIAL_STEPS, StepClock, epochs_within, evaluate

import keras_ssl as kssl
from keras_ssl.plotting import print_table
from keras_ssl.training.optimizers import sgd_cosine

WIDTH, BLOCKS, BATCH, LEARNING_RATE = 32, (1, 1, 1, 1), 64, 0.1


def new_task(policy):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    return kssl.tasks.Rotation(kssl.encoders.resnet((32, 32, 3), width=WIDTH, blocks=BLOCKS))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder with train/ and test/; downloaded without it")
    parser.add_argument("--minutes", type=float, default=45)
    parser.add_argument("--out", default="saved_models/rotation_cifar10")
    options = parser.parse_args()

    images, test = (kssl.data.cifar10(options.data, part) for part in ("train", "test"))

    task = new_task("mixed_bfloat16")
    task.compile(sgd_cosine(LEARNING_RATE, TRIAL_STEPS))
    trial, clock = task.dataset(images, BATCH), StepClock()
    task.fit(trial, steps_per_epoch=TRIAL_STEPS, callbacks=[clock], verbose=0)
    step, steps_per_epoch = clock.seconds_per_step(), trial.steps_per_epoch
    epochs = epochs_within(options.minutes, step * steps_per_epoch)
    print(f"{step * 1000:.0f} ms per step, {epochs} epochs of {steps_per_epoch} steps", flush=True)

    task = new_task("mixed_bfloat16")
    initial = task.encoder.get_weights()
    training = task.dataset(images, BATCH, epochs=epochs)
    task.compile(sgd_cosine(LEARNING_RATE, epochs * steps_per_epoch))
    start = time.time()
    history = task.fit(training, epochs=epochs, verbose=2).history
    minutes = (time.time() - start) / 60

    trained, untrained = new_task("float32"), new_task("float32")
    trained(np.zeros((1, 4, 32, 32, 3)))
    trained.set_weights(task.get_weights())
    untrained.encoder.set_weights(initial)
    results = evaluate(trained.encoder, untrained.encoder, images, test)
    print_table(kssl.evaluation.table(results))

    source = "a JPEG copy of CIFAR-10 (accuracies differ slightly from the original pixels)"
    card = {
        "data": f"{source if options.data else 'CIFAR-10'}, 50,000 training images, no labels",
        "budget": f"{minutes:.0f} minutes on {platform.machine()}, CPU only, bfloat16; {epochs} epochs "
        f"of 50,000 images in four rotations, batch {BATCH} x 4, SGD {LEARNING_RATE} with cosine",
        "encoder": f"resnet, width {WIDTH}, blocks {BLOCKS}",
        "pretext_accuracy": history["accuracy"][-1],
        "accuracy": {"labels": LABELS, "test_pictures": int(test.cardinality()), **results},
        "licence": "Apache-2.0 (weights); CIFAR-10: Krizhevsky 2009, for research",
    }
    print(kssl.export(trained, options.out, card))


if __name__ == "__main__":
    main()
