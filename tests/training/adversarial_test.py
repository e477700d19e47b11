"""Adversarial training: the step versus an oracle with two losses, and saving."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_ssl as kssl
from keras_ssl.tasks import GAN, Inpainting, SuperResolution
from keras_ssl.training.loss_scale import LossScale

RATE = 0.05


def make(task, optimizer=None, **arguments):
    keras.utils.set_random_seed(3)
    encoder = kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1,))
    task = task(encoder, filters=4, **arguments)
    task.compile(optimizer or keras.optimizers.SGD(RATE))
    return task


@pytest.fixture(scope="module")
def images():
    """24 color images without symmetry."""
    ramp = np.linspace(0, 1, 32)
    rng = np.random.default_rng(0)
    weights = rng.uniform(0, 1, (24, 3, 3))
    planes = np.stack([ramp[:, None] * np.ones(32), ramp * np.ones((32, 1)), np.ones((32, 32))], -1)
    images = planes @ weights[:, None] / 3 * 255 + rng.uniform(0, 40, (24, 32, 32, 3))
    return kssl.data.from_array(np.clip(images, 0, 255).astype(np.uint8))


CASES = [
    (Inpainting, {"adversarial": 0.3}),
    (SuperResolution, {"adversarial": 0.5}),
    (GAN, {}),
]


@pytest.mark.parametrize(("kind", "arguments"), CASES)
def test_step_matches_two_losses_with_separate_tapes(kind, arguments, images):
    x, y = next(iter(make(kind, **arguments).dataset(images, 8)))
    stepped, oracle = make(kind, **arguments), make(kind, **arguments)
    logs = stepped.train_on_batch(x, y, return_dict=True)

    with tf.GradientTape(persistent=True) as tape:
        y_pred = oracle(x, training=True)
        own = oracle.compute_loss(x, y, y_pred)
        real, fake = oracle.discriminator_inputs(x, y, y_pred)
        both = [tf.concat(pair, 0) for pair in zip(real, fake, strict=True)]
        is_real, is_fake = tf.split(oracle.discriminator(both, training=True), 2)
        critic = keras.losses.BinaryCrossentropy(from_logits=True)
        ones, zeros = tf.ones_like(is_real), tf.zeros_like(is_real)
        d_loss = critic(ones, is_real) + critic(zeros, is_fake)
        g_loss = critic(ones, is_fake)
        if kind is GAN:
            # The encoder is trained to make real pairs look generated.
            g_loss += critic(zeros, is_real)
        weight = oracle.adversarial
        total = (1 - weight) * own + weight * g_loss
    discriminator = oracle.discriminator.trainable_variables
    others = oracle.generator_variables()
    own_rate = RATE * oracle.discriminator_rate
    for variables, loss, rate in ((discriminator, d_loss, own_rate), (others, total, RATE)):
        gradients = tape.gradient(loss, variables)
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.assign_sub(rate * gradient)

    assert len(discriminator) + len(others) == len(oracle.trainable_variables)
    for a, b in zip(stepped.weights, oracle.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5, err_msg=a.path)
    assert logs["discriminator_loss"] == pytest.approx(float(d_loss), rel=1e-5)
    assert logs["generator_loss"] == pytest.approx(float(g_loss), rel=1e-5)
    assert logs["loss"] == pytest.approx(float(total), rel=1e-5)


@pytest.mark.parametrize(("kind", "arguments"), CASES)
def test_both_optimizers_resume(kind, arguments, images, tmp_path):
    def adam():
        return keras.optimizers.Adam(1e-3, beta_1=0.5)

    whole = make(kind, adam(), **arguments)
    whole.fit(whole.dataset(images, 8, epochs=3), epochs=3, verbose=0)

    first = make(kind, adam(), **arguments)
    first.fit(first.dataset(images, 8, epochs=2), epochs=2, verbose=0)
    first.save(tmp_path / "task.keras")
    rest = keras.models.load_model(tmp_path / "task.keras")
    for name in ("optimizer", "discriminator_optimizer"):
        saved, loaded = getattr(first, name), getattr(rest, name)
        assert loaded.beta_1 == 0.5
        assert int(loaded.iterations) == 6
        for a, b in zip(saved.variables, loaded.variables, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=a.path)
    # No optimizer has slots for the variables of the other.
    slots = len(first.optimizer.variables) + len(first.discriminator_optimizer.variables)
    assert slots == 2 * (2 + len(first.trainable_variables))

    rest.fit(rest.dataset(images, 8, epochs=3, first_epoch=2), epochs=3, initial_epoch=2, verbose=0)
    for a, b in zip(whole.weights, rest.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=a.path)


def test_separate_optimizer_for_the_discriminator(images, tmp_path):
    task = make(Inpainting)
    task.compile("adam", discriminator_optimizer=keras.optimizers.SGD(0.5))
    task.fit(task.dataset(images, 8), verbose=0)
    task.save(tmp_path / "task.keras")
    copy = keras.models.load_model(tmp_path / "task.keras")
    assert isinstance(copy.optimizer, keras.optimizers.Adam)
    assert isinstance(copy.discriminator_optimizer, keras.optimizers.SGD)
    assert float(copy.discriminator_optimizer.learning_rate) == 0.5


def scaled(scale):
    return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(RATE), initial_scale=scale)


@pytest.mark.parametrize(("kind", "arguments"), CASES)
@pytest.mark.parametrize(
    ("optimizer", "other"),
    [
        (lambda: scaled(2.0**13), lambda: scaled(2.0**4)),
        (lambda: keras.optimizers.SGD(RATE, loss_scale_factor=64.0), lambda: "auto"),
    ],
)
def test_step_does_not_depend_on_loss_scales(kind, arguments, optimizer, other, images):
    """In float32, where a power of two causes no rounding, so any confusion of the scales would show."""
    plain, task = make(kind, **arguments), make(kind, **arguments)
    x, y = next(iter(plain.dataset(images, 8)))
    same = "auto" if other() == "auto" else keras.optimizers.SGD(RATE)
    plain.compile(keras.optimizers.SGD(RATE), discriminator_optimizer=same, run_eagerly=True)
    task.compile(optimizer(), discriminator_optimizer=other(), run_eagerly=True)
    expected = plain.train_on_batch(x, y, return_dict=True)
    assert task.train_on_batch(x, y, return_dict=True) == pytest.approx(expected, rel=1e-6)
    for a, b in zip(task.weights, plain.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6, err_msg=a.path)


@pytest.fixture
def float16():
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize(("kind", "arguments"), CASES)
def test_saving_keeps_loss_scales_and_precision(kind, arguments, images, tmp_path, float16):
    task = make(kind, **arguments)
    adam = keras.optimizers.Adam(1e-3, beta_1=0.5)
    other = keras.optimizers.Adam(1e-3, beta_1=0.5) if kind is Inpainting else "auto"
    task.compile(adam, discriminator_optimizer=other, run_eagerly=True)
    x, y = next(iter(task.dataset(images, 8)))
    names = ("optimizer", "discriminator_optimizer")
    for name, scale in zip(names, (2.0**12, 2.0**9), strict=True):
        assert type(getattr(task, name)) is LossScale
        getattr(task, name).dynamic_scale.assign(scale)
    task.train_on_batch(x, y)
    task.save(tmp_path / "task.keras")
    keras.config.set_dtype_policy("float32")  # the policy of a new process
    copy = keras.models.load_model(tmp_path / "task.keras")
    for name in names:
        saved, loaded = getattr(task, name), getattr(copy, name)
        assert type(loaded) is LossScale
        assert loaded.dynamic_scale == (2.0**12 if name == "optimizer" else 2.0**9)
        assert loaded.step_counter == loaded.iterations == 1
        assert loaded.inner_optimizer.beta_1 == 0.5
        for a, b in zip(saved.variables, loaded.variables, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=a.path)
    result, expected = copy.train_on_batch(x, y), task.train_on_batch(x, y)
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    for a, b in zip(task.weights, copy.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7, err_msg=a.path)


def test_each_network_runs_once_per_step(images, monkeypatch):
    task = make(GAN)
    x, y = next(iter(task.dataset(images, 8)))
    seen = []
    for name in ("encoder", "decoder", "discriminator"):
        network = getattr(task, name)
        original = network.call

        def call(*args, original=original, name=name, **kwargs):
            seen.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(network, "call", call)
    task.train_step((x, y))
    assert sorted(seen) == ["decoder", "discriminator", "encoder"]


def test_evaluate_reports_both_losses_without_changes(images):
    task = make(Inpainting, adversarial=0.5)
    before = [w.copy() for w in task.get_weights()]
    found = task.evaluate(task.dataset(images, 8), verbose=0, return_dict=True)
    assert set(found) == {"loss", "discriminator_loss", "generator_loss", "psnr"}
    assert found["discriminator_loss"] > 0.1
    for a, b in zip(before, task.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_a_discriminator_trains_as_a_pretext_task(images):
    task = make(Inpainting, adversarial=0.0)
    history = task.fit(task.dataset(images, 8), verbose=0).history
    assert set(history) == {"loss", "psnr"}
    assert task.discriminator is None


def test_discriminator_is_not_exported(images, tmp_path):
    task = make(Inpainting)
    path = kssl.export(task, tmp_path / "inpainting")
    written = tf.train.load_checkpoint(f"{path}/variables/variables").get_variable_to_shape_map()
    shapes = [tuple(shape) for shape in written.values()]
    kernels = [v.shape for v in task.discriminator.trainable_variables if len(v.shape) == 4]
    of_others = [v.shape for v in task.generator_variables()]
    kernels = [k for k in kernels if k not in of_others]
    assert kernels
    assert not [k for k in kernels if k in shapes]


def test_refuses_a_weight_above_one(images):
    with pytest.raises(ValueError, match=r"adversarial must be in 0..1, got 2"):
        make(Inpainting, adversarial=2)


@pytest.mark.parametrize(("kind", "arguments"), CASES)
def test_trains_and_exports_in_bfloat16(kind, arguments, images, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        task = make(kind, **arguments)
        history = task.fit(task.dataset(images, 8), verbose=0).history
        assert all(np.isfinite(v).all() for v in history.values())
        path = kssl.export(task, tmp_path / "model")
    finally:
        keras.config.set_dtype_policy("float32")
    assert kssl.load(path).output_shape == (None, 4)


def constant_images(value):
    images = np.empty((16, 32, 32, 3), np.uint8)
    images[:] = value
    return kssl.data.from_array(images)


@pytest.mark.parametrize("kind", [kssl.tasks.Colorization, Inpainting, SuperResolution, GAN])
def test_training_is_finite_or_the_error_names_the_step(kind):
    """Learning rates ten times too large, and constant images."""
    keras.utils.set_random_seed(0)
    encoder = kssl.encoders.resnet((32, 32, 3), width=4, blocks=(1,))
    arguments = {} if kind is kssl.tasks.Colorization else {"filters": 4}
    if kind is SuperResolution:
        arguments["adversarial"] = 0.5
    task = kind(encoder, **arguments)
    usual = float(task.default_optimizer(1).learning_rate)
    task.compile(keras.optimizers.Adam(10 * usual, beta_1=0.5))
    message = ""
    for value in (0, 255, (200, 30, 90)):
        try:
            task.fit(task.dataset(constant_images(value), 4, epochs=3), epochs=3, verbose=0)
        except FloatingPointError as error:
            message = str(error)
            break
    finite = all(np.isfinite(w).all() for w in task.get_weights())
    assert finite or re.search(r"became (nan|inf) in step \d+ of epoch \d+", message)
