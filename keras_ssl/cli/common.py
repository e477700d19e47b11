"""Common parts of the subcommands: options, checks, and models by name."""

import argparse
import importlib
import json
import os
import re
import socket
import sys
import zipfile
from pathlib import Path

import click

import keras_ssl as kssl
from keras_ssl.tasks import TASKS

FIGURE_SUFFIXES = (".png", ".jpg", ".pdf", ".svg", ".webp")  # some of matplotlib's formats
NAME_ROOM = 10  # bytes that the name of a draft, partial or numbered file has in addition to the file's name
DATA_HELP = (
    "A folder of images, videos or TFRecords, digits, scenes (rendered), or cifar10 (downloaded)."
)


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


# Options of preview, pretrain and extract.
clip_options = options(
    click.option(
        "--frames",
        type=click.IntRange(1),
        metavar="N",
        help="Frames of a clip from a folder of videos.",
    ),
    click.option(
        "--stride", type=click.IntRange(1), metavar="N", help="Use every Nth frame of these videos."
    ),
    click.option(
        "--cache",
        metavar="DIR",
        help="Keep the decoded frames of videos in this folder for later runs.",
    ),
)


# Options of preview and pretrain.
task_options = options(
    clip_options,
    click.option(
        "--min-motion",
        type=click.FloatRange(0),
        metavar="X",
        help="Leave out clips that move less than this fraction of the frame per frame, e.g. 0.01.",
    ),
    click.option("--size", type=click.IntRange(1), help="Height and width in pixels; default 32."),
    click.option(
        "--set", "settings", multiple=True, metavar="NAME=VALUE", help="Argument of the task."
    ),
    # NumPy, which Keras seeds too, takes 32 bits.
    click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**32 - 1)),
)


synthetic_option = click.option(
    "--synthetic", default="scenes", show_default=True, metavar="DATA",
    help="Rendered images for a task on pairs with real ones: scenes, or a folder of TFRecords.",
)  # fmt: skip


import_option = click.option(
    "--import", "modules", multiple=True, metavar="MODULE",
    help="Python module, here or installed, that defines your own task or layer.",
)  # fmt: skip


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
    if name not in ("digits", "scenes", "cifar10") and not Path(name).is_dir():
        raise ValueError(
            f"--data: there is no folder {name!r}: give a folder of images, or digits, scenes or cifar10"
        )


def check_synthetic(name):
    """Raises ValueError unless `--synthetic` is a folder or scenes."""
    if name != "scenes" and not Path(name).is_dir():
        raise ValueError(
            f"--synthetic: there is no folder {name!r}: give one of TFRecords, or scenes"
        )


def check_file(option, path):
    """Raises ValueError unless the file can be written; better now than after hours of work."""
    path = Path(path)
    if not path.parent.is_dir():
        raise ValueError(f"{option}: there is no folder {str(path.parent)!r}")
    longest = os.pathconf(path.parent, "PC_NAME_MAX") - NAME_ROOM
    if len(os.fsencode(path.name)) > longest:
        raise ValueError(
            f"{option} must be a file name of at most {longest} bytes, got {path.name!r}: give a shorter one"
        )
    if path.is_dir():
        raise ValueError(f"{option} must be a file, but {str(path)!r} is a folder")
    _check_writable(option, path.parent)


def check_figure(option, path):
    """Raises ValueError unless the file can be written in a format of matplotlib."""
    check_file(option, path)
    if Path(path).suffix.lower() not in FIGURE_SUFFIXES:
        raise ValueError(f"{option} must end in {', '.join(FIGURE_SUFFIXES)}, got {path!r}")


def check_folder(option, path):
    """Raises ValueError unless the folder can be written, or created."""
    if "://" in path:
        return  # on a remote file system that TensorFlow supports
    existing = next(p for p in (Path(path), *Path(path).parents) if p.exists())
    if not existing.is_dir():
        raise ValueError(f"{option} must be a folder, but {str(existing)!r} is a file")
    _check_writable(option, existing)


def _check_writable(option, folder):
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{option}: the folder {str(folder)!r} is not writable: give another")


def is_chief(strategy):
    """Returns whether this process is the worker that writes files, according to the environment.

    Args:
        strategy: str, the option `--strategy`.
    """
    if strategy == "mirrored":
        return True
    described = os.environ.get("TF_CONFIG")
    if not described:
        return os.environ.get("SLURM_PROCID", "0") == "0"
    try:
        config = json.loads(described)
        kind, index = config["task"]["type"], int(config["task"]["index"])
        return index == 0 and kind == ("chief" if config["cluster"].get("chief") else "worker")
    except (ValueError, KeyError, TypeError, AttributeError):
        return True  # `distribute.strategy` raises the error


def check_model(path):
    """Raises ValueError if there is neither a file nor a folder to load a model from."""
    if not Path(path).exists():
        raise ValueError(
            f"there is no file or folder {path!r}: give a .keras file that keras-ssl pretrain wrote, or an "
            "export"
        )
    if Path(path).is_file() and Path(path).suffix == ".keras":
        try:
            with zipfile.ZipFile(path) as file:
                damaged = file.testzip()
        except Exception as error:  # its class depends on which byte is wrong
            damaged = error
        if damaged:
            raise ValueError(
                f"{path!r} is damaged or not completely copied ({damaged}): copy it again or restore it"
            )


def load_model(path, modules=()):
    """Loads a .keras file or an export.

    Args:
        path: str.
        modules: list of str, values of the option `--import`.

    Returns:
        (model, encoder): a task and its encoder; for any other model, both are that model.

    Raises:
        ValueError: a module cannot be imported; the file needs an unknown class, cannot be loaded for another
            reason, or contains no model of images.
    """
    import keras

    _import(modules)
    try:
        model = keras.models.load_model(path) if Path(path).is_file() else kssl.load(path)
        encoder = getattr(model, "encoder", model)
        kssl.encoders.check_image_shape(encoder)
    except Exception as error:  # which error Keras raises depends on the content of the file
        if unknown := re.search(r"Could not locate (?:class|function) '(\w+)'", str(error)):
            raise ValueError(
                f"{path!r} needs {unknown[1]!r}, which keras_ssl does not define: import the module that "
                "does by --import MODULE"
            ) from None
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path!r} cannot be loaded: {reason}") from None
    return model, encoder


def _import(modules):
    if modules:
        sys.path.insert(0, os.getcwd())  # which Python does for `python -m`, but not for a script
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # the module is the user's: any error is possible
            raise ValueError(
                f"--import {name} failed ({type(error).__name__}: {error}): give the name of a module that "
                "is installed or in this folder, such as my_task for my_task.py"
            ) from None


def free_port():
    """Returns a port that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
