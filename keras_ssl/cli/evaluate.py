"""`keras-ssl evaluate`: evaluates the features of a model."""

import sys

import click

import keras_ssl as kssl
from keras_ssl.cli import common
from keras_ssl.plotting import print_table
from keras_ssl.protocols import Reconstructs

_fine_tune_options = common.options(
    click.option(
        "--fine-tune", default="", metavar="PERCENT,...",
        help="Also fine-tune with these percentages of the labels, e.g. 1,10,100; takes minutes.",
    ),
    click.option(
        "--epochs", type=click.IntRange(1),
        help="Epochs of fine-tuning; by default 10, or more if 1,000 steps take more.",
    ),
    click.option(
        "--flip/--no-flip", default=True, show_default=True,
        help="Mirror images at random in fine-tuning; not for digits or text.",
    ),
)  # fmt: skip


@click.command()
@click.argument("model")
@common.data_option(" One folder per class.")
@common.import_option
@click.option(
    "--k", default=20, show_default=True, type=click.IntRange(1), help="Neighbors of kNN."
)
@click.option("--maps", is_flag=True, help="Fit linear probes on maps of about 9,000 numbers.")
@_fine_tune_options
def evaluate(model, data, modules, k, maps, fine_tune, epochs, flip):
    """Evaluates features by kNN and a linear probe, by stage.

    MODEL is a .keras file or an export.
    """
    fractions = parse_percent(fine_tune)
    common.check_model(model)
    common.check_data(data)

    common.import_tensorflow()
    import keras

    from keras_ssl.data.named import load_dataset

    task, encoder = common.load_model(model, modules)
    train, test = load_dataset(data, encoder.input_shape[1:3], split=True)
    keras.utils.set_random_seed(0)
    untrained = keras.models.clone_model(encoder)
    verbose = sys.stdout.isatty()
    results = kssl.evaluation.compare(
        encoder, untrained, train, test, k=k, verbose=verbose, maps=maps
    )
    print_table(kssl.evaluation.table(results))
    click.echo(protocol(k, maps))
    if fractions:
        click.echo(
            "\nfine-tuned with a part of the labels, shifts and mirroring (docs/evaluation.md):"
        )
        rows = [("labels", "fine-tuned", "untrained")]
        for fraction in fractions:
            accuracies = [
                kssl.evaluation.fine_tune(
                    network, train, test, fraction, epochs, flip=flip, verbose=verbose
                )
                for network in (encoder, untrained)
            ]
            rows.append((f"{100 * fraction:g} %", *(f"{100 * value:.1f}" for value in accuracies)))
        print_table(rows)
    if isinstance(task, Reconstructs):
        click.echo("\nreconstruction of the test images, versus the baseline without a network:")
        found = kssl.evaluation.reconstruction(task, test)
        print_table([list(found), [f"{value:.3f}" for value in found.values()]])


def parse_percent(text):
    """Parses percentages, such as "1,10,100", to fractions.

    Args:
        text: str, the option `--fine-tune`.

    Returns:
        list of floats in (0, 1].

    Raises:
        ValueError: one of them is not a number in (0, 100].

    Example:
        >>> parse_percent("1,10")
        [0.01, 0.1]
    """
    try:
        fractions = [float(number) / 100 for number in text.split(",") if text]
    except ValueError:
        fractions = [0.0]
    if not all(0 < fraction <= 1 for fraction in fractions):
        raise ValueError(
            f"--fine-tune must be percentages in (0, 100] such as 1,10,100, got {text!r}"
        )
    return fractions


def protocol(k, maps):
    """Describes how the numbers of the table were measured.

    Args:
        k: int, number of neighbors.
        maps: bool, whether the linear probes were fitted on maps.

    Returns:
        str.
    """
    inputs = "maps of about 9,000 numbers (Zhang et al. 2017)" if maps else "the average of the map"
    return (
        f"kNN: {k} and 200 neighbors, weighted with temperature 0.07 (Wu et al. 2018); linear: logistic\n"
        f"regression on {inputs}; L2 and the stage with * chosen on a\n"
        "fifth of the training labels, not on the test images. Details: docs/evaluation.md"
    )
