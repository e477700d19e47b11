"""What a resumed training run must have in common with the interrupted one: arguments, optimizer, data."""

import hashlib
import json
import weakref

import keras

from keras_ssl.data.columns import fingerprint
from keras_ssl.training import configuration

OF_DATASET = ("number of images", "batch_size", "shuffle", "seed", "images")
# Not to be overridden: they determine the position in the data, or the meaning of the slots.
FIXED = ("number of images", "batch_size", "optimizer", "discriminator_optimizer")
# The length of schedules that end with the run, which may be continued for more epochs.
LENGTHS = {"CosineDecay": ("decay_steps", "warmup_steps"), "PolynomialDecay": ("decay_steps",)}
MAX_TEXT = 60  # characters of a value in an error
_COMPILED = weakref.WeakKeyDictionary()  # optimizers to their arguments


def described(task, dataset, override=()):
    """Describes a training run.

    Args:
        task: PretextModel, compiled.
        dataset: the training data, from `task.dataset`.
        override: names of arguments that may differ from the earlier run.

    Returns:
        dict for JSON.

    Raises:
        ValueError: `override` contains a name that is not such an argument.
    """
    arguments = {
        name: json.dumps(_without_names(keras.saving.serialize_keras_object(value)))
        for name, value in configuration.arguments_of(task).items()
        # The layers of equal networks have different names, so their variables are compared instead.
        # `scratch` is left out: it is only the place where a run computes.
        if name not in task.networks and name != "scratch"
    }
    run = {
        "number of images": dataset.number,
        "batch_size": dataset.batch_size,
        "shuffle": bool(dataset.shuffle),
        "seed": int(dataset.seed),
        "images": fingerprint(dataset.images),
        "optimizer": of_optimizer(task),
        "arguments": {
            name: hashlib.sha256(s.encode()).hexdigest() for name, s in arguments.items()
        },
        "texts": {name: text[:MAX_TEXT] for name, text in arguments.items()},
    }
    known = [name for name in (*OF_DATASET, *run["optimizer"], *arguments) if name not in FIXED]
    for name in override:
        if name not in known:
            raise ValueError(f"override must name some of {', '.join(known)}, got {name!r}")
    return run


def of_optimizer(task):
    """Describes the optimizers of a task, with the values that they had at the first call.

    Callbacks may change the learning rate, which must not count as another argument when the same task is
    trained further.

    Args:
        task: PretextModel, compiled.

    Returns:
        dict for JSON: name of the argument to its value; for a second optimizer, the names include its name.
    """
    found = {}
    for name, value in vars(task).items():
        if isinstance(value, keras.optimizers.Optimizer):
            serialized = _COMPILED.setdefault(value, keras.optimizers.serialize(value))
            found[name] = serialized["class_name"]
            prefix = "" if name == "optimizer" else f"{name}."
            found.update(_flat(serialized["config"], prefix))
    return found


def _flat(config, prefix):
    """Yields (name, value) of the arguments of an optimizer, or of one inside a `LossScale`."""
    for name, value in config.items():
        if name == "inner_optimizer":
            yield from _flat(value["config"], prefix)
        elif name != "name":
            yield f"{prefix}{name}", _text(value) if isinstance(value, dict) else value


def _text(schedule):
    """Formats a serialized schedule of the learning rate, without its length."""
    if not isinstance(schedule, dict) or "class_name" not in schedule:
        return json.dumps(schedule)
    left_out = ("name", *LENGTHS.get(schedule["class_name"], ()))
    arguments = (f"{k}={_text(v)}" for k, v in schedule["config"].items() if k not in left_out)
    return f"{schedule['class_name']}({', '.join(arguments)})"


def _without_names(config):
    """Removes the names, which differ between two equal layers of one process."""
    if isinstance(config, dict):
        kept = {k: v for k, v in config.items() if k not in ("name", "shared_object_id")}
        return {key: _without_names(value) for key, value in kept.items()}
    return list(map(_without_names, config)) if isinstance(config, list | tuple) else config


def check(run, saved, path, override=()):
    """Raises ValueError if a checkpoint belongs to another training run, and names the first difference.

    Args:
        run: dict, as `described` returns it.
        saved: dict that the checkpoint contains; an older checkpoint lacks some of the names.
        path: pathlib.Path of the checkpoint.
        override: names of arguments that may differ.

    Returns:
        dict, the description of the resumed run: the checkpoint's description with the overridden values.
    """
    for name, before, now in _differences(run, saved):
        if name not in override:
            or_override = (
                "" if name in FIXED
                else f", or override={[name]!r} (--override {name}) to go on with the new value"
            )  # fmt: skip
            raise ValueError(
                f"{path} belongs to a training run with {name} {before}, this one has {now}: give that "
                f"value, or another directory{or_override}"
            )
    both = {}
    for key, value in run.items():
        both[key] = value if key in override else saved.get(key, value)
        if isinstance(value, dict):
            new = {name: value[name] for name in override if name in value}
            both[key] = {**value, **saved.get(key, {}), **new}
    return both


def _differences(run, saved):
    """Yields (name, value of the checkpoint, value of this run) for each difference."""
    for name in OF_DATASET:
        before, now = saved.get(name), run[name]
        if None not in (before, now) and before != now:  # None: unknown
            yield name, before, now
    for name, now in run["optimizer"].items():
        before = saved.get("optimizer", {}).get(name, now)
        if before != now:
            yield name, before, now
    for name, digest in run["arguments"].items():
        if saved.get("arguments", {}).get(name, digest) != digest:
            yield name, saved.get("texts", {}).get(name, "another value"), run["texts"][name]
