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
def export(model, out, card):
    """Exports a trained task as a SavedModel.

    MODEL is a .keras file, OUT a folder for <next version>, by default saved_models/<name of MODEL>.
    """
    card = json.loads(Path(card).read_text()) if card else None

    common.import_tensorflow()
    task, _ = common.load_model(model)
    version = kssl.export(task, out or f"saved_models/{Path(model).stem}", card)
    click.echo(f"wrote {version}; next: keras-ssl serve {Path(version).parent}")
