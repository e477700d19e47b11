"""The pretext tasks, one file each, and the one table that lists them."""

from typing import NamedTuple

from keras_ssl.pretext import PretextModel
from keras_ssl.tasks.context.rotation import Rotation


class Row(NamedTuple):
    """One line of the table: `task` is the class, `labels` says what the labels are."""

    name: str
    task: type[PretextModel]
    family: str
    paper: str
    labels: str


TASKS = [
    Row(
        "rotation", Rotation, "context", "Gidaris et al. 2018", "by how much the picture is turned"
    ),
]

__all__ = ["TASKS", "Rotation", "Row"]
