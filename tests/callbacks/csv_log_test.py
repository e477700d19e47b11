"""The CSV file of a killed and resumed run is that of an uninterrupted one."""

import os
import signal

import keras
import numpy as np
import pytest

from keras_ssl.callbacks import CSVLog


def log_epochs(path, *epochs, nmi_from=2):
    log = CSVLog(path)
    log.on_train_begin()
    for epoch in epochs:
        log.on_epoch_begin(epoch)
        metrics = {"loss": 1 / (epoch + 3), "accuracy": np.float32(0.1) * epoch}
        if epoch >= nmi_from:
            metrics["nmi"] = epoch
        log.on_epoch_end(epoch, metrics)
    return path.read_bytes()


def test_one_row_per_epoch(tmp_path):
    content = log_epochs(tmp_path / "whole.csv", 0, 1, 2)
    assert content.decode().splitlines() == [
        "epoch,loss,accuracy,nmi",
        f"0,{1 / 3},0.0,",
        "1,0.25,0.1,",
        "2,0.2,0.2,2",
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"whole.csv"}


@pytest.mark.parametrize("resumed", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("killed", [1, 3, 4])
def test_a_resumed_run_leaves_the_file_of_an_uninterrupted_one(tmp_path, killed, resumed):
    if resumed > killed:
        resumed = killed
    whole = log_epochs(tmp_path / "whole.csv", *range(5))
    log_epochs(tmp_path / "killed.csv", *range(killed))
    assert log_epochs(tmp_path / "killed.csv", *range(resumed, 5)) == whole


def test_columns_of_removed_rows_are_removed(tmp_path):
    log_epochs(tmp_path / "a.csv", 0, 1, nmi_from=1)
    content = log_epochs(tmp_path / "a.csv", 1, nmi_from=9).decode()
    assert content.startswith("epoch,loss,accuracy\n")


def test_a_failing_write_leaves_the_rows_before(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    before = log_epochs(path, 0)

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        log_epochs(path, 1)
    assert path.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv"}


def test_a_kill_while_writing_leaves_whole_rows(tmp_path):
    path = tmp_path / "a.csv"
    before = log_epochs(path, 0, 1)
    child = os.fork()
    if child == 0:
        os.fsync = lambda _: os.kill(
            os.getpid(), signal.SIGKILL
        )  # the draft is written, not yet named
        try:
            log_epochs(path, 2)
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert path.read_bytes() == before
    assert log_epochs(path, 2) == log_epochs(tmp_path / "whole.csv", 0, 1, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"a.csv", "whole.csv"}


@pytest.mark.parametrize(
    "content",
    [
        b"name,size\na,1\n",
        b"dear diary,\n",
        b"epoch,loss\nfirst,0.5\n",
        b"epoch,loss\n0,0.5,7\n",
        b"epoch,loss\n0\n",
        b'epoch,loss\n0,"0.5\n',
        b"\x89PNG\xff\x00",
    ],
)
def test_foreign_files_are_left_alone(tmp_path, content):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not a training log .* give another path"):
        CSVLog(path).on_train_begin()
    assert path.read_bytes() == content


def test_paths_that_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="is not a training log"):
        CSVLog(tmp_path).on_train_begin()
    with pytest.raises(ValueError, match="path must be in a folder that exists, there is no"):
        CSVLog(tmp_path / "none" / "a.csv").on_train_begin()
    (tmp_path / "empty.csv").touch()
    assert log_epochs(tmp_path / "empty.csv", 0).startswith(b"epoch,loss,accuracy\n0,")


def test_resumed_fit(images, tmp_path, linear_task):
    """Two calls of `fit`, the second resumed after one epoch: the rows are those of both Histories."""
    path, columns = str(tmp_path / "a.csv"), []
    linear_task.compile(keras.optimizers.SGD(0.01))
    for first in (0, 1):
        data = linear_task.dataset(images, 20, epochs=2, first_epoch=first)
        history = linear_task.fit(
            data, epochs=2, initial_epoch=first, callbacks=[CSVLog(path)], verbose=0
        )
        columns.append(history.history["loss"])
    rows = np.genfromtxt(path, delimiter=",", names=True)
    np.testing.assert_array_equal(rows["epoch"], [0, 1])
    np.testing.assert_array_equal(rows["loss"], [columns[0][0], columns[1][0]])
