"""Finds the trained models that come with the repository, without TensorFlow."""

import json
import os
from pathlib import Path

VARIABLE = "KERAS_SSL_ZOO"  # environment variable with the folder of the models
CHECKOUT = Path(__file__).parent.parent / "saved_models"


def folders():
    """Returns the existing folders that may hold models of the zoo, the one to prefer first.

    Returns:
        list of pathlib.Path: that of the environment variable `KERAS_SSL_ZOO`, `saved_models` in the current
        folder, and `saved_models` of the repository, if the package is used from there.

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
        for file in folder.glob("*/*/assets.extra/card.json"):
            version, model = file.parent.parent, file.parent.parent.parent
            newest = found.get(model.name)
            if not version.name.isdigit():
                continue
            if newest and newest.parent == model and int(newest.name) > int(version.name):
                continue
            found[model.name] = version
    return {
        name: (found[name], json.loads((found[name] / "assets.extra" / "card.json").read_text()))
        for name in sorted(found)
    }
