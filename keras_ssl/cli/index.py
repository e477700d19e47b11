"""`keras-ssl index`: builds the index of a table for search among many rows."""

import click

from keras_ssl.cli import table_options
from keras_ssl.tables import index as indexing


@click.command()
@click.argument("table")
@click.option(
    "--kind", default="ivf_pq", show_default=True, type=click.Choice(indexing.KINDS),
    help="Cells of compressed vectors, or a graph in each cell: faster to search, larger, slower to build.",
)  # fmt: skip
def index(table, kind):
    """Builds LanceDB's index for tables of more than 100,000 rows; smaller ones need none.

    Rows that keras-ssl extract adds later are added to the index, too.
    """
    opened = table_options.open_table("TABLE", table)
    rows = opened.count()
    if rows <= indexing.EXACT_ROWS:
        click.echo(
            f"{rows:,} rows: all are compared up to {indexing.EXACT_ROWS:,}, without an index"
        )
        return
    seconds = indexing.build(opened, kind)
    click.echo(f"indexed {rows:,} rows in {seconds:.0f} s")
