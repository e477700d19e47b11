"""The configuration of a task: its constructor's arguments, as Keras saves them."""

import inspect

import keras
import numpy as np


def arguments_of(task):
    """Collects the arguments of a task's constructor from its attributes.

    Args:
        task: PretextModel, which keeps each argument in an attribute of the same name.

    Returns:
        dict for `get_config`; networks, layers and augmentation recipes are serialized.

    Raises:
        NotImplementedError: an argument is not kept.
    """
    config = {}
    for name, parameter in inspect.signature(type(task).__init__).parameters.items():
        if name == "self" or parameter.kind == inspect.Parameter.VAR_KEYWORD:
            continue
        if not hasattr(task, name):
            raise NotImplementedError(
                f"{type(task).__name__} takes the argument {name} but does not keep it: assign "
                f"self.{name} in the constructor, or the saved task would lose it"
            )
        value = getattr(task, name)
        several = isinstance(value, list | tuple)
        config[name] = type(value)(map(_serialized, value)) if several else _serialized(value)
    return config


def _serialized(value):
    if isinstance(value, np.ndarray):
        return value.tolist()
    return keras.saving.serialize_keras_object(value) if hasattr(value, "get_config") else value


def restored(config):
    """Restores objects that Keras serialized, including those inside lists, tuples and dicts.

    Args:
        config: dict, as saved from `arguments_of`.

    Returns:
        dict of arguments for the constructor.
    """
    return {name: _restored(value) for name, value in config.items()}


def _restored(value):
    if isinstance(value, dict):
        if "class_name" in value:
            return keras.saving.deserialize_keras_object(value)
        return restored(value)
    return type(value)(map(_restored, value)) if type(value) in (list, tuple) else value
