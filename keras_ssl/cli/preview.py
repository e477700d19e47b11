"""`keras-ssl preview`: draws the inputs, labels and predictions of a task."""

from pathlib import Path

import click

import keras_ssl as kssl
from keras_ssl import files, plotting
from keras_ssl.cli import common
from keras_ssl.cli.settings import make_task, named_in_errors, patch_arguments

SCENES = "scenes"


@click.command()
@click.argument("task")
@common.data_option()
@common.synthetic_option
@click.option("--out", default="preview.png", show_default=True, help="The image to write.")
@click.option(
    "--number", default=6, show_default=True, type=click.IntRange(1), help="Images to show."
)
@common.task_options
@common.import_option
def preview(
    task,
    data,
    synthetic,
    out,
    number,
    frames,
    stride,
    cache,
    min_motion,
    size,
    settings,
    seed,
    modules,
):
    """Draws the inputs of the network and their labels.

    TASK is the name of a task, or the .keras file of a trained task, whose predictions are drawn, too.
    "scenes" draws all columns of rendered scenes.
    """
    trained = task.endswith(".keras")
    common.check_figure("--out", out)
    common.check_data(data)
    common.check_synthetic(synthetic)
    if cache:
        common.check_folder("--cache", cache)
    if trained:
        _check_trained(task, size, settings)
    elif task != SCENES:
        common.find_row(task)

    common.import_tensorflow()
    source = {
        "name": data,
        "synthetic": synthetic,
        "frames": frames,
        "stride": stride,
        "cache": cache,
        "min_motion": min_motion,
    }
    if trained:
        rows = _trained(task, source, number, seed, modules)
    elif task == SCENES:
        clips = kssl.data.scenes(number, size or 96, frames=2, seed=seed)
        rows = [plotting.columns(row) for row in clips.as_numpy_iterator()]
    else:
        rows = _untrained(task, source, number, size or 32, settings, seed)
    with files.complete(out) as draft:
        plotting.grid(rows, title=None if task == SCENES else f"{task} on {data}").savefig(draft)
    click.echo(f"wrote {out}")


def _check_trained(path, size, settings):
    if settings or size is not None:
        raise ValueError(f"{path} has the --size and --set of its training run: leave them out")
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path!r}: train one by keras-ssl pretrain")
    common.check_model(path)


def _trained(path, source, number, seed, modules):
    """Computes the rows to draw for a trained task, with its predictions."""
    task, encoder = common.load_model(path, modules)
    if not isinstance(task, kssl.PretextModel):
        raise ValueError(f"{path!r} holds no task: give a file that keras-ssl pretrain wrote")
    images = _load(task, source, encoder.input_shape[1:3])
    x, y = next(iter(task.dataset(images, number, seed=seed)))
    return kssl.callbacks.predicted(task, x, y)


def _untrained(name, source, number, size, settings, seed):
    """Computes the rows to draw for a task that is given by name."""
    task = common.find_row(name).task
    images = _load(task, source, size)
    patches = patch_arguments(name, settings)
    encoder = task.architecture((size, size, 3), width=2, blocks=(1,), **patches)
    with named_in_errors(settings):
        task = make_task(name, encoder, settings, images)
        x, y = next(task.dataset(images, number, seed=seed).as_numpy_iterator())
    return task.preview(x, y)


def _load(task, source, size):
    """Loads the images for a task; `source` are arguments of `load_dataset`."""
    from keras_ssl.data.named import load_dataset

    return load_dataset(size=size, reader=task.reader, needs=task.needs, **source)[0]
