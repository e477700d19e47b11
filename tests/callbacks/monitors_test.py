"""What a person sees of a training: collapse, the cloud of features, speed and time left, the CSV file."""

import io
import json
import os
import re
import signal
import time
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
from werkzeug.test import Client

import keras_ssl as kssl
from keras_ssl.callbacks import Collapse, CSVLog, Progress, Projector, effective_rank, feature_std
from keras_ssl.callbacks.collapse import Sample
from keras_ssl.callbacks.projector import metadata, sprite

NUMBER = 20


@pytest.fixture(scope="module")
def images():
    return kssl.data.digits("test").take(NUMBER)


@keras.saving.register_keras_serializable(package="tests")
class Constant(kssl.PretextModel):
    """Every picture shall have the features `target`: the loss is met by what says nothing."""

    def pretext(self, batch, seed):
        return batch["image"], tf.ones((tf.shape(batch["image"])[0], 4)) * self.target

    def call(self, x, training=False):
        return self.encoder(x, training=training)

    def default_loss(self):
        return keras.losses.MeanSquaredError()


def linear(target=1.0):
    """An encoder of one linear layer, so that training can be followed on paper."""
    inputs = keras.Input((32, 32, 3))
    pixels = keras.layers.Rescaling(1 / 255)(inputs)
    pooled = keras.layers.AveragePooling2D(8, name="stage1")(pixels)
    features = keras.layers.Dense(4)(keras.layers.Flatten()(pooled))
    task = Constant(keras.Model(inputs, features))
    task.target = target
    return task


# ---- collapse


def directions(k, dimensions=12, sizes=None):
    """Points at +- sizes[i] along k orthonormal directions that are no axes."""
    rng = np.random.default_rng(k)
    basis = np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0][:k]
    points = basis * (np.ones(k) if sizes is None else np.asarray(sizes))[:, None]
    return np.concatenate([points, -points])


@pytest.mark.parametrize("k", [1, 3, 12])
def test_rank_of_k_equal_directions_is_k(k):
    assert effective_rank(directions(k)) == pytest.approx(k)
    assert effective_rank(7 + 1e-3 * directions(k)) == pytest.approx(k)  # centred
    assert effective_rank(directions(k).astype(np.float32)) == pytest.approx(k, rel=1e-5)


def test_rank_of_unequal_directions():
    p = np.array([0.5, 0.3, 0.2])
    expected = np.prod(p**-p)  # the exponential of the entropy
    assert effective_rank(directions(3, sizes=5 * p)) == pytest.approx(expected)
    assert 1 < expected < 3


@given(st.integers(0, 2**32 - 1), st.floats(1e-20, 1e20))
@settings(max_examples=20, deadline=None)
def test_measures_heed_neither_scale_nor_rotation(seed, scale):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(9, 5)) * rng.uniform(0.1, 3, 5) + rng.normal(size=5)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    other = scale * features @ rotation
    assert feature_std(other) == pytest.approx(feature_std(features))
    assert effective_rank(other) == pytest.approx(effective_rank(features))
    assert 0 <= feature_std(features) <= 1
    assert 1 <= effective_rank(features) <= 5


def test_std_in_closed_form():
    # Mean (3, 4), variances 2 and 7 (as n, not n - 1): squared norm 25 + 9.
    features = np.array([[3 + 2, 4.0], [3 - 2, 4], [3, 4 + 14**0.5], [3, 4 - 14**0.5]])
    assert feature_std(features) == pytest.approx((9 / 34) ** 0.5)
    assert feature_std(features - features.mean(axis=0)) == pytest.approx(1)


@pytest.mark.parametrize(
    "features",
    [
        np.full((256, 7), 0.1),
        np.nextafter(
            np.float32(0.1), np.random.default_rng(0).choice([0, 1], (256, 7)).astype("f")
        ),
        np.zeros((5, 3)),
        np.full((5, 3), np.nan),
        np.diag([1, np.inf, 2, 3]),
        np.full((5, 3), 1e300),
        [[4.0, 5.0]],
    ],
    ids=["constant", "rounding", "zero", "nan", "inf", "huge", "one picture"],
)
def test_what_tells_no_pictures_apart_measures_zero(features):
    assert feature_std(features) == pytest.approx(0, abs=1e-7)
    assert effective_rank(features) == 0


def test_measures_refuse():
    for measure in (feature_std, effective_rank):
        for shape in ((3,), (2, 3, 4), (0, 3), (3, 0)):
            with pytest.raises(ValueError, match=r"features must be a \(N, D\) array, got shape"):
                measure(np.zeros(shape))


def test_a_collapse_is_told_once_and_figures_are_logged(images, tmp_path):
    """Some steps make the features of all pictures the target."""
    task = linear()
    task.compile(keras.optimizers.SGD(0.3))
    pixels = kssl.data.to_arrays(images)["image"][:16]
    monitor, log = Collapse(images, number=16, every=2), CSVLog(tmp_path / "a.csv")
    data = task.dataset(images, NUMBER, epochs=60)
    with pytest.warns(UserWarning, match="all pictures have nearly the same") as told:
        history = task.fit(data, epochs=60, callbacks=[monitor, log], verbose=0).history
    (told,) = [str(w.message) for w in told if "collapsed" in str(w.message)]
    stds = history["feature_std"]
    assert len(stds) == 30  # every second epoch
    epoch = int(re.search(r"after epoch (\d+)", told)[1])
    limit = 0.4 * monitor.before[0]
    assert [std < limit for std in stds] == [2 * i + 2 >= epoch for i in range(30)]
    assert 2 < epoch < 60
    assert (
        f"feature_std {stds[epoch // 2 - 1]:.2g}, before training {monitor.before[0]:.2g}" in told
    )
    features = task.features(pixels)
    assert stds[-1] == pytest.approx(feature_std(features), rel=1e-4)
    assert history["effective_rank"][-1] == pytest.approx(effective_rank(features), rel=1e-3)
    rows = (tmp_path / "a.csv").read_text().splitlines()
    assert rows[0] == "epoch,loss,feature_std,effective_rank"
    assert rows[1].endswith(",,")
    assert rows[2].endswith(f",{stds[0]},{history['effective_rank'][0]}")


def test_a_loss_of_rank_is_told(images):
    task = linear()
    task.compile(keras.optimizers.SGD(0.0))
    monitor = Collapse(images)
    monitor.set_model(task)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.on_train_begin()
        monitor.on_epoch_end(0, {})
    kernel, bias = task.encoder.layers[-1].get_weights()
    # All four features the same: one direction, though pictures differ in it.
    task.encoder.layers[-1].set_weights([np.tile(kernel[:, :1], 4), bias])
    rank = monitor.before[1]
    monitor.min_std, monitor.min_rank = 0, 1.01 / rank
    message = (
        rf"epoch 8 they differ in hardly a direction .*_rank 1.0, before training {rank:.1f}\)"
    )
    with pytest.warns(UserWarning, match=message):
        monitor.on_epoch_end(7, logs := {})
    assert logs["effective_rank"] == pytest.approx(1, rel=1e-3)
    assert logs["feature_std"] > 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.on_epoch_end(8, {})  # said already
        monitor.on_epoch_end(9)
    task.encoder.layers[-1].set_weights([np.tile(kernel[:, :1], 4), bias + 1000])
    with pytest.warns(UserWarning, match="epoch 11 all pictures have nearly the same"):
        monitor.on_epoch_end(10)  # whatever they were before


def test_collapse_under_a_strategy(images, two_replicas):
    with two_replicas.scope():
        task = linear()
        task.compile(keras.optimizers.SGD(0.01))
    monitor = Collapse(images, number=8)
    monitor.set_model(task)
    monitor.on_train_begin()
    dense = task.encoder.layers[-1]
    dense.bias.assign_add([1, 0, 0, -2])  # what has changed since is seen
    monitor.on_epoch_end(0, logs := {})
    features = task.features(kssl.data.to_arrays(images)["image"][:8])
    assert logs["feature_std"] == pytest.approx(feature_std(features), rel=1e-4)


def test_collapse_refuses(images):
    with pytest.raises(ValueError, match="number must be at least 2 to compare pictures, got 1"):
        Collapse(images, number=1)
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        Collapse(images, every=0)
    with pytest.raises(ValueError, match="min_std must be in 0..1, got 2"):
        Collapse(images, min_std=2)
    with pytest.raises(ValueError, match="min_rank must be in 0..1, got nan"):
        Collapse(images, min_rank=float("nan"))


def test_a_sample_is_spread_where_places_are_known(images):
    columns = {"id": tf.range(70, dtype=tf.int64), "label": tf.range(70, dtype=tf.int64) // 7}
    load = lambda row: {"image": tf.fill((32, 32, 3), tf.cast(row["id"], tf.uint8)), **row}  # noqa: E731
    dataset = tf.data.Dataset.from_tensor_slices(columns).map(load)
    task = linear()
    first = Sample(task, dataset, 10).elements
    np.testing.assert_array_equal(first["id"], range(10))
    dataset.columns, dataset.load_row = columns, load  # as keras_ssl.data.columns has it
    spread = Sample(task, dataset, 10).elements
    np.testing.assert_array_equal(spread["label"], range(10))
    np.testing.assert_array_equal(spread["image"][:, 3, 5, 1], spread["id"])
    whole = Sample(task, dataset, 500)
    np.testing.assert_array_equal(whole.elements["id"], range(70))
    expected = task.features(whole.elements["image"])  # 70 are more than go at a time
    np.testing.assert_allclose(whole.features(), expected, rtol=1e-5, atol=1e-6)


def test_a_sample_of_no_pictures(images):
    task = linear()
    with pytest.raises(ValueError, match="images must yield dicts with `image` and `id`"):
        Sample(task, task.dataset(images, 5), 10)
    with pytest.raises(ValueError, match="images must hold at least one picture, got none"):
        Sample(task, images.take(0), 10)


# ---- projector


class Runs:
    """A log directory without runs, as TensorBoard's data provider tells of it."""

    def list_runs(self, context, *, experiment_id):
        return []


def shown(log_dir, route, **query):
    """What TensorBoard's own plugin answers."""
    plugin = ProjectorPlugin(TBContext(logdir=str(log_dir), data_provider=Runs()))
    answer = Client(plugin.get_plugin_apps()[route]).get("/", query_string={"run": ".", **query})
    assert answer.status_code == 200, answer.data
    return answer.data


def test_tensorboard_shows_the_features(images, tmp_path):
    logs = tmp_path / "deep" / "logs"
    images = images.map(lambda e: {**e, "label": e["label"] % 2})
    images.class_names = ["even\tnumbers", "odd"]
    task = linear()
    task.compile(keras.optimizers.SGD(0.01))
    callbacks = [Projector(logs, images, number=11)]
    task.fit(task.dataset(images, NUMBER, epochs=2), epochs=2, callbacks=callbacks, verbose=0)
    names = {"features.tsv", "metadata.tsv", "projector_config.pbtxt", "sprite.png"}
    assert {path.name for path in logs.iterdir()} == names
    config = text_format.Parse((logs / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (embedding,) = config.embeddings
    assert list(embedding.sprite.single_image_dim) == [32, 32]

    (told,) = json.loads(shown(logs, "/info"))["embeddings"]
    assert told["tensorShape"] == [11, 4]
    rows = kssl.data.to_arrays(images)
    tensor = np.frombuffer(shown(logs, "/tensor", name="features"), np.float32).reshape(11, 4)
    np.testing.assert_allclose(tensor, task.features(rows["image"][:11]), rtol=1e-5, atol=1e-6)
    lines = shown(logs, "/metadata", name="features").decode().splitlines()
    expected = [f"{('even numbers', 'odd')[k]}\t{id}" for id, k in enumerate(rows["label"][:11])]
    assert lines == ["label\tid", *expected]
    sheet = tf.io.decode_png(shown(logs, "/sprite_image", name="features")).numpy()
    columns = sheet.shape[1] // 32  # as the plugin counts
    for i in range(11):
        top, left = 32 * (i // columns), 32 * (i % columns)
        np.testing.assert_array_equal(sheet[top : top + 32, left : left + 32], rows["image"][i])


def test_pictures_without_labels(images, tmp_path):
    task = linear()
    bare = images.map(lambda e: {"image": e["image"], "id": e["id"] + 5})
    projector = Projector(tmp_path, bare, number=3)
    projector.set_model(task)
    projector.on_train_begin()
    projector.on_epoch_end(0)
    assert shown(tmp_path, "/metadata", name="features").decode() == "5\n6\n7\n"
    assert metadata([4, 9], [0, 2]) == "label\tid\n0\t4\n2\t9\n"


def test_thumbnails_of_large_pictures_keep_their_proportions():
    ramp = np.linspace(0, 255, 300, dtype=np.float32)
    pictures = np.stack([np.tile(ramp * k / 4, (150, 1)) for k in range(5)])[..., None]
    sheet, (width, height) = sprite(pictures.repeat(4, axis=-1))
    assert (width, height) == (64, 32)
    assert sheet.shape == (3 * 32, 3 * 64, 3)
    for k in range(5):
        top, left = 32 * (k // 3), 64 * (k % 3)
        row = sheet[top + 16, left : left + 64, 2].astype(float)
        np.testing.assert_allclose(row, (np.arange(64) + 0.5) / 64 * 255 * k / 4, atol=3)
    assert (sheet[32:64, 128:] == 0).all()
    assert (sheet[64:] == 0).all()


def test_projector_refuses(tmp_path, images):
    with pytest.raises(ValueError, match="number must be at least 1, got 0"):
        Projector(tmp_path, images, number=0)


# ---- progress


class Training:
    """Drives a callback as `fit` does, by a clock of its own."""

    def __init__(self, callback, monkeypatch, steps, epochs, verbose):
        self.now, self.callback, self.steps = 1000.0, callback, steps
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "time", lambda: self.now)
        callback.set_params({"verbose": verbose, "epochs": epochs, "steps": steps})
        callback.on_train_begin()

    def epoch(self, epoch, seconds, before=0.0, after=0.0, first_batch=0, stride=1):
        """`seconds`: of each step, a number or one for each."""
        self.callback.on_epoch_begin(epoch)
        self.now += before
        durations = np.broadcast_to(seconds, self.steps)[first_batch::stride]
        for batch, duration in zip(range(first_batch, self.steps, stride), durations, strict=True):
            self.callback.on_train_batch_begin(batch)
            self.now += float(duration) * stride
            self.callback.on_train_batch_end(min(batch + stride, self.steps) - 1, {"loss": 0.5})
        self.callback.on_epoch_end(epoch, {"loss": 0.25})
        self.now += after


def test_one_line_an_epoch(monkeypatch, capsys):
    training = Training(Progress(1000), monkeypatch, steps=10, epochs=4, verbose=2)
    # Tracing takes 60 s; then 9 steps in 9 s. 30 steps are left, of 1 s.
    training.epoch(0, [60, *[1] * 9], after=10)
    # 10 steps of 2 s, after 10 s of other work and 5 of relabelling: 1000 images in 20 s. Since the
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
def test_a_resumed_training(monkeypatch, capsys, first_batch, expected):
    """Epoch 98 of 100, from its start or its eighth step: what is left does not depend on it."""
    training = Training(Progress(1000), monkeypatch, steps=10, epochs=100, verbose=2)
    training.epoch(97, [760 if first_batch else 900, *[380] * 9], first_batch=first_batch)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "/10 - " in line]
    assert f"0.26 images/s - {expected} left - loss" in line  # 20 steps of 380 s


def test_several_steps_per_execution(monkeypatch, capsys):
    training = Training(Progress(1000), monkeypatch, steps=10, epochs=2, verbose=2)
    training.epoch(0, [9, 9, 9, 9, 2, 2, 2, 2, 2, 2], stride=4)  # the last has two steps left
    out = capsys.readouterr().out
    # 4 + 4 steps were given 8 s each by the clock above, though the last were but 2: 6 steps in 16 s.
    assert f"{6 * 100 / 16:.0f} images/s - 0:{round(10 * 16 / 6)} left" in out


def test_the_bar(monkeypatch, capsys):
    training = Training(Progress(1000), monkeypatch, steps=10, epochs=2, verbose=1)
    training.epoch(0, [60, *[0.5] * 9])
    shown = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out).split("\r")
    assert "images/s" not in shown[1]  # the first step tells nothing
    assert shown[4].rstrip("\b").endswith("500ms/step - 200 images/s - 0:08 left - loss: 0.5000")
    assert shown[-1].rstrip("\n ").endswith("200 images/s - 0:05 left - loss: 0.2500")
    assert "━" * 20 in shown[-1]


@pytest.mark.parametrize(
    ("columns", "speed", "left", "bar"),
    [(60, False, False, 17), (70, False, True, 15), (80, True, True, 10), (200, True, True, 20)],
)
def test_a_bar_fits_the_terminal(monkeypatch, columns, speed, left, bar):
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


def test_fit_with_the_bar_and_nothing_of_it_in_the_logs(images, capsys):
    task = linear()
    task.compile(keras.optimizers.SGD(0.01))
    data = task.dataset(images, 5, epochs=2)
    history = task.fit(data, epochs=2, callbacks=[Progress(NUMBER)], verbose=2)
    out = capsys.readouterr().out
    assert list(history.history) == ["loss"]
    assert len(re.findall(r"images/s", out)) == 2
    assert out.count("loss:") == 2  # Keras adds no bar of its own
    assert re.search(r"4/4 - .*/step - [\d.e+]+ images/s - \d+:\d\d left - loss: ", out)
    task.fit(data, epochs=2, callbacks=[Progress(NUMBER)], verbose=0)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="images_per_epoch must be at least 1, got 0"):
        Progress(0)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_dataset_of_unknown_length(capsys):
    """Nobody knows the steps in the first epoch; from the second on there are figures."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    data = tf.data.Dataset.from_tensor_slices((np.ones((6, 1)), np.ones(6)))
    data = data.filter(lambda x, y: True).batch(2)
    model.fit(data, epochs=3, verbose=2, callbacks=[Progress(6)])
    lines = [line for line in capsys.readouterr().out.splitlines() if "3/3 - " in line]
    assert ["images/s" in line for line in lines] == [False, True, True]
    assert ["left" in line for line in lines] == [False, True, False]


# ---- the CSV file


def log_epochs(path, *epochs, nmi_from=2):
    log = CSVLog(path)
    log.on_train_begin()
    for epoch in epochs:
        log.on_epoch_begin(epoch)
        figures = {"loss": 1 / (epoch + 3), "accuracy": np.float32(0.1) * epoch}
        if epoch >= nmi_from:
            figures["nmi"] = epoch
        log.on_epoch_end(epoch, figures)
    return path.read_bytes()


def test_a_row_an_epoch(tmp_path):
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
def test_a_resumed_training_leaves_the_file_of_a_whole_one(tmp_path, killed, resumed):
    if resumed > killed:
        resumed = killed
    whole = log_epochs(tmp_path / "whole.csv", *range(5))
    log_epochs(tmp_path / "killed.csv", *range(killed))
    assert log_epochs(tmp_path / "killed.csv", *range(resumed, 5)) == whole


def test_columns_of_dropped_rows_go_too(tmp_path):
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
def test_another_s_file_is_left_alone(tmp_path, content):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no log of a training .* give another path"):
        CSVLog(path).on_train_begin()
    assert path.read_bytes() == content


def test_where_no_file_can_be(tmp_path):
    with pytest.raises(ValueError, match="is no log of a training"):
        CSVLog(tmp_path).on_train_begin()
    with pytest.raises(ValueError, match="path must be in a folder that exists, there is no"):
        CSVLog(tmp_path / "none" / "a.csv").on_train_begin()
    (tmp_path / "empty.csv").touch()
    assert log_epochs(tmp_path / "empty.csv", 0).startswith(b"epoch,loss,accuracy\n0,")


def test_csv_of_a_resumed_fit(images, tmp_path):
    """Two trainings of two epochs, the second resumed after one: the rows are those of both Histories."""
    path, columns = str(tmp_path / "a.csv"), []
    task = linear()
    task.compile(keras.optimizers.SGD(0.01))
    for first in (0, 1):
        data = task.dataset(images, NUMBER, epochs=2, first_epoch=first)
        history = task.fit(data, epochs=2, initial_epoch=first, callbacks=[CSVLog(path)], verbose=0)
        columns.append(history.history["loss"])
    rows = np.genfromtxt(path, delimiter=",", names=True)
    np.testing.assert_array_equal(rows["epoch"], [0, 1])
    np.testing.assert_array_equal(rows["loss"], [columns[0][0], columns[1][0]])
