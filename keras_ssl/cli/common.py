"""Common parts of the subcommands: options, checks, and models by name."""

import argparse
import importlib
import socket
from pathlib import Path

import click

import keras_ssl as kssl
from keras_ssl.tasks import TASKS

DATA_HELP = "A folder of images or TFRecords, or digits, or cifar10 (downloaded by Keras)."


class ArgumentParser(argparse.ArgumentParser):
    """Creates the argparse.ArgumentParser of a subcommand, which prints errors in one line."""

    def error(self, message):
        subcommand = self.prog.split()[1]
        raise ValueError(f"{subcommand}: {message} (keras-ssl {subcommand} --help)")


def options(*decorators):
    """Returns one decorator for several of click's options; `--help` lists them in this order."""

    def decorate(command):
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def data_option(more_help=""):
    """Returns the decorator for the option `--data`."""
    return click.option("--data", default="digits", show_default=True, help=DATA_HELP + more_help)


# Options of preview and pretrain.
task_options = options(
    click.option("--size", type=click.IntRange(1), help="Height and width in pixels; default 32."),
    click.option(
        "--set", "settings", multiple=True, metavar="NAME=VALUE", help="Argument of the task."
    ),
    # NumPy, which Keras seeds too, takes 32 bits.
    click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1)),
)


def import_tensorflow():
    """Imports the public names of keras_ssl, and with them TensorFlow without its log.

    Call it after the checks that do not need TensorFlow, and before `import keras`.
    """
    importlib.import_module("keras_ssl._public")


def find_row(name):
    """Returns the row of TASKS with that name."""
    for row in TASKS:
        if row.name == name:
            return row
    known = ", ".join(row.name for row in TASKS)
    raise ValueError(f"there is no task {name!r}: choose one of {known}")


def check_data(name):
    """Raises ValueError unless `--data` is a folder or a built-in data set."""
    if name not in ("digits", "cifar10") and not Path(name).is_dir():
        raise ValueError(
            f"--data: there is no folder {name!r}: give a folder of images, or digits or cifar10"
        )


def check_parent(option, path):
    """Raises ValueError if the folder of a file to write does not exist."""
    if not Path(path).resolve().parent.is_dir():
        raise ValueError(f"{option}: there is no folder {str(Path(path).parent)!r}")


def check_model(path):
    """Raises ValueError if there is neither a file nor a folder to load a model from."""
    if not Path(path).exists():
        raise ValueError(
            f"there is no file or folder {path!r}: give a .keras file that keras-ssl pretrain wrote, or an "
            "export"
        )


def load_model(path):
    """Loads a .keras file or an export.

    Returns:
        (model, encoder): the encoder of a task; for any other model both are that model.
    """
    import keras

    model = keras.models.load_model(path) if Path(path).is_file() else kssl.load(path)
    return model, getattr(model, "encoder", model)


def free_port():
    """Returns a port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
