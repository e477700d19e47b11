"""The pretrain command: from unlabelled pictures to a trained task."""

import ast
import inspect
import os
import sys
from pathlib import Path

import click
import keras
import numpy as np
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl import callbacks
from keras_ssl.data.named import named
from keras_ssl.tasks import TASKS
from keras_ssl.training import distribute

DATA_HELP = "A folder of pictures or TFRecords, or digits, or cifar10 (downloaded by Keras)."
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def encoder_options(command):
    """The options that describe the encoder and the task, shared by preview and pretrain."""
    for option in (
        click.option("--size", type=int, help="Pixels, height and width; 32 by default."),
        click.option(
            "--set", "settings", multiple=True, metavar="NAME=VALUE", help="Argument of the task."
        ),
        click.option("--seed", default=0, show_default=True),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("task")
@click.option("--data", default="digits", show_default=True, help=DATA_HELP)
@click.option("--out", help="Where the trained task goes; TASK_DATA.keras by default.")
@click.option("--epochs", default=10, show_default=True)
@click.option(
    "--batch-size", default=64, show_default=True, help="Images per step, of all devices."
)
@click.option("--learning-rate", type=float, help="Peak; the task's own by default, such as 0.1.")
@click.option(
    "--width", default=32, show_default=True, help="Channels of the encoder's first stage."
)
@click.option(
    "--blocks", default="2,2,2,2", show_default=True, help="Residual blocks of each stage."
)
@click.option(
    "--stem", default="small", show_default=True, type=click.Choice(["small", "imagenet"])
)
@click.option("--sobel", is_flag=True, help="The encoder sees gray gradients, no colours.")
@click.option(
    "--strategy", default="auto", show_default=True,
    type=click.Choice(["auto", "mirrored", "multi_worker"]),
    help="All devices of this machine, or of several by TF_CONFIG or Slurm; auto: what there is.",
)  # fmt: skip
@click.option(
    "--precision", default="float32", show_default=True, type=click.Choice(list(POLICIES)),
    help="Of the convolutions; float16 scales the loss.",
)  # fmt: skip
@click.option("--xla/--no-xla", default=None, help="Compile by XLA; by default on GPUs only.")
@click.option(
    "--steps-per-execution", default=1, show_default=True, help="Steps between callbacks."
)
@click.option("--checkpoint", metavar="DIR", help="Save there each epoch, and go on from there.")
@click.option("--checkpoint-every", type=int, metavar="STEPS", help="Save after so many steps too.")
@click.option("--service", metavar="ADDRESS", help="grpc://host:port of a keras-ssl data-service.")
@click.option("--tensorboard", metavar="DIR", help="Write scalars, pictures and features there.")
@click.option("--log", metavar="FILE", help="Write the figures of each epoch to this CSV file.")
@encoder_options
def pretrain(
    task, data, out, epochs, batch_size, learning_rate, width, blocks, stem, sobel, strategy, precision,
    xla, steps_per_execution, checkpoint, checkpoint_every, service, tensorboard, log, size, settings, seed,
):  # fmt: skip
    """Trains an encoder on a pretext task, without labels."""
    out = Path(out or f"{task}_{Path(data).resolve().name}.keras")
    if out.suffix != ".keras":
        raise ValueError(f"--out must end in .keras, got {str(out)!r}")
    check_parent("--out", out)
    for option, value in (
        ("--epochs", epochs), ("--learning-rate", learning_rate), ("--checkpoint-every", checkpoint_every),
        ("--steps-per-execution", steps_per_execution),
    ):  # fmt: skip
        if value is not None and not value > 0:
            raise ValueError(f"{option} must be positive, got {value}")
    if checkpoint_every and not checkpoint:
        raise ValueError("--checkpoint-every needs --checkpoint, the folder to save in")
    try:
        depths = tuple(int(n) for n in blocks.split(","))
    except ValueError:
        raise ValueError(f"--blocks must be numbers such as 2,2,2,2, got {blocks!r}") from None
    row = find_row(task)
    devices = distribute.strategy(strategy)  # before anything of TensorFlow runs
    worker, workers = distribute.worker(devices)
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(POLICIES[precision])
    size = 32 if size is None else size
    # A clustering task goes through all pictures before it can start; others start at once.
    images, _ = named(data, size, reader=row.task.reader, check=hasattr(row.task, "relabel"))
    with devices.scope():
        encoder = kssl.encoders.resnet(
            (size, size, 3), width, depths, stem, devices.num_replicas_in_sync > 1,
            preprocessing=kssl.layers.Sobel() if sobel else None,
        )  # fmt: skip
        model = make_task(task, encoder, settings, images)
        training = model.dataset(images, batch_size, epochs=epochs, seed=seed, service=service)
        rate = () if learning_rate is None else (learning_rate,)
        model.compile(
            model.default_optimizer(epochs * training.steps_per_epoch, *rate),
            jit_compile="auto" if xla is None else xla,
            steps_per_execution=steps_per_execution,
        )

    number = int(images.cardinality())
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    saved = sorted(Path(checkpoint).glob("step-*.npz")) if checkpoint else []
    place = f"checkpoints in {checkpoint}" if checkpoint else "no checkpoints"
    click.echo(
        f"{task} on {data}: {number} images, {training.steps_per_epoch} steps an epoch, "
        f"{epochs} epoch{'s' if epochs > 1 else ''}, "
        f"{devices.num_replicas_in_sync} {kind}"
        f"{f' (worker {worker} of {workers})' if workers > 1 else ''}, {precision}, "
        f"{encoder.count_params():,} parameters, {place}"
        f"{f', going on after step {int(saved[-1].stem[5:])}' if saved else ''}"
    )
    watching = model.default_callbacks(images)
    if worker == 0:  # only the chief writes
        watching.append(callbacks.Collapse(images))
        if tensorboard:
            watching.append(keras.callbacks.TensorBoard(tensorboard))
            watching.append(callbacks.Pictures(tensorboard, images))
            watching.append(callbacks.Projector(tensorboard, images))
        if log:
            watching.append(callbacks.CSVLog(log))
        watching.append(callbacks.Progress(number))
    if checkpoint:
        watching.append(callbacks.Checkpoint(checkpoint, every_steps=checkpoint_every))
    verbose = (1 if sys.stdout.isatty() else 2) if worker == 0 else 0
    model.fit(training, epochs=epochs, callbacks=watching, verbose=verbose)
    if worker == 0:
        hidden = out.with_name(f".{out.name}")
        model.save(hidden)
        os.replace(hidden, out)
        click.echo(f"wrote {out}; next: keras-ssl evaluate {out} --data {data}")
    # Nobody leaves before it is written: a job whose other workers succeeded is not started again.
    with distribute.lost_worker(devices):
        distribute.from_chief(devices, [np.zeros(1)])


def find_row(name):
    """The row of TASKS with that name."""
    for row in TASKS:
        if row.name == name:
            return row
    known = ", ".join(row.name for row in TASKS)
    raise ValueError(f"there is no task {name!r}: choose one of {known}")


def make_task(name, encoder, settings, images):
    """The task of that name, with `--set name=value` as further arguments."""
    row = find_row(name)
    known = [p for p in inspect.signature(row.task).parameters if p not in ("encoder", "kwargs")]
    arguments = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key not in known:
            raise ValueError(
                f"--set {setting!r} must be NAME=VALUE with NAME of {', '.join(known)}"
            )
        try:
            arguments[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            arguments[key] = value
    if "num_images" in known:
        arguments.setdefault("num_images", int(images.cardinality()))
    try:
        return row.task(encoder, **arguments)
    except TypeError as error:
        raise ValueError(f"--set {' '.join(settings)}: {error}") from None


def check_parent(option, path):
    """Refuses a file to be written in a folder that is not there."""
    if not Path(path).resolve().parent.is_dir():
        raise ValueError(f"{option}: there is no folder {str(Path(path).parent)!r}")
