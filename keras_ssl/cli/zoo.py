"""`keras-ssl zoo`: lists trained models."""

import click

from keras_ssl import zoo as trained
from keras_ssl.plotting import print_table


@click.command()
def zoo():
    """Lists the trained models that kssl.load finds by name, with their accuracies.

    They are in the folder $KERAS_SSL_ZOO, in saved_models/ of the current folder, or in the repository.
    Accuracies are in percent, on the test images of the data set that the model's card names.
    """
    models = trained.models()
    if not models:
        raise ValueError(
            "no trained models found: run this in a clone of the repository, or set the environment "
            f"variable {trained.VARIABLE} to its folder saved_models"
        )
    rows = [("name", "version", "paper", "kNN", "linear", "fine-tuned 10 %", "folder")]
    for name, (path, card) in models.items():
        results = card.get("results", {})
        stages = results.get("stages", {}).values()
        selected = next((stage for stage in stages if stage["selected"]), {})
        numbers = selected.get("knn"), selected.get("linear"), results.get("fine_tuned_10")
        shown = ["" if number is None else f"{100 * number:.1f}" for number in numbers]
        rows.append((name, path.name, card.get("paper") or card["task"], *shown, str(path.parent)))
    print_table(rows)
