"""`keras-ssl duplicates`: reports groups of near-duplicates in a table."""

import click

from keras_ssl.cli import common, table_options
from keras_ssl.cli.search import print_matches
from keras_ssl.tables import near_duplicates

DRAWN = 20  # number of groups whose first images are drawn
DRAWN_IMAGES = 8


@click.command()
@click.argument("table")
@click.option(
    "--above", default=0.98, show_default=True, type=click.FloatRange(0, 1),
    help="Cosine above which two images are near-duplicates.",
)  # fmt: skip
@click.option("--picture", metavar="FILE", help=f"Draw the {DRAWN} largest groups to this file.")
def duplicates(table, above, picture):
    """Reports groups of near-duplicates: resized, recompressed or slightly cropped copies.

    The image with most pixels is the first of its group; cosines are relative to this image.
    """
    if picture:
        common.check_figure("--picture", picture)
    groups = near_duplicates.duplicates(table_options.open_table("TABLE", table), above)
    for number, group in enumerate(groups, 1):
        click.echo(f"group {number}: {len(group)} images")
        print_matches(group)
    copies = sum(len(group) - 1 for group in groups)
    click.echo(f"cosine above {above:g}: groups: {len(groups)}, copies: {copies}")
    if picture and groups:
        from keras_ssl.tables import thumbnails

        thumbnails.draw([group[:DRAWN_IMAGES] for group in groups[:DRAWN]], picture)
        click.echo(f"wrote {picture}")
