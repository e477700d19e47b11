"""Training resumes from checkpoints bit for bit, even after kills and damaged files."""

import importlib.util
import shutil
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_ssl as kssl
from keras_ssl.callbacks import Checkpoint
from keras_ssl.training import optimizers

ROOT = Path(__file__).parents[2]
STEPS, EPOCHS = 5, 3


@pytest.fixture(scope="module")
def images():
    pixels = kssl.data.to_arrays(kssl.data.digits("test"))["image"][:40]
    return kssl.data.from_array(pixels)


def make(width=4, execution=1, optimizer="adam"):
    keras.utils.set_random_seed(0)
    task = kssl.tasks.Rotation(kssl.encoders.resnet((32, 32, 3), width=width, blocks=(1,)))
    task.compile(optimizer, steps_per_execution=execution)
    return task


class Stop(keras.callbacks.Callback):
    """Interrupts training, as a kill does."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def on_train_batch_end(self, batch, logs=None):
        self.after -= 1
        if not self.after:
            raise KeyboardInterrupt


def fit(task, images, *callbacks, batch=8, **arguments):
    data = task.dataset(images, batch, epochs=EPOCHS, **{"seed": 1, **arguments})
    return task.fit(data, epochs=EPOCHS, callbacks=list(callbacks), verbose=0).history


def stopped(images, folder, after, **arguments):
    with pytest.raises(KeyboardInterrupt):
        fit(make(), images, Checkpoint(folder, **arguments), Stop(after))


@pytest.fixture(scope="module")
def whole(images):
    task = make()
    return fit(task, images), task.get_weights()


def same(task, weights):
    return all(np.array_equal(a, b) for a, b in zip(task.get_weights(), weights, strict=True))


@pytest.fixture(scope="module")
def interrupted(images, tmp_path_factory):
    """Copies the checkpoints of a run that was stopped in a step to a folder."""
    source = tmp_path_factory.mktemp("interrupted")
    stopped(images, source, 7, every_steps=2, keep=9)
    assert [int(path.stem[5:]) for path in sorted(source.iterdir())] == [2, 4, 5, 6]

    def copy(folder, step):
        for path in source.iterdir():
            if int(path.stem[5:]) < step:
                shutil.copy(path, folder)

    return copy


@pytest.mark.parametrize("after", [3, 5, 6, 7])
def test_resumes_in_the_middle_of_an_epoch(after, images, whole, interrupted, tmp_path):
    interrupted(tmp_path, after)
    task, seen = make(), []
    keras.utils.set_random_seed(7)  # must have no effect
    note = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: seen.append(batch),
        on_train_batch_end=lambda batch, logs: seen.append(logs["loss"]),
    )
    history = fit(task, images, note, Checkpoint(tmp_path, every_steps=2))
    assert same(task, whole[1])
    first = {3: 2, 5: 4, 6: 5, 7: 6}[after]
    assert seen[0] == first % STEPS  # the callbacks see no step twice
    assert len(seen) == 2 * (STEPS * EPOCHS - first)
    for name, values in history.items():  # the means of the interrupted epoch too
        assert values == whole[0][name][-len(values) :]


def test_a_finished_run_is_not_trained_further(images, whole, tmp_path):
    fit(make(), images, Checkpoint(tmp_path))
    assert [p.name for p in sorted(tmp_path.iterdir())] == [
        f"step-{n:09d}.npz" for n in (5, 10, 15)
    ]
    task = make()
    assert fit(task, images, Checkpoint(tmp_path)) == {}
    assert same(task, whole[1])


def test_keeps_the_newest(images, tmp_path):
    fit(make(), images, Checkpoint(tmp_path, every_epochs=None, every_steps=3, keep=2))
    assert [int(p.stem[5:]) for p in sorted(tmp_path.iterdir())] == [12, 15]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_newest_checkpoint_is_skipped(damage, images, whole, interrupted, tmp_path):
    interrupted(tmp_path, 7)
    (tmp_path / ".new-step-000000008.npz").write_bytes(b"killed while writing")
    newest = max(tmp_path.glob("step-*.npz"))
    data = bytearray(newest.read_bytes())
    if damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        with zipfile.ZipFile(newest) as file:
            largest = max(file.infolist(), key=lambda member: member.file_size)
        data[largest.header_offset + largest.file_size // 2] ^= 1  # a weight, not a header
    else:
        data = b""
    newest.write_bytes(data)
    task = make()
    with pytest.warns(UserWarning, match=rf"{newest.name} is damaged .* going back to the one"):
        fit(task, images, Checkpoint(tmp_path, every_steps=2))
    assert same(task, whole[1])
    assert not list(tmp_path.glob(".new*"))


def test_checkpoints_of_other_runs(images, interrupted, tmp_path):
    interrupted(tmp_path, 5)
    before = {p: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(
        ValueError, match="step-000000004.npz belongs to a Rotation with another encoder or"
    ):
        fit(make(width=2), images, Checkpoint(tmp_path))
    for arguments, words in (
        (
            {"seed": 2},
            r"seed 1, this one has 2: give that value, .* or override=\['seed'\] \(--over",
        ),
        ({"shuffle": False}, r"shuffle True, this one has False: .* override=\['shuffle'\]"),
        ({"batch": 4}, "batch_size 8, this one has 4: give that value, or another directory$"),
        ({"images": kssl.data.subset(images, range(38))}, "number of images 40, this one has 38"),
        ({"images": kssl.data.subset(images, range(35)), "batch": 7}, "number of images 40"),
        ({"images": kssl.data.subset(images, range(39, -1, -1))}, "images sha256:.*, this one has"),
        ({"task": make(optimizer="sgd")}, "optimizer Adam, this one has SGD: give .* directory$"),
        (
            {"task": make(optimizer=keras.optimizers.Adam(0.5))},
            r"learning_rate 0.001\d*, this one has 0.5: .* override=\['learning_rate'\]",
        ),
        (
            {"task": make(optimizer=keras.optimizers.Adam(0.001, weight_decay=1e-3))},
            "weight_decay None, this one has 0.001: ",
        ),
    ):
        task = arguments.pop("task", None) or make()
        with pytest.raises(ValueError, match=f"belongs to a training run with {words}"):
            fit(task, arguments.pop("images", images), Checkpoint(tmp_path), **arguments)
    with pytest.raises(ValueError, match="cannot be resumed with steps_per_execution 5"):
        fit(make(execution=5), images, Checkpoint(tmp_path))
    assert {p: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_checkpoints_of_other_tasks(images, tmp_path):
    """All have the same variables."""

    def puzzle(kind, **arguments):
        keras.utils.set_random_seed(0)
        encoder = kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,))
        task = kind(encoder, num_permutations=10, **arguments)
        task.compile("sgd")
        return task

    with pytest.raises(KeyboardInterrupt):
        fit(puzzle(kssl.tasks.Jigsaw), images, Checkpoint(tmp_path, every_steps=1), Stop(2))
    with pytest.raises(
        ValueError, match="belongs to a training run of Jigsaw, not of JigsawPlus: give another"
    ):
        fit(puzzle(kssl.tasks.JigsawPlus), images, Checkpoint(tmp_path))
    with pytest.raises(
        ValueError,
        match=r"belongs to a training run with gray \S+, this one has 0.1: give that value",
    ):
        fit(puzzle(kssl.tasks.Jigsaw, gray=0.1), images, Checkpoint(tmp_path))
    assert fit(puzzle(kssl.tasks.Jigsaw), images, Checkpoint(tmp_path))  # other names of layers


def test_overridden_arguments(images, interrupted, tmp_path):
    interrupted(tmp_path, 5)

    def slower():
        return make(optimizer=keras.optimizers.Adam(1e-5))

    with pytest.raises(ValueError, match="override must name some of shuffle, .*, got 'rate'"):
        fit(slower(), images, Checkpoint(tmp_path, override=["rate"]))
    task = slower()
    fit(task, images, Checkpoint(tmp_path, override="learning_rate"))
    assert float(task.optimizer.learning_rate) == pytest.approx(1e-5)
    assert int(task.optimizer.iterations) == STEPS * EPOCHS
    # From here on the new value is that of the run.
    assert fit(slower(), images, Checkpoint(tmp_path)) == {}
    with pytest.raises(ValueError, match="learning_rate .*e-0[56], this one has 0.001"):
        fit(make(), images, Checkpoint(tmp_path))


def test_a_schedule_may_be_longer_but_not_higher(images, tmp_path):
    def scheduled(peak, epochs):
        return make(optimizer=optimizers.adam_cosine(peak, STEPS * epochs))

    assert fit(scheduled(0.1, 1), images, Checkpoint(tmp_path))
    with pytest.raises(
        ValueError, match=r"learning_rate CosineDecay\(.*warmup_target=0.1.*, this .*target=0.2"
    ):
        fit(scheduled(0.2, 1), images, Checkpoint(tmp_path))
    assert fit(scheduled(0.1, 2), images, Checkpoint(tmp_path)) == {}


def test_a_learning_rate_that_a_callback_changes_is_no_other_one(images, tmp_path):
    task = make()
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    with pytest.raises(KeyboardInterrupt):
        fit(task, images, halve, Checkpoint(tmp_path), Stop(7))
    fit(task, images, halve, Checkpoint(tmp_path), Stop(-1))  # the task as it is
    assert fit(make(), images, Checkpoint(tmp_path)) == {}  # and compiled again
    assert float(task.optimizer.learning_rate) == pytest.approx(1e-3 / 2**EPOCHS)


def test_several_steps_at_once(images, whole, tmp_path):
    with pytest.raises(ValueError, match="steps_per_execution 2 must divide the 5 steps"):
        fit(make(execution=2), images)
    task = make(execution=5)
    fit(task, images, Checkpoint(tmp_path, every_steps=5))
    for a, b in zip(task.get_weights(), whole[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_non_finite_weights_name_the_last_valid_checkpoint(images, tmp_path):
    class Poison(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 3:
                self.model.head.bias.assign([np.nan] * 4)

    checkpoint = Checkpoint(tmp_path, every_steps=1)
    with pytest.raises(FloatingPointError, match=r"no longer finite after step 4: .*00003\.npz"):
        fit(make(), images, Poison(), checkpoint)
    checkpoint = Checkpoint(tmp_path / "other", every_steps=2, every_epochs=None)
    with pytest.raises(FloatingPointError, match=r"(after step 4|step 4 of epoch 1): .*00002\.npz"):
        fit(make(), images, Poison(), checkpoint)


def test_invalid_arguments(tmp_path):
    for name in ("every_epochs", "every_steps", "keep"):
        with pytest.raises(ValueError, match=f"{name} must be a positive whole number, got 0"):
            Checkpoint(tmp_path, **{name: 0})
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="directory must be a folder, .*file' is a file"):
        Checkpoint(tmp_path / "file")


def test_killed_runs_of_several_families(monkeypatch, capsys):
    """A short form of tools/soak_resume.py: real processes, SIGKILL."""
    spec = importlib.util.spec_from_file_location("soak_resume", ROOT / "tools/soak_resume.py")
    soak = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(soak)
    tasks = ["self_label", "gan", "cmc", "pcl"]
    monkeypatch.setattr(sys, "argv", ["soak_resume", "--kills", "1", "--tasks", *tasks])
    assert soak.main() == 0
    out = capsys.readouterr().out
    assert out.count("0 differ") == len(tasks), out


def test_a_single_callback_need_not_be_in_a_list(images, tmp_path):
    for trained in (EPOCHS, 0):
        task, saved = make(), Checkpoint(tmp_path)
        data = task.dataset(images, 8, epochs=EPOCHS)
        history = task.fit(data, epochs=EPOCHS, callbacks=saved, verbose=0)
        assert len(history.history.get("loss", [])) == trained
