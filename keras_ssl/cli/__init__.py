"""The keras-ssl command."""

import json
import os
import sys
import warnings
from pathlib import Path

import click
import keras
import numpy as np
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl import plotting, serving
from keras_ssl.cli import data_service as service_command
from keras_ssl.cli import serve as command
from keras_ssl.cli.pretrain import (
    DATA_HELP,
    check_parent,
    encoder_options,
    find_row,
    make_task,
    pretrain,
)
from keras_ssl.data.named import named
from keras_ssl.protocols import Reconstructs
from keras_ssl.tasks import TASKS


def main():
    """Runs the command; an error a user can cause is one line and exit code 2."""
    warnings.simplefilter("ignore")
    warnings.filterwarnings("always", module="keras_ssl")
    warnings.showwarning = lambda message, *_: click.echo(
        f"keras-ssl: warning: {message}", err=True
    )
    try:
        sys.exit(cli(standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(0)
    except click.ClickException as error:
        _fail(error.format_message())
    except (ValueError, OSError, RuntimeError, FloatingPointError, tf.errors.OpError) as error:
        _fail(str(error))
    except (KeyboardInterrupt, click.Abort):
        click.echo("keras-ssl: stopped", err=True)
        sys.exit(130)


def _fail(message):
    click.echo(f"keras-ssl: {' '.join(message.split())}", err=True)
    sys.exit(2)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(kssl.__version__, prog_name="keras-ssl")
def cli():
    """Self-supervised pretext tasks: from unlabelled pictures to served features."""


@cli.command()
def tasks():
    """The pretext tasks, with their papers and labels."""
    print_table(
        [("name", "family", "paper", "labels")]
        + [(r.name, r.family, r.paper, r.labels) for r in TASKS]
    )


@cli.command()
@click.argument("task")
@click.option("--data", default="digits", show_default=True, help=DATA_HELP)
@click.option("--out", default="preview.png", show_default=True, help="The picture to write.")
@click.option("--number", default=6, show_default=True, help="Images to show.")
@encoder_options
def preview(task, data, out, number, size, settings, seed):
    """Draws what the network sees and its labels; TASK may be a trained one, a .keras file: then also
    what it predicts.
    """
    if number < 1:
        raise ValueError(f"--number must be at least 1, got {number}")
    check_parent("--out", out)
    if task.endswith(".keras"):
        if settings or size is not None:
            raise ValueError(f"{task} has its --size and --set from its training: leave them out")
        if not Path(task).is_file():
            raise ValueError(f"there is no file {task!r}: train one by keras-ssl pretrain")
        model, encoder = _load(task)
        if not isinstance(model, kssl.PretextModel):
            raise ValueError(f"{task!r} holds no task: give one that keras-ssl pretrain wrote")
        dataset, _ = named(data, encoder.input_shape[1:3], reader=model.reader)
        rows = kssl.callbacks.predicted(
            model, *next(iter(model.dataset(dataset, number, seed=seed)))
        )
    else:
        size = 32 if size is None else size
        dataset, _ = named(data, size, reader=find_row(task).task.reader)
        encoder = kssl.encoders.resnet((size, size, 3), width=1, blocks=(1,))
        model = make_task(task, encoder, settings, dataset)
        rows = model.preview(*next(model.dataset(dataset, number, seed=seed).as_numpy_iterator()))
    plotting.grid(rows, title=f"{task} on {data}").savefig(out)
    click.echo(f"wrote {out}")


cli.add_command(pretrain)


@cli.command()
@click.argument("model")
@click.option(
    "--data", default="digits", show_default=True, help=DATA_HELP + " One folder a class."
)
@click.option("--k", default=20, show_default=True, help="Neighbours of kNN.")
def evaluate(model, data, k):
    """Accuracy of MODEL's features (a .keras file or an export), by stage."""
    task, encoder = _load(model)
    height, width = encoder.input_shape[1:3]
    train, test = named(data, (height, width), split=True)
    keras.utils.set_random_seed(0)
    untrained = keras.models.clone_model(encoder)
    results = kssl.evaluation.compare(
        encoder, untrained, train, test, k=k, verbose=sys.stdout.isatty()
    )
    print_table(kssl.evaluation.table(results))
    if isinstance(task, Reconstructs):
        click.echo("\nthe pictures given back, beside the trivial answer:")
        found = kssl.evaluation.reconstruction(task, test)
        print_table([list(found), [f"{value:.3f}" for value in found.values()]])


@cli.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False))
@click.argument("out", default="")
@click.option(
    "--card", type=click.Path(exists=True, dir_okay=False), help="JSON file to add to the card."
)
def export(model, out, card):
    """Writes MODEL (a .keras file) to OUT/<next version> as a SavedModel.

    OUT is saved_models/<name of MODEL> by default.
    """
    card = json.loads(Path(card).read_text()) if card else None
    version = kssl.export(
        keras.models.load_model(model), out or f"saved_models/{Path(model).stem}", card
    )
    click.echo(f"wrote {version}; next: keras-ssl serve {Path(version).parent}")


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def serve(arguments):
    """Serves the models in a folder over gRPC and REST; takes tensorflow_model_server's flags."""
    command.main(list(arguments))


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def data_service(arguments):
    """A tf.data service: a dispatcher, or workers that make labels for trainings elsewhere."""
    service_command.main(list(arguments))


@cli.command()
@click.argument("folder")
@click.option("--out", default="features.npz", show_default=True)
@click.option("--model", help="An export, run here; or, with --server, the model's name there.")
@click.option("--server", metavar="HOST:PORT", help="Ask this server over gRPC.")
@click.option("--batch-size", default=64, show_default=True)
@click.option("--retries", default=5, show_default=True, help="While the server is away.")
@click.option("--ca", metavar="FILE", help="TLS: PEM of the authority that vouches for the server.")
@click.option("--certificate", metavar="FILE", help="Mutual TLS: PEM of who this client is.")
@click.option("--key", metavar="FILE", help="Mutual TLS: PEM of the certificate's private key.")
def extract(folder, out, model, server, batch_size, retries, ca, certificate, key):
    """Features of every picture in FOLDER, to an .npz; with --server it resumes what was stopped."""
    if not model:
        raise ValueError("--model is missing: an export such as saved_models/rotation_cifar10")
    check_parent("--out", out)
    tls = serving.credentials(ca, certificate, key) if ca or certificate or key else None
    if tls and not server:
        raise ValueError("--ca, --certificate and --key need --server")
    if server:
        with kssl.FeatureClient(
            server, model, batch_size=batch_size, retries=retries, credentials=tls
        ) as client:
            paths = kssl.data.folder.image_files(folder)
            shape = serving.extract(client, paths, out, progress=True)
        click.echo("wrote {}: {} x {}".format(out, *shape))
        return
    _, encoder = _load(model)
    dataset = kssl.data.from_folder(folder, encoder.input_shape[1:3])
    paths, parts = dataset.paths, []
    with click.progressbar(length=len(paths), label="features") as bar:
        for batch in dataset.batch(batch_size).prefetch(2):
            parts.append(encoder.predict_on_batch(batch["image"]))
            bar.update(len(parts[-1]))
    with open(f"{out}.new", "wb") as file:
        np.savez(file, id=np.arange(len(paths)), path=paths, features=np.concatenate(parts))
    os.replace(file.name, out)
    click.echo(f"wrote {out}: {len(paths)} x {parts[0].shape[1]}")


@cli.command()
@click.option(
    "--out", default=".", show_default=True, help="Folder for saved_models/ and quickstart.png."
)
def quickstart(out):
    """The whole path once, on handwritten digits: pretrain, judge, export, serve, query, fine-tune."""
    from keras_ssl.cli.quickstart import quickstart

    quickstart(Path(out))


def _load(path):
    """What lies in a .keras file or an export, and its encoder."""
    model = keras.models.load_model(path) if Path(path).is_file() else kssl.load(path)
    return model, getattr(model, "encoder", model)


def print_table(rows):
    """Prints rows of text in columns, the header first."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
