"""A resumed run has the callbacks' state of an uninterrupted one."""

import warnings

import keras

import keras_ssl as kssl
from keras_ssl.callbacks import Checkpoint, Collapse, CSVLog, Relabel, resumed

EPOCHS = 5


class Stop(keras.callbacks.Callback):
    """Interrupts training at the start of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


def run(task, images, folder, callbacks, stop=-1):
    """Trains with a checkpoint callback that comes first in the list."""
    callbacks = [Checkpoint(folder / "saved"), *callbacks, CSVLog(folder / "log.csv"), Stop(stop)]
    task.compile(keras.optimizers.SGD(0.3))
    data = task.dataset(images, 20, epochs=EPOCHS)
    try:
        task.fit(data, epochs=EPOCHS, callbacks=callbacks, verbose=0)
    except KeyboardInterrupt:
        assert stop >= 0


def test_callbacks_that_compare_epochs(images, make_linear_task, tmp_path):
    pairs = []
    for name, stops in (("whole", [-1]), ("resumed", [2, 3, -1])):
        (tmp_path / name).mkdir()
        for stop in stops:
            keras.utils.set_random_seed(0)  # of the initial weights
            collapse = Collapse(images, number=16, min_std=1)  # warns in the first epoch
            plateau = keras.callbacks.ReduceLROnPlateau("feature_std", mode="max", patience=2)
            stopping = keras.callbacks.EarlyStopping("feature_std", mode="max", patience=100)
            callbacks = [collapse, plateau, stopping]
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                run(make_linear_task(), images, tmp_path / name, callbacks, stop)
            warned = [w for w in caught if "features collapsed" in str(w.message)]
            assert len(warned) == (stop == stops[0])  # once per run
        pairs.append(
            (*map(float, collapse.before), collapse.warned, stopping.wait, float(stopping.best),
             plateau.wait, (tmp_path / name / "log.csv").read_text())
        )  # fmt: skip
    assert pairs[0] == pairs[1]
    assert pairs[0][3] >= 3  # the best value is from an epoch before the interruptions


def test_metrics_between_two_relabelings(noise, tmp_path):
    images, logs = kssl.data.from_array(noise), []
    for name, stops in (("whole", [-1]), ("resumed", [2, -1])):
        (tmp_path / name).mkdir()
        for stop in stops:
            keras.utils.set_random_seed(0)
            encoder = kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,))
            task = kssl.tasks.DeepCluster(encoder, num_images=40, num_clusters=4)
            run(task, images, tmp_path / name, [Relabel(images, when=3)], stop)
        logs.append((tmp_path / name / "log.csv").read_text())
    assert logs[0] == logs[1]
    assert "clusters,smallest,largest" in logs[0]


def test_states_by_kind_and_number():
    class Counts(keras.callbacks.Callback):
        checkpointed = ("number",)

        def __init__(self, number):
            super().__init__()
            self.number = number

    saved = resumed.states([Counts(1), keras.callbacks.History(), Counts(2)])
    assert saved == {"Counts 0": {"number": 1}, "Counts 1": {"number": 2}}
    others = [Counts(0), Counts(0), Counts(7)]  # the third is new
    resumed.set_states(others, saved)
    assert [callback.number for callback in others] == [1, 2, 7]
