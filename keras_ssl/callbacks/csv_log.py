"""Logs the metrics of each epoch to a CSV file that stays correct after kills and resuming."""

import csv
import os

import keras

from keras_ssl.files import complete


class CSVLog(keras.callbacks.Callback):
    """Writes one row per epoch to a CSV file, consistently with the checkpoints of a resumed run.

    Unlike with `keras.callbacks.CSVLogger`, a training run that was killed and resumed leaves the same file
    as an uninterrupted one: rows of repeated epochs are removed first. The whole file is replaced after each
    epoch, so it never ends with a partial row. Metrics that first appear in a later epoch, such as the `nmi`
    of `Relabel`, get a column too. Callbacks that add metrics must come before this one.

    Args:
        path: file to write, in an existing folder. Its column `epoch` starts at 0, as in Keras.

    Raises:
        ValueError: in `fit`, there is no such folder, or `path` is a file with other content.

    Example:
        >>> import pathlib, tempfile
        >>> log = CSVLog(pathlib.Path(tempfile.mkdtemp(), "log.csv"))
        >>> log.on_train_begin()
        >>> log.on_epoch_begin(0)
        >>> log.on_epoch_end(0, {"loss": 0.5})
        >>> log.path.read_text()
        'epoch,loss\\n0,0.5\\n'
    """

    def __init__(self, path):
        super().__init__()
        self.path = path

    def on_train_begin(self, logs=None):
        folder = os.path.dirname(self.path) or "."
        if not os.path.isdir(folder):
            raise ValueError(
                f"path must be in a folder that exists, there is no {folder!r}: create it"
            )
        self.rows, self.start = self._read(), None

    def on_epoch_begin(self, epoch, logs=None):
        if self.start is None:
            self.start = epoch
            # Columns that only the removed rows had are removed, too.
            self.rows = [
                {name: value for name, value in row.items() if value != ""}
                for row in self.rows
                if int(row["epoch"]) < epoch
            ]

    def on_epoch_end(self, epoch, logs=None):
        metrics = {name: str(value) for name, value in (logs or {}).items()}
        self.rows.append({"epoch": str(epoch), **metrics})
        columns = dict.fromkeys(name for row in self.rows for name in row)
        with (
            complete(self.path) as draft,
            open(draft, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)

    def _read(self):
        """Reads the rows of an earlier run, as dicts of strings."""
        try:
            with open(self.path, newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file, strict=True)
                columns, rows = reader.fieldnames or ["epoch"], list(reader)
            whole = all(None not in row and None not in row.values() for row in rows)
            if columns[0] == "epoch" and whole and all(row["epoch"].isdecimal() for row in rows):
                return rows
        except FileNotFoundError:
            return []
        except (IsADirectoryError, UnicodeDecodeError, csv.Error):
            pass
        raise ValueError(
            f"path {str(self.path)!r} is not a training log (a CSV file whose first column is `epoch`) and "
            "is left as it is: give another path, or move it away"
        )
