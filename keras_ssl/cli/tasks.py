"""`keras-ssl tasks`: lists the pretext tasks."""

import click

from keras_ssl.plotting import print_table
from keras_ssl.tasks import TASKS


@click.command()
def tasks():
    """Lists the pretext tasks, with their papers and labels."""
    rows = [(row.name, row.family, row.paper, row.labels) for row in TASKS]
    print_table([("name", "family", "paper", "labels"), *rows])
