"""Throughput and remaining time, measured with a fake clock."""

import io
import re
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_ssl.callbacks import Progress


class Training:
    """Calls a callback as `fit` does, with a fake clock."""

    def __init__(self, callback, monkeypatch, steps, epochs, verbose):
        self.now, self.callback, self.steps = 1000.0, callback, steps
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "time", lambda: self.now)
        callback.set_params({"verbose": verbose, "epochs": epochs, "steps": steps})
        callback.on_train_begin()

    def epoch(self, epoch, seconds, before=0.0, after=0.0, first_batch=0, stride=1):
        """`seconds`: duration of every step, one number or one for each."""
        self.callback.on_epoch_begin(epoch)
        self.now += before
        durations = np.broadcast_to(seconds, self.steps)[first_batch::stride]
        for batch, duration in zip(range(first_batch, self.steps, stride), durations, strict=True):
            self.callback.on_train_batch_begin(batch)
            self.now += float(duration) * stride
            self.callback.on_train_batch_end(min(batch + stride, self.steps) - 1, {"loss": 0.5})
        self.callback.on_epoch_end(epoch, {"loss": 0.25})
        self.now += after


def test_one_line_per_epoch(monkeypatch, capsys):
    training = Training(Progress(1000), monkeypatch, steps=10, epochs=4, verbose=2)
    # Tracing takes 60 s; then 9 steps in 9 s. 30 steps are left, of 1 s.
    training.epoch(0, [60, *[1] * 9], after=10)
    # 10 steps of 2 s, after 10 s of other work and 5 of relabeling: 1000 images in 20 s. Since the
    # first step 9 + 10 + 5 + 20 s have passed with 19 steps, so the 20 others take 46.3.
    training.epoch(1, 2, before=5)
    training.epoch(2, 2)
    training.epoch(3, 4)
    lines = [line for line in capsys.readouterr().out.splitlines() if "/10 - " in line]
    assert [re.search(r"step - (.*) - loss: 0.25", line)[1] for line in lines] == [
        "100 images/s - 0:30 left",
        "50 images/s - 0:46 left",
        "50 images/s - 0:22 left",  # 64 s and 29 steps, of 10: 22.07
        "25 images/s",
    ]


@pytest.mark.parametrize(("first_batch", "expected"), [(0, "2:06:40"), (7, "2:06:40")])
def test_a_resumed_run(monkeypatch, capsys, first_batch, expected):
    """Epoch 98 of 100, from its start or its eighth step: the remaining time is the same."""
    training = Training(Progress(1000), monkeypatch, steps=10, epochs=100, verbose=2)
    training.epoch(97, [760 if first_batch else 900, *[380] * 9], first_batch=first_batch)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "/10 - " in line]
    assert f"0.26 images/s - {expected} left - loss" in line  # 20 steps of 380 s


def test_several_steps_per_execution(monkeypatch, capsys):
    training = Training(Progress(1000), monkeypatch, steps=10, epochs=2, verbose=2)
    training.epoch(0, [9, 9, 9, 9, 2, 2, 2, 2, 2, 2], stride=4)  # the last has two steps left
    out = capsys.readouterr().out
    # The clock above gives every execution the time of 4 steps, also the last, of 2: 6 steps in 16 s.
    assert f"{6 * 100 / 16:.0f} images/s - 0:{round(10 * 16 / 6)} left" in out


def test_the_bar(monkeypatch, capsys):
    training = Training(Progress(1000), monkeypatch, steps=10, epochs=2, verbose=1)
    training.epoch(0, [60, *[0.5] * 9])
    shown = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out).split("\r")
    assert "images/s" not in shown[1]  # the first step is not counted
    assert shown[4].rstrip("\b").endswith("500ms/step - 200 images/s - 0:08 left - loss: 0.5000")
    assert shown[-1].rstrip("\n ").endswith("200 images/s - 0:05 left - loss: 0.2500")
    assert "━" * 20 in shown[-1]


@pytest.mark.parametrize(
    ("columns", "speed", "left", "bar"),
    [(60, False, False, 17), (70, False, True, 15), (80, True, True, 10), (200, True, True, 20)],
)
def test_the_bar_fits_the_terminal(monkeypatch, columns, speed, left, bar):
    out = io.StringIO()
    out.isatty = lambda: True
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setenv("COLUMNS", str(columns))
    training = Training(Progress(10_000), monkeypatch, steps=100, epochs=20, verbose=1)
    training.epoch(0, 0.125)
    text = re.sub(r"\x1b\[\d*m|\x08", "", out.getvalue())
    lines = [line.rstrip() for line in text.split("\r")][10:-1]  # the last is the epoch's
    assert max(map(len, lines)) < columns
    for line in lines:
        assert ("800 images/s" in line, " left" in line) == (speed, left)
        assert line.count("━") == bar
    assert "800 images/s - 3:58 left" in text.split("\r")[-1]  # a line break follows


def test_fit_displays_but_does_not_log_them(images, capsys, linear_task):
    linear_task.compile(keras.optimizers.SGD(0.01))
    data = linear_task.dataset(images, 5, epochs=2)
    history = linear_task.fit(data, epochs=2, callbacks=[Progress(20)], verbose=2)
    out = capsys.readouterr().out
    assert list(history.history) == ["loss"]
    assert len(re.findall(r"images/s", out)) == 2
    assert out.count("loss:") == 2  # Keras adds no bar of its own
    assert re.search(r"4/4 - .*/step - [\d.e+]+ images/s - \d+:\d\d left - loss: ", out)
    linear_task.fit(data, epochs=2, callbacks=[Progress(20)], verbose=0)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="images_per_epoch must be at least 1, got 0"):
        Progress(0)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_dataset_of_unknown_length(capsys):
    """The number of steps is unknown in the first epoch; throughput is shown from the second on."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    data = tf.data.Dataset.from_tensor_slices((np.ones((6, 1)), np.ones(6)))
    data = data.filter(lambda x, y: True).batch(2)
    model.fit(data, epochs=3, verbose=2, callbacks=[Progress(6)])
    lines = [line for line in capsys.readouterr().out.splitlines() if "3/3 - " in line]
    assert ["images/s" in line for line in lines] == [False, True, True]
    assert ["left" in line for line in lines] == [False, True, False]
