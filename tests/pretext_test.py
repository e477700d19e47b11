"""The base class, on a minimal task whose data are easy to check."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.ops import recipes


class Brightness(kssl.PretextModel):
    """Adds a random number to each image; the label is the id of the image."""

    def __init__(self, encoder, **kwargs):
        super().__init__(encoder, **kwargs)
        self.head = keras.layers.Dense(1)

    def pretext(self, batch, seed):
        noise = kssl.ops.random.uniform(seed, 1)[:, :, None, None]
        return tf.cast(batch["image"], tf.float32) + noise, batch["id"]

    def call(self, x, training=False):
        return self.head(self.encoder(x, training=training))

    def default_loss(self):
        return keras.losses.MeanSquaredError()


@pytest.fixture
def brightness():
    return Brightness(kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,)))


@pytest.fixture
def images(noise):
    return kssl.data.from_array(noise[:13])


def read(dataset):
    return [(x.copy(), y.copy()) for x, y in dataset.as_numpy_iterator()]


def test_every_epoch_has_all_images_once_with_new_noise(brightness, images, noise):
    batches = read(brightness.dataset(images, 5, epochs=3))
    assert [len(y) for _, y in batches] == [5, 5, 3] * 3
    orders, noises = [], []
    for epoch in range(3):
        x, ids = (
            np.concatenate(part) for part in zip(*batches[3 * epoch : 3 * epoch + 3], strict=True)
        )
        assert sorted(ids) == list(range(13))
        added = x - noise[ids]
        assert ((added >= 0) & (added < 1)).all()
        orders.append(tuple(ids))
        noises.append(added[np.argsort(ids), 0, 0, 0])
    assert len(set(orders)) == 3
    assert len(np.unique(np.round(noises, 4))) > 36


def test_noise_depends_on_seed_epoch_and_id_only(brightness, images):
    def by_id(**arguments):
        x, ids = (
            np.concatenate(p)
            for p in zip(*read(brightness.dataset(images, **arguments)), strict=True)
        )
        return x[np.argsort(ids)]

    first = by_id(batch_size=5)
    np.testing.assert_array_equal(by_id(batch_size=4, shuffle=False), first)
    assert (by_id(batch_size=5, seed=1) != first).any(axis=(1, 2, 3)).all()


def test_resumed_run_gets_the_same_data(brightness, images):
    whole = read(brightness.dataset(images, 5, epochs=4, seed=3))
    keras.utils.set_random_seed(99)  # the order must not depend on the global seed
    rest = read(brightness.dataset(images, 5, epochs=4, first_epoch=2, seed=3))
    assert len(rest) == 6
    for (x, y), (x2, y2) in zip(whole[6:], rest, strict=True):
        np.testing.assert_array_equal(y, y2)
        np.testing.assert_array_equal(x, x2)


def test_order_without_shuffling_is_that_of_the_reader(brightness, images):
    ids = np.concatenate([y for _, y in read(brightness.dataset(images, 4, shuffle=False))])
    assert ids.tolist() == list(range(13))


def test_fit_runs_the_steps_of_an_epoch(brightness, images, capsys):
    brightness.compile("sgd")
    steps = []
    counter = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: steps.append(batch)
    )
    brightness.fit(
        brightness.dataset(images, 5, epochs=2), epochs=2, verbose=0, callbacks=[counter],
        validation_data=brightness.dataset(images, 5, shuffle=False),
    )  # fmt: skip
    assert steps == [0, 1, 2] * 2
    assert brightness.optimizer.iterations == 6
    with pytest.raises(ValueError, match="2 epochs.*holds 3"):
        brightness.fit(brightness.dataset(images, 5, epochs=3), epochs=2)


def test_fit_accepts_arrays(brightness, noise):
    brightness.compile("sgd")
    history = brightness.fit(noise[:8], np.arange(8), batch_size=4, epochs=2, verbose=0)
    assert len(history.history["loss"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"batch_size": 0}, "batch_size must be an integer .* of at least 1, got 0"),
     ({"batch_size": 32.0}, "batch_size must be an integer .*, got 32.0"),
     ({"batch_size": True}, "batch_size must be an integer .*, got True"),
     ({"batch_size": 4, "epochs": 2.0}, "epochs must be an integer .*, got 2.0"),
     ({"batch_size": 4, "seed": 1.5}, "seed must be an integer .*, got 1.5"),
     ({"batch_size": 4, "epochs": 0}, "first_epoch"),
     ({"batch_size": 4, "epochs": 2, "first_epoch": 2}, "first_epoch")],
)  # fmt: skip
def test_dataset_refuses_invalid_numbers(brightness, images, arguments, words):
    with pytest.raises(ValueError, match=words):
        brightness.dataset(images, **arguments)


def test_dataset_refuses_invalid_images(brightness, images):
    with pytest.raises(ValueError, match="tf.data.Dataset .*from_array.*, got a ndarray"):
        brightness.dataset(np.zeros((2, 32, 32, 3)), 4)
    with pytest.raises(ValueError, match="`image` and `id`"):
        brightness.dataset(images.map(lambda e: e["image"]), 4)
    with pytest.raises(ValueError, match="known length"):
        brightness.dataset(images.filter(lambda e: e["id"] > 3), 4)
    with pytest.raises(ValueError, match=r"\(16, 16, 3\).*\(32, 32, 3\)"):
        brightness.dataset(kssl.data.from_array(np.zeros((2, 16, 16, 3))), 4)


def test_refuses_invalid_encoders():
    image = keras.Input((8, 8, 3))
    features = keras.layers.GlobalAveragePooling2D()(image)
    for bad, shapes in (
        (keras.layers.Dense(3), "from None to None"),
        (
            keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]),
            r"from \(None, 4\) to \(None, 2\)",
        ),
        (keras.Model(image, [features, features]), r"to \[\(None, 3\), \(None, 3\)\]"),
    ):
        with pytest.raises(
            ValueError, match=f"encoder must be a functional .* {shapes}; keras_ssl"
        ):
            Brightness(bad)


@pytest.mark.parametrize(("name", "value"), [("needs", "image"), ("networks", "encoder")])
def test_refuses_a_str_where_a_task_lists_names(name, value):
    wrong = type("Wrong", (Brightness,), {name: value})
    with pytest.raises(ValueError, match=rf"Wrong.{name} must be a tuple .* write \('{value}',\)"):
        wrong(kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,)))


def test_names_the_reader_of_a_missing_column(images):
    clips = type("Clips", (Brightness,), {"needs": ("frames",)})
    task = clips(kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,)))
    with pytest.raises(ValueError, match=r"from_array\(images, frames=frames\)"):
        task.dataset(images, 4)


def test_late_labels_replace_labels_and_set_weights(noise, monkeypatch):
    class Late(Brightness):
        def late_labels(self, x, y, y_pred):
            return tf.zeros_like(y_pred), tf.constant([1.0, 0.0])

    task = Late(kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,)))
    task.compile("sgd", metrics=[keras.metrics.MeanSquaredError(name="mse")])
    logs = task.evaluate(noise[:2], np.array([100.0, 100.0]), verbose=0, return_dict=True)
    prediction = task.predict(noise[:2], verbose=0)[:, 0]
    assert logs["loss"] == pytest.approx(prediction[0] ** 2 / 2, rel=1e-4)
    assert logs["mse"] == pytest.approx(np.mean(prediction**2), rel=1e-4)

    monkeypatch.setattr(
        Late, "default_metrics", lambda self: [keras.metrics.MeanSquaredError("mse")]
    )
    task.compile("sgd")  # the task's own metrics are weighted
    logs = task.evaluate(noise[:2], np.array([100.0, 100.0]), verbose=0, return_dict=True)
    assert logs["mse"] == pytest.approx(prediction[0] ** 2, rel=1e-4)


def test_compile_keeps_explicit_arguments(brightness):
    brightness.compile("sgd", loss="mae", metrics=["mse"], jit_compile=False)
    assert brightness.loss == "mae"
    brightness.compile("sgd")
    assert isinstance(brightness.loss, keras.losses.MeanSquaredError)
    assert brightness.jit_compile is False  # "auto" on a machine with only a CPU


def test_missing_pretext_is_named_in_the_error(noise):
    task = kssl.PretextModel(kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,)))
    with pytest.raises(NotImplementedError, match="PretextModel must define pretext"):
        task.pretext({}, None)


def test_error_names_an_argument_that_is_not_kept():
    class Forgetful(kssl.PretextModel):
        def __init__(self, encoder, margin=1.0, **kwargs):
            super().__init__(encoder, **kwargs)

    task = Forgetful(kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,)))
    with pytest.raises(
        NotImplementedError, match=r"Forgetful takes the argument margin .* self\.margin"
    ):
        task.get_config()


@keras.saving.register_keras_serializable(package="pretext_test")
class Views(Brightness):
    def __init__(self, encoder, recipe=recipes.SIMCLR_SMALL, **kwargs):
        super().__init__(encoder, **kwargs)
        self.recipe = recipe


def test_a_recipe_is_saved_with_its_task(tmp_path):
    recipe = dataclasses.replace(recipes.BYOL_2, hue=0.05)
    task = Views(kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,)), recipe)
    task(np.zeros((1, 32, 32, 3)))
    task.save(tmp_path / "task.keras")
    assert keras.models.load_model(tmp_path / "task.keras").recipe == recipe


@keras.saving.register_keras_serializable(package="pretext_test")
class Nested(Brightness):
    def __init__(self, encoder, views=(), by_name=None, **kwargs):
        super().__init__(encoder, **kwargs)
        self.views, self.by_name = views, by_name


def test_objects_in_containers_are_saved_with_their_task(tmp_path):
    encoder = kssl.encoders.resnet((32, 32, 3), width=2, blocks=(1,))
    views = (recipes.BYOL_1, [recipes.BYOL_2, 3])
    task = Nested(encoder, views, {"first": recipes.AMDIM, "sizes": (1, 2)})
    task(np.zeros((1, 32, 32, 3)))
    task.save(tmp_path / "task.keras")
    copy = keras.models.load_model(tmp_path / "task.keras")
    # JSON has no tuples.
    assert list(copy.views) == [recipes.BYOL_1, [recipes.BYOL_2, 3]]
    assert copy.by_name == {"first": recipes.AMDIM, "sizes": [1, 2]}
    same = Nested.from_config(task.get_config())
    assert (tuple(same.views), same.by_name["sizes"]) == (views, (1, 2))


@pytest.mark.parametrize("jit_compile", ["auto", False])
def test_a_saved_task_keeps_how_it_was_compiled(brightness, jit_compile):
    """A saved task does not keep what "auto" meant on the machine that saved it."""
    brightness.compile("sgd", jit_compile=jit_compile)
    assert brightness.get_compile_config()["jit_compile"] == jit_compile


def test_a_loaded_task_chooses_xla_for_the_machine_it_is_on(brightness, tmp_path, two_replicas):
    def load(asked):
        brightness.compile("sgd", jit_compile=asked)
        brightness(np.zeros((1, 32, 32, 3)))
        brightness._compile_config.config["jit_compile"] = (
            True  # what Keras sets for "auto" on a GPU
        )
        brightness.save(tmp_path / "task.keras")
        return keras.models.load_model(tmp_path / "task.keras", {"Brightness": Brightness})

    assert load("auto").jit_compile is False
    assert load(True).jit_compile is True
    with two_replicas.scope():
        assert load("auto").jit_compile is False
        with pytest.raises(ValueError, match="jit_compile=True does not work on 2 replicas"):
            load(True)
