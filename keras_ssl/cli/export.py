"""`keras-ssl export`: writes a trained task as a SavedModel."""

import json
from pathlib import Path

import click

import keras_ssl as kssl
from keras_ssl.cli import common


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False))
@click.argument("out", default="")
@click.option(
    "--card", type=click.Path(exists=True, dir_okay=False), help="JSON file to add to the card."
)
@common.import_option
def export(model, out, card, modules):
    """Exports a trained task as a SavedModel.

    MODEL is a .keras file. OUT is the folder of the model, to which the next version is written; by default
    saved_models/<name of MODEL>.
    """
    out = out or f"saved_models/{Path(model).stem}"
    common.check_model(model)
    common.check_folder("OUT", out)
    card = _read_card(card) if card else None

    common.import_tensorflow()
    task, _ = common.load_model(model, modules)
    version = kssl.export(task, out, card)
    click.echo(f"wrote {version}; next: keras-ssl serve {Path(version).parent}")


def _read_card(path):
    try:
        card = json.loads(Path(path).read_text())
    except ValueError as error:  # not JSON, or not text
        raise ValueError(f"--card: {path!r} is no JSON file ({error})") from None
    if not isinstance(card, dict):
        raise ValueError(f"--card: {path!r} must hold a JSON object, got a {type(card).__name__}")
    return card
