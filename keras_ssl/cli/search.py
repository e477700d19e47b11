"""`keras-ssl search`: finds the images of a table that are most similar to given ones."""

from pathlib import Path

import click

from keras_ssl.cli import common, table_options
from keras_ssl.plotting import print_table
from keras_ssl.tables import neighbors


@click.command()
@click.argument("images", nargs=-1, required=True)
@click.option("--table", required=True, help="The table that keras-ssl extract wrote.")
@table_options.query_model_option
@click.option(
    "--number", default=12, show_default=True, type=click.IntRange(1), help="Matches per image."
)
@click.option(
    "--picture", metavar="FILE", help="Draw the matches to this file, a row for each image."
)
@table_options.server_options
def search(images, table, model, number, picture, server, retries, **tls):
    """Prints the paths of the most similar images, and the cosine of their features.

    Images that are in the table, by their content, need no model.
    """
    for image in images:
        if not Path(image).is_file():
            raise ValueError(f"IMAGES: there is no file {image!r}")
    if picture:
        common.check_figure("--picture", picture)
    table_options.check_model(model, server, tls)
    opened = table_options.open_table("--table", table)
    if all(neighbors.is_stored(opened, image) for image in images):
        model = None  # and no TensorFlow
    elif model:
        common.import_tensorflow()
        if server:
            model = table_options.connect(server, model, retries, tls)
    found = neighbors.search(opened, images, number, model)
    for image, matches in zip(images, found, strict=True):
        if len(images) > 1:
            click.echo(f"{image}:")
        print_matches(matches)
    if picture:
        from keras_ssl.tables import thumbnails

        thumbnails.draw(found, picture)
        click.echo(f"wrote {picture}")


def print_matches(matches):
    """Prints the cosine and path of matches, and the time if they are clips."""
    timed = any(match.time is not None for match in matches)
    rows = [("cosine", "seconds", "path") if timed else ("cosine", "path")]
    for match in matches:
        time = [f"{match.time or 0:.2f}"] if timed else []
        rows.append((f"{match.cosine:.4f}", *time, match.path))
    print_table(rows)
