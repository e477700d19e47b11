"""`keras-ssl pretrain`: trains an encoder on a pretext task."""

import itertools
import os
import sys
import types
from pathlib import Path

import click

import keras_ssl as kssl
from keras_ssl import files
from keras_ssl.cli import common
from keras_ssl.cli.settings import make_task, named_in_errors, patch_arguments
from keras_ssl.protocols import LeavesOut, Relabels

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
POSITIVE = click.IntRange(1)
OWNED = "output.txt"  # in the checkpoint folder: the file that the training run has written

_encoder_options = common.options(
    click.option(
        "--width", default=32, show_default=True, type=POSITIVE,
        help="Channels of the encoder's first stage.",
    ),
    click.option("--blocks", default="2,2,2,2", show_default=True, help="Residual blocks per stage."),
    click.option(
        "--stem", default="small", show_default=True, type=click.Choice(["small", "imagenet"]),
        help="The encoder's first layers: for small images, or as for ImageNet.",
    ),
    click.option("--sobel", is_flag=True, help="The encoder sees gray gradients, no colors."),
)  # fmt: skip
_run_options = common.options(
    click.option("--epochs", default=10, show_default=True, type=POSITIVE),
    click.option(
        "--batch-size", default=64, show_default=True, type=POSITIVE,
        help="Images per step, over all devices.",
    ),
    click.option(
        "--learning-rate", type=click.FloatRange(0, min_open=True),
        help="Peak learning rate; by default the task's own, such as 0.1.",
    ),
    click.option(
        "--steps-per-execution", default=1, show_default=True, type=POSITIVE,
        help="Steps between callbacks.",
    ),
)  # fmt: skip
_device_options = common.options(
    click.option(
        "--strategy", default="auto", show_default=True,
        type=click.Choice(["auto", "mirrored", "multi_worker"]),
        help="All devices of this machine, or of several by TF_CONFIG or Slurm; auto finds out which.",
    ),
    click.option(
        "--precision", default="float32", show_default=True, type=click.Choice(list(POLICIES)),
        help="Precision of the convolutions; float16 scales the loss.",
    ),
    click.option("--xla/--no-xla", default=None, help="Compile with XLA; by default on GPUs only."),
    click.option(
        "--service", metavar="ADDRESS", help="grpc://host:port of a keras-ssl data-service."
    ),
)  # fmt: skip
_file_options = common.options(
    click.option("--out", help="The .keras file to write; TASK_DATA.keras by default."),
    click.option("--overwrite", is_flag=True, help="Replace the file of an earlier run."),
    click.option(
        "--checkpoint", metavar="DIR", help="Save to this folder after each epoch, and resume from it."
    ),
    click.option(
        "--checkpoint-every", type=POSITIVE, metavar="STEPS", help="Also save after this many steps."
    ),
    click.option(
        "--override", multiple=True, metavar="NAME",
        help="Resume although this argument has a new value, such as learning_rate.",
    ),
    click.option(
        "--tensorboard", metavar="DIR", help="Write scalars, images and features to this folder."
    ),
    click.option("--log", metavar="FILE", help="Write the metrics of each epoch to this CSV file."),
)  # fmt: skip


@click.command()
@click.argument("task")
@common.data_option()
@common.synthetic_option
@common.task_options
@_encoder_options
@_run_options
@_device_options
@_file_options
def pretrain(**options):
    """Trains an encoder on a pretext task, without labels."""
    options = types.SimpleNamespace(**options)
    check(options)
    common.import_tensorflow()
    run(options)


def check(options):
    """Checks the options that can be checked without TensorFlow.

    Args:
        options: types.SimpleNamespace of the command line.

    Raises:
        ValueError: an option is invalid, or the output file of an earlier run exists.
    """
    common.find_row(options.task)
    path = output_path(options)
    if path.suffix != ".keras":
        raise ValueError(f"--out must be a file ending in .keras, got {str(path)!r}")
    common.check_file("--out", path)
    if options.log:
        common.check_file("--log", options.log)
    for name in ("checkpoint", "tensorboard", "cache"):
        if folder := getattr(options, name):
            common.check_folder(f"--{name}", folder)
    common.check_data(options.data)
    common.check_synthetic(options.synthetic)
    if options.checkpoint_every and not options.checkpoint:
        raise ValueError("--checkpoint-every needs --checkpoint, the folder to save in")
    if options.override and not options.checkpoint:
        raise ValueError("--override needs --checkpoint, the folder to resume from")
    blocks_per_stage(options)
    if common.is_chief(options.strategy) and not may_replace(options):
        raise ValueError(
            f"{str(path)!r} exists already: give another --out, or --overwrite to replace it"
        )


def output_path(options):
    """Returns the pathlib.Path of the file to write."""
    return Path(options.out or f"{options.task}_{Path(options.data).resolve().name}.keras")


def blocks_per_stage(options):
    """Parses the option `--blocks` to a tuple of ints."""
    try:
        return tuple(int(number) for number in options.blocks.split(","))
    except ValueError:
        raise ValueError(
            f"--blocks must be numbers such as 2,2,2,2, got {options.blocks!r}"
        ) from None


def may_replace(options):
    """Returns whether the output file can be written without losing the output of another run.

    A run may replace the file that is named in its checkpoint folder, so that a job that is restarted after
    its end succeeds again.
    """
    if options.overwrite or not output_path(options).exists():
        return True
    if not options.checkpoint:
        return False
    owned = Path(options.checkpoint, OWNED)
    return owned.is_file() and owned.read_text() == relative(
        output_path(options), options.checkpoint
    )


def run(options):
    """Trains the task and writes it."""
    import keras
    import numpy as np

    devices = kssl.distribute.strategy(options.strategy)  # before any other TensorFlow operation
    chief = kssl.distribute.worker(devices)[0] == 0
    keras.utils.set_random_seed(options.seed)
    keras.config.set_dtype_policy(POLICIES[options.precision])
    images = read(options)
    with devices.scope():
        task, images, training = build(options, devices, images)
    announce(options, devices, task, images, training)
    watching = callbacks(options, task, images, chief)
    verbose = (1 if sys.stdout.isatty() else 2) if chief else 0
    task.fit(training, epochs=options.epochs, callbacks=watching, verbose=verbose)
    if chief:
        path = save(task, options)
        click.echo(f"wrote {path}; next: keras-ssl evaluate {path} --data {options.data}")
    # No worker exits before the file is written, since a job whose other workers succeeded is not restarted.
    with kssl.distribute.lost_worker(devices):
        kssl.distribute.from_chief(devices, [np.zeros(1)])


def read(options):
    """Returns the training images."""
    from keras_ssl.data.named import load_dataset

    task = common.find_row(options.task).task
    # A clustering task reads all images before it can start; other tasks start at once.
    check_all = issubclass(task, Relabels)
    images, _ = load_dataset(
        options.data, options.size or 32, reader=task.reader, check=check_all, needs=task.needs,
        synthetic=options.synthetic, frames=options.frames, stride=options.stride,
        cache=options.cache, min_motion=options.min_motion,
    )  # fmt: skip
    return images


def build(options, devices, images):
    """Creates the compiled task, the images to train it on, and the training data."""
    size = options.size or 32
    encoder = common.find_row(options.task).task.architecture(
        (size, size, 3),
        options.width,
        blocks_per_stage(options),
        options.stem,
        synchronized=devices.num_replicas_in_sync > 1,
        preprocessing=kssl.layers.Sobel() if options.sobel else None,
        **patch_arguments(options.task, options.settings),
    )
    with named_in_errors(options.settings):
        task = make_task(options.task, encoder, options.settings, images)
        if isinstance(task, LeavesOut):
            kssl.callbacks.relabel.recompute(task, images)
            images = task.labeled(images)
        training = task.dataset(
            images, options.batch_size, options.epochs, seed=options.seed, service=options.service
        )
    rate = () if options.learning_rate is None else (options.learning_rate,)
    task.compile(
        task.default_optimizer(options.epochs * training.steps_per_epoch, *rate),
        jit_compile="auto" if options.xla is None else options.xla,
        steps_per_execution=options.steps_per_execution,
    )
    return task, images, training


def announce(options, devices, task, images, training):
    """Prints the task, its data and devices, and the folder of the checkpoints."""
    import tensorflow as tf

    worker, workers = kssl.distribute.worker(devices)
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    parts = [
        f"{int(images.cardinality())} images",
        f"{training.steps_per_epoch} steps per epoch",
        f"{options.epochs} epoch{'s' if options.epochs > 1 else ''}",
        f"{devices.num_replicas_in_sync} {kind}"
        + (f" (worker {worker} of {workers})" if workers > 1 else ""),
        options.precision,
        f"{task.encoder.count_params():,} parameters",
        f"checkpoints in {options.checkpoint}" if options.checkpoint else "no checkpoints",
    ]
    saved = kssl.callbacks.checkpoint.saved_in(options.checkpoint) if options.checkpoint else []
    if saved:
        parts.append(f"resuming from step {saved[-1][0]}")
    click.echo(f"{options.task} on {options.data}: {', '.join(parts)}")


def callbacks(options, task, images, chief):
    """Returns the callbacks of this worker; only those of the chief write files."""
    import keras

    watching = task.default_callbacks(images)
    if chief:
        watching.append(kssl.callbacks.Collapse(images))
        if "label" in images.element_spec:
            watching.append(kssl.callbacks.KNN(images, number=1000))
        if options.tensorboard:
            watching.append(keras.callbacks.TensorBoard(options.tensorboard))
            watching.append(kssl.callbacks.Pictures(options.tensorboard, images))
            watching.append(kssl.callbacks.Projector(options.tensorboard, images))
        if options.log:
            watching.append(kssl.callbacks.CSVLog(options.log))
        watching.append(kssl.callbacks.Progress(int(images.cardinality())))
    if options.checkpoint:
        watching.append(
            kssl.callbacks.Checkpoint(
                options.checkpoint, every_steps=options.checkpoint_every, override=options.override
            )
        )
    return watching


def save(task, options):
    """Writes the task, under a numbered name if another run has written the file in the meantime.

    Returns:
        pathlib.Path.
    """
    path = output_path(options)
    if not may_replace(options):
        numbered = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(2))
        path = next(other for other in numbered if not other.exists())
    if options.checkpoint:
        with files.complete(Path(options.checkpoint, OWNED)) as draft:
            Path(draft).write_text(relative(path, options.checkpoint))
    with files.complete(path) as draft:
        task.save(draft)
    return path


def relative(path, folder):
    """Returns the path relative to a folder, so that both can be moved together."""
    return os.path.relpath(Path(path).resolve(), Path(folder).resolve())
