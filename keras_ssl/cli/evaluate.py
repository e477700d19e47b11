"""`keras-ssl evaluate`: evaluates the features of a model."""

import sys

import click

import keras_ssl as kssl
from keras_ssl.cli import common
from keras_ssl.plotting import print_table
from keras_ssl.protocols import Reconstructs


@click.command()
@click.argument("model")
@common.data_option(" One folder per class.")
@common.import_option
@click.option(
    "--k", default=20, show_default=True, type=click.IntRange(1), help="Neighbors of kNN."
)
def evaluate(model, data, modules, k):
    """Evaluates features by kNN and a linear probe, by stage.

    MODEL is a .keras file or an export.
    """
    common.check_model(model)
    common.check_data(data)

    common.import_tensorflow()
    import keras

    from keras_ssl.data.named import load_dataset

    task, encoder = common.load_model(model, modules)
    train, test = load_dataset(data, encoder.input_shape[1:3], split=True)
    keras.utils.set_random_seed(0)
    untrained = keras.models.clone_model(encoder)
    results = kssl.evaluation.compare(
        encoder, untrained, train, test, k=k, verbose=sys.stdout.isatty()
    )
    print_table(kssl.evaluation.table(results))
    if isinstance(task, Reconstructs):
        click.echo("\nreconstruction of the test images, versus the baseline without a network:")
        found = kssl.evaluation.reconstruction(task, test)
        print_table([list(found), [f"{value:.3f}" for value in found.values()]])
