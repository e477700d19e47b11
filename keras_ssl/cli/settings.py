"""The option `--set NAME=VALUE`: arguments of a task from the command line."""

import ast
import contextlib
import inspect

from keras_ssl.cli import common

SWITCHES = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def make_task(name, encoder, settings, images):
    """Creates the task with a given name, with `--set name=value` as further arguments."""
    task = common.find_row(name).task
    arguments = _arguments(name, settings)
    if "num_images" in inspect.signature(task).parameters:
        arguments.setdefault("num_images", int(images.cardinality()))
    return task(encoder, **arguments)


def patch_arguments(name, settings):
    """Returns a dict of the settings that the encoder of a task needs, too."""
    known = inspect.signature(common.find_row(name).task.architecture).parameters
    names = {"patch", "stride"} & set(known)
    return {key: value for key, value in _arguments(name, settings).items() if key in names}


def _arguments(name, settings):
    """Parses `--set name=value`; returns a dict."""
    task = common.find_row(name).task
    every = {key: p.default for key, p in inspect.signature(task).parameters.items()}
    if "teacher" in every:
        raise ValueError(
            f"{name} needs a teacher, a trained network, which only Python can give: see docs/crossmodal.md"
        )
    defaults = {k: default for k, default in every.items() if k not in (*task.networks, "kwargs")}
    arguments = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key not in defaults:
            raise ValueError(
                f"--set {setting!r} must be NAME=VALUE with NAME of {', '.join(defaults)}"
            )
        arguments[key] = _value(key, text, defaults[key])
    return arguments


@contextlib.contextmanager
def named_in_errors(settings):
    """Raises a ValueError that names the settings if a value of a wrong type fails somewhere in the task.

    Only the task knows the type of an argument whose default is None, and some values do not fail in the
    constructor but when the labels are computed.
    """
    try:
        yield
    except (TypeError, ArithmeticError, AssertionError) as error:
        if not settings:
            raise
        reason = str(error) or type(error).__name__
        raise ValueError(f"--set {' '.join(settings)}: {reason}") from None


def _value(name, text, default):
    """Parses VALUE to the type of the argument's default."""
    if isinstance(default, bool):
        # Not by Python's syntax: "false" is not a Python literal, and any non-empty string counts as True.
        if text.lower() not in SWITCHES:
            raise ValueError(f"--set {name} must be true or false, got {text!r}")
        return SWITCHES[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    if isinstance(default, str):
        return value if isinstance(value, str) else text
    if type(default) is int:
        # A task with one number per axis accepts a list, too; other tasks refuse it.
        fits, kind = type(value) in (int, tuple, list), "an integer"
    elif type(default) is float:
        fits, kind = type(value) in (int, float), "a number"
    else:  # None: a number of pixels or classes that the task computes, or a list
        fits, kind = type(value) not in (bool, float), "an integer or a list"
    if type(value) in (int, float) and not abs(value) < 2**63:  # TensorFlow's limit; NaN fails, too
        fits, kind = False, "a finite number of 64 bits at most"
    if value is text and text.startswith(("[", "(")):
        fits, kind = False, "a complete list: close its brackets"
    if not fits:
        raise ValueError(f"--set {name} must be {kind}, got {text!r}")
    return value
