"""The figures of each epoch in a file that survives kills."""

import contextlib
import csv
import os

import keras


class CSVLog(keras.callbacks.Callback):
    """Writes one row an epoch to a CSV file; a resumed training goes on where its checkpoint was.

    Unlike `keras.callbacks.CSVLogger`, a training that was killed and resumed leaves exactly the file of an
    uninterrupted one: rows of epochs that are trained again are dropped first. The whole file is written
    anew after each epoch and put in place of the old one, so it never ends in half a row. Figures that
    first appear in a later epoch, such as the `nmi` of `Relabel`, get a column too. Callbacks that add
    figures must come before this one.

    Args:
        path: file to write, in an existing folder. Its column `epoch` counts from 0, as Keras does.

    Raises:
        ValueError: in `fit`; there is no such folder, or `path` holds something else already.

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
            # A column that only later rows had goes with them.
            self.rows = [
                {name: value for name, value in row.items() if value != ""}
                for row in self.rows
                if int(row["epoch"]) < epoch
            ]

    def on_epoch_end(self, epoch, logs=None):
        figures = {name: str(value) for name, value in (logs or {}).items()}
        self.rows.append({"epoch": str(epoch), **figures})
        columns = dict.fromkeys(name for row in self.rows for name in row)
        new = f"{self.path}.new"
        try:
            with open(new, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
                writer.writeheader()
                writer.writerows(self.rows)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self.path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.remove(new)
            raise

    def _read(self):
        """The rows that are there already, as dicts of strings."""
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
            f"path {str(self.path)!r} is no log of a training (a CSV file whose first column is `epoch`) and "
            "is left as it is: give another path, or move it away"
        )
