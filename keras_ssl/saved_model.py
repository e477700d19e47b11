"""Exports tasks as SavedModels for TensorFlow Serving, and loads their encoders back into Keras."""

import contextlib
import datetime
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from keras_ssl import encoders, files, zoo
from keras_ssl.ops import decode
from keras_ssl.pretext import PretextModel
from keras_ssl.tasks import TASKS

TOLERANCE = 1e-5
MAX_DRAFT_SECONDS = 24 * 3600  # seconds; an older draft belongs to an export that was killed


def export(task, path, card=None):
    """Exports the next version of a model as a SavedModel for TensorFlow Serving.

    A version appears only after it has been verified. It is written to a hidden directory next to the
    other versions and loaded into a graph Session, as TensorFlow Serving loads it. Every signature is
    run on a batch of random images, the features are compared with those of Keras, and only then is
    the directory renamed. A task in mixed precision is exported in float32.

    | signature | input | output |
    | --- | --- | --- |
    | serving_default | images (N, H, W, 3) uint8 | features (N, D) float32 |
    | encoded | encoded (N,) bytes of JPEG, PNG, BMP or GIF files | features (N, D) float32 |
    | stages | images | stage1, ... (N, c) averaged over the image, and features |
    | pretext, if the task has a prediction | images | the task's prediction for each image |

    Args:
        task: PretextModel with an encoder of fixed input size (H, W, 3).
        path: directory of the model; its name is the model's name in TensorFlow Serving.
        card: dict with information about the model (data, budget, accuracies, license), which is added
            to the task, paper, versions and date in `assets.extra/card.json`.

    Returns:
        str, the new version's directory, "<path>/<version>".

    Raises:
        ValueError: `task` is not a PretextModel, its encoder's input does not have a fixed size and
            3 channels, or `card` is not a dict.
        RuntimeError: the written model's features differ from those of Keras; no version appears.

    Example:
        >>> export(task, "saved_models/rotation_photos")                # doctest: +SKIP
        'saved_models/rotation_photos/1'
    """
    # Not at import time: clients, which import the package, do not need the server.
    from keras_ssl.serving.server.servable import CHECKSUMS, WARMUP, checksums

    if not isinstance(task, PretextModel):
        raise ValueError(f"task must be a PretextModel, got {type(task).__name__}")
    height, width = encoders.check_image_shape(task.encoder)
    if not isinstance(card, dict | None):
        raise ValueError(f"card must be a dict, got {card!r}")
    task = _in_float32(task)
    path = Path(path)
    created = files.make_folder(path)
    _remove_old_drafts(path)
    # Servers ignore this folder, whose name is not a number, even if the process is killed and leaves it
    # behind.
    draft = Path(tempfile.mkdtemp(prefix=".export-", dir=path))
    try:
        signatures = _signatures(task, height, width)
        _write(task, signatures, draft)
        inputs = _random_inputs(signatures, height, width)
        _verify(task, draft, inputs)
        extra = draft / "assets.extra"
        extra.mkdir()
        _write_warmup(extra / WARMUP, path.name, inputs)
        (extra / "encoder.json").write_text(task.encoder.to_json(indent=1))
        (extra / "card.json").write_text(json.dumps(_card(task, list(signatures), card), indent=1))
        (extra / CHECKSUMS).write_text(json.dumps(checksums(draft), indent=1))
        for folder in created:
            folder.chmod(0o755)
            files.sync(folder)  # so that the mode survives a power failure, too
        return str(_rename_to_next_version(draft, path))
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        # A folder that is not empty stays: this export or another one has succeeded.
        with contextlib.suppress(OSError):
            for folder in created:
                folder.rmdir()


def load(path):
    """Loads the Keras encoder of an export, trainable and with the exported weights.

    Args:
        path: version directory, or the model's directory for its newest version, or the name of a model of
            the zoo (`keras-ssl zoo`).

    Returns:
        functional keras.Model from (B, H, W, 3) pixels in 0..255 to (B, D) features, with named stages.

    Raises:
        ValueError: `path` is not an export of keras_ssl, and not the name of a model of the zoo.

    Example:
        >>> encoder = load("rotation_cifar10")
        >>> model = keras.Sequential([encoder, keras.layers.Dense(10)])
    """
    directory = Path(path)
    if not directory.exists() and str(path) in (trained := zoo.models()):
        directory, _ = trained[str(path)]
    if found := zoo.versions(directory):
        directory = found[max(found)]
    architecture = directory / "assets.extra" / "encoder.json"
    if not architecture.is_file():
        raise ValueError(
            f"path must be an export of keras_ssl or the name of a trained model, but {str(path)!r} has no "
            f"assets.extra/encoder.json; trained models: {', '.join(zoo.models()) or 'none'}"
        )
    encoder = keras.models.model_from_json(architecture.read_text())
    checkpoint = tf.train.Checkpoint(encoder_variables=[v.value for v in encoder.variables])
    status = checkpoint.read(str(directory / "variables" / "variables"))
    status.assert_existing_objects_matched().expect_partial()
    return encoder


def _remove_old_drafts(path):
    """Removes drafts of exports that were killed; those of running exports are younger."""
    for draft in path.glob(".export-*"):
        with contextlib.suppress(FileNotFoundError):  # another export has just removed it
            if time.time() - draft.stat().st_mtime > MAX_DRAFT_SECONDS:
                shutil.rmtree(draft, ignore_errors=True)


def _rename_to_next_version(draft, path):
    """Renames a draft to the next free version of the model and returns that directory."""
    for written in (*draft.rglob("*"), draft):
        # The server may run as another user, whatever the umask is here; mkdtemp excludes all other users.
        written.chmod(0o755 if written.is_dir() else 0o644)
        files.sync(written)  # so that a power failure leaves no version half-written
    number = max(zoo.versions(path), default=0) + 1
    while True:
        version = path / str(number)
        try:
            os.rename(draft, version)
        except OSError:
            if not os.path.lexists(version):
                raise
            number += 1  # a file has this name, or another export has just taken the number
        else:
            files.sync(path)
            return version


def _signatures(task, height, width):
    """Creates the signatures, a dict of tf.function by name."""
    stages = encoders.stages(task.encoder)
    encoded = tf.TensorSpec((None,), tf.string, name="encoded")

    def features_of_files(batch):
        return {"features": task.features(decode.decode_batch(batch, height, width))}

    signatures = {
        "serving_default": _on_images(lambda x: {"features": task.features(x)}, height, width),
        "encoded": _endpoint(features_of_files, encoded),
        "stages": _on_images(lambda x: stages(x, training=False), height, width),
    }
    if task.prediction(tf.zeros((1, height, width, 3))) is not None:
        signatures["pretext"] = _on_images(task.prediction, height, width)
    return signatures


def _on_images(function, height, width):
    """Creates an endpoint for a function of float32 images, which takes uint8 images."""
    spec = tf.TensorSpec((None, height, width, 3), tf.uint8, name="images")
    return _endpoint(lambda batch: function(tf.cast(batch, tf.float32)), spec)


def _endpoint(function, spec):
    """Creates a tf.function of one batch, which checks its shape.

    A Session does not enforce declared shapes, and a convolution of the wrong rank aborts the whole server (a
    check in oneDNN). With ensure_shape, a wrong rank is INVALID_ARGUMENT instead.
    """

    def checked(batch):
        not_empty = tf.debugging.assert_positive(
            tf.shape(batch)[0], f"{spec.name} must not be empty"
        )
        with tf.control_dependencies([not_empty]):
            return function(tf.ensure_shape(batch, spec.shape))

    return tf.function(checked, input_signature=[spec], autograph=False)


def _write(task, signatures, directory):
    """Writes the SavedModel with its signatures, and with `train` for fine-tuning in TensorFlow."""
    height, width, _ = task.encoder.input_shape[1:]
    # A plain module: a graph Session cannot load a SavedModel that contains Keras models.
    module = tf.Module()
    module.encoder_variables = [v.value for v in task.encoder.variables]
    module.encoder_trainable_variables = [v.value for v in task.encoder.trainable_variables]
    # Only variables that a signature reads, since the labels of a clustering task grow with its data set.
    read = [v for f in signatures.values() for v in f.get_concrete_function().variables]
    module.signature_variables = list({id(v): v for v in read}.values())
    # Not a signature: it updates the moving averages, and clients of a server must not do that.
    module.train = _on_images(lambda x: {"features": task.encoder(x, training=True)}, height, width)
    tf.saved_model.save(module, str(directory), signatures)


def _random_inputs(signatures, height, width):
    """Creates inputs for every signature: the same random images as pixels or as PNG files."""
    batch = np.random.default_rng(0).integers(0, 256, (4, height, width, 3), np.uint8)
    inputs = {name: {"images": batch} for name in signatures}
    inputs["encoded"] = {"encoded": np.array([tf.io.encode_png(i).numpy() for i in batch])}
    return inputs


def _verify(task, directory, inputs):
    """Runs every signature in a graph Session and compares the features with those of Keras."""
    from keras_ssl.serving.server.servable import Servable

    expected = task.features(inputs["serving_default"]["images"]).numpy()
    servable = Servable(directory)
    try:
        for name, values in inputs.items():
            outputs = servable.run(values, name)
            if "features" in outputs and not np.allclose(
                outputs["features"], expected, rtol=TOLERANCE, atol=TOLERANCE
            ):
                difference = np.abs(outputs["features"] - expected).max()
                raise RuntimeError(
                    f"signature {name!r} differs from Keras by {difference:.2g}, more than "
                    f"{TOLERANCE}; nothing was exported"
                )
    finally:
        servable.close()


def _write_warmup(path, name, inputs):
    """Writes requests that TensorFlow Serving replays before a version is available."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, values in inputs.items():
            request = predict_pb2.PredictRequest()
            request.model_spec.name = name
            request.model_spec.signature_name = signature
            for key, value in values.items():
                request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=request)
            )
            writer.write(log.SerializeToString())


def _card(task, signatures, card):
    """Creates the content of card.json."""
    row = next((row for row in TASKS if row.task is type(task)), None)
    return {
        "task": row.name if row else type(task).__name__,
        "paper": row.paper if row else None,
        "input": list(task.encoder.input_shape[1:]),
        "features": task.encoder.output_shape[-1],
        "encoder_parameters": task.encoder.count_params(),
        "signatures": signatures,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "date": datetime.date.today().isoformat(),
        **(card or {}),
    }


def _in_float32(task):
    """Returns the task itself, or a float32 copy of a task in mixed precision."""

    def walk(config):
        if isinstance(config, dict):
            if config.get("class_name") == "DTypePolicy":
                return {**config, "config": {"name": "float32"}}
            return {key: walk(value) for key, value in config.items()}
        if isinstance(config, list | tuple):
            return type(config)(walk(value) for value in config)
        return config

    config = task.get_config()
    if walk(config) == config:
        return task
    copy = type(task).from_config(walk(config))
    copy.build_from_config(task.get_build_config())
    copy.set_weights(task.get_weights())
    return copy
