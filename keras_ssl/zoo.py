"""Finds models, their versions and cards without TensorFlow, in particular those of the repository."""

import json
import os
from pathlib import Path

CARD = "assets.extra/card.json"  # in the directory of a version
VARIABLE = "KERAS_SSL_ZOO"  # environment variable with the folder of the models
CHECKOUT = Path(__file__).parent.parent / "saved_models"


def folders():
    """Returns the existing folders that may contain models of the zoo, the preferred one first.

    Returns:
        list of pathlib.Path: the folder in the environment variable `KERAS_SSL_ZOO`, `saved_models` in the
        current folder, and `saved_models` of the repository, if the package is used from there.

    Example:
        >>> all(folder.is_dir() for folder in folders())
        True
    """
    named = [Path(os.environ[VARIABLE])] if os.environ.get(VARIABLE) else []
    return [folder for folder in (*named, Path("saved_models"), CHECKOUT) if folder.is_dir()]


def models():
    """Finds the models of the zoo and reads their cards.

    Returns:
        dict from the name, sorted, to (path, card): pathlib.Path of the newest version, and the dict that
        `export` wrote into its card.json.

    Example:
        >>> path, card = models()["rotation_cifar10"]                           # doctest: +SKIP
        >>> card["task"]                                                        # doctest: +SKIP
        'rotation'
    """
    found = {}
    for folder in reversed(folders()):
        for model in folder.iterdir():
            if version := newest(model):
                found[model.name] = version
    return {
        name: (found[name], json.loads((found[name] / CARD).read_text())) for name in sorted(found)
    }


def newest(path):
    """Finds the newest version of a model that has a card.

    Args:
        path: directory of a model.

    Returns:
        pathlib.Path, or None if there is no such version.
    """
    with_card = [version for version in versions(path).values() if (version / CARD).is_file()]
    return with_card[-1] if with_card else None


def versions(path):
    """Lists the versions of a model: its numeric directories, as TensorFlow Serving does.

    Args:
        path: directory of a model.

    Returns:
        dict of int to pathlib.Path, ascending ("00000123" is version 123); empty if there is no such
        directory.
    """
    try:
        found = scan_versions(path)
    except OSError:
        return {}
    return {version: Path(found[version]) for version in sorted(found)}


def scan_versions(path):
    """Lists the versions of a model, fast enough to poll a folder of many entries.

    Args:
        path: directory of a model.

    Returns:
        dict of int to the path as str, in no order.

    Raises:
        OSError: there is no such directory, or it cannot be read.
    """
    found = {}
    with os.scandir(path) as entries:
        for entry in entries:
            digits = entry.name.lstrip("0") or "0"
            # The length comes first: int() refuses strings of more than 4,300 digits.
            if len(digits) > 19 or not (entry.name.isascii() and entry.name.isdecimal()):
                continue
            if is_folder(entry):
                found[int(digits)] = entry.path
    return {version: found[version] for version in found if version < 2**63}


def is_folder(entry):
    """Returns whether an os.DirEntry is a folder or a link to one; only links take a system call.

    A broken symlink or a symlink loop is not a folder; `entry.is_dir()` would raise an OSError for it.
    """
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))
