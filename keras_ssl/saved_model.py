"""A trained task out as a SavedModel for TensorFlow Serving, and its encoder back into Keras."""

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

from keras_ssl import encoders
from keras_ssl.ops import decode, images
from keras_ssl.serving.server.servable import CHECKSUMS, WARMUP, Servable, checksums, versions
from keras_ssl.tasks import TASKS

TOLERANCE = 1e-5
DRAFT_SECONDS = 24 * 3600


def export(task, path, card=None):
    """Writes the next version of a model, as TensorFlow Serving mounts it.

    The version appears only when it has been checked: it is written to a hidden directory beside
    it, loaded in a graph Session (the loader of TensorFlow Serving), run on the warm-up batch by
    every signature, compared with Keras, and then renamed. A task in mixed precision is exported in
    float32.

    | signature | input | output |
    | --- | --- | --- |
    | serving_default | images (N, H, W, 3) uint8 | features (N, D) float32 |
    | encoded | encoded (N,) bytes of JPEG, PNG, BMP or GIF files | features (N, D) float32 |
    | stages | images | stage1, ... (N, c) averaged over the picture, and features |
    | pretext, where the task has one | images | what the task predicts for the picture |

    Args:
        task: PretextModel with an encoder of fixed input size (H, W, 3).
        path: directory of the model; its name is the model's name in TensorFlow Serving.
        card: dict of what to know about the model (data, budget, accuracies, licence), added to
            `assets.extra/card.json` beside task, paper, versions and date.

    Returns:
        str, the new version's directory, "<path>/<version>".

    Raises:
        ValueError: `task` is no PretextModel, or its encoder has no fixed size or not 3 channels.
        RuntimeError: the written model does not give Keras' features; no version appears.

    Example:
        >>> export(task, "saved_models/rotation_photos")                # doctest: +SKIP
        'saved_models/rotation_photos/1'
    """
    shape = getattr(getattr(task, "encoder", None), "input_shape", (None,))[1:]
    if len(shape) != 3 or None in shape or shape[-1] != 3:
        raise ValueError(
            f"task must be a PretextModel whose encoder takes (H, W, 3) of fixed size, got {shape}"
        )
    task = _in_float32(task)
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    for old in path.glob(".export-*"):  # of an export that was killed; a running one is young
        if time.time() - old.stat().st_mtime > DRAFT_SECONDS:
            shutil.rmtree(old, ignore_errors=True)
    # Hidden and not numeric: servers pass over it, also when this process is killed here.
    draft = Path(tempfile.mkdtemp(prefix=".export-", dir=path))
    try:
        signatures = _write(task, draft)
        batch = np.random.default_rng(0).integers(0, 256, (4, *shape), np.uint8)
        inputs = {name: {"images": batch} for name in signatures}
        inputs["encoded"] = {"encoded": np.array([tf.io.encode_png(i).numpy() for i in batch])}
        _check(task, draft, inputs)
        extra = draft / "assets.extra"
        extra.mkdir()
        _write_warmup(extra / WARMUP, path.name, inputs)
        (extra / "encoder.json").write_text(task.encoder.to_json(indent=1))
        (extra / "card.json").write_text(json.dumps(_card(task, signatures, card), indent=1))
        (extra / CHECKSUMS).write_text(json.dumps(checksums(draft), indent=1))
        draft.chmod(0o755)  # mkdtemp's 0700 would keep the server's user out
        while True:
            version = path / str(max(versions(path), default=0) + 1)
            try:
                os.rename(draft, version)
                return str(version)
            except OSError:
                if not version.exists():  # else another export took this number meanwhile
                    raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def load(path):
    """Rebuilds the Keras encoder of an export: trainable, with the exported weights.

    Args:
        path: version directory, or the model's directory for its newest version.

    Returns:
        functional keras.Model from (B, H, W, 3) pixels in 0..255 to (B, D) features, stages named.

    Raises:
        ValueError: `path` is no export of keras_ssl.

    Example:
        >>> encoder = load("saved_models/rotation_cifar10/1")
        >>> model = keras.Sequential([encoder, keras.layers.Dense(10)])
    """
    directory = Path(path)
    if found := versions(directory):
        directory = found[max(found)]
    architecture = directory / "assets.extra" / "encoder.json"
    if not architecture.is_file():
        raise ValueError(
            f"path must be an export of keras_ssl, but {str(path)!r} has no assets.extra/encoder.json"
        )
    encoder = keras.models.model_from_json(architecture.read_text())
    checkpoint = tf.train.Checkpoint(encoder_variables=[v.value for v in encoder.variables])
    status = checkpoint.read(str(directory / "variables" / "variables"))
    status.assert_existing_objects_matched().expect_partial()
    return encoder


def _write(task, directory):
    """Saves the signatures; returns their names."""
    height, width, _ = task.encoder.input_shape[1:]
    stages = encoders.stages(task.encoder)
    pixels = tf.TensorSpec((None, height, width, 3), tf.uint8, name="images")

    encoded_files = tf.TensorSpec((None,), tf.string, name="encoded")

    def endpoint(spec, function):
        # Declared shapes are not enforced in a Session, and a wrong rank in a convolution aborts
        # the whole server (oneDNN check): ensure_shape turns it into INVALID_ARGUMENT.
        def checked(batch):
            some = tf.debugging.assert_positive(
                tf.shape(batch)[0], f"{spec.name} must not be empty"
            )
            with tf.control_dependencies([some]):
                return function(tf.ensure_shape(batch, spec.shape))

        return tf.function(checked, input_signature=[spec], autograph=False)

    def on_pixels(function):
        return endpoint(pixels, lambda batch: function(tf.cast(batch, tf.float32)))

    def picture(encoded):
        return images.resize(decode.decode(encoded), height, width)

    def decoded(encoded):
        one = tf.TensorSpec(pixels.shape[1:], tf.uint8)
        return tf.map_fn(picture, encoded, fn_output_signature=one)

    signatures = {
        "serving_default": on_pixels(lambda x: {"features": task.features(x)}),
        "encoded": endpoint(encoded_files, lambda x: {"features": task.features(decoded(x))}),
        "stages": on_pixels(lambda x: stages(x, training=False)),
    }
    if task.prediction(tf.zeros((1, height, width, 3))) is not None:
        signatures["pretext"] = on_pixels(task.prediction)

    # A plain module: a Keras model among the saved objects would keep a graph Session from loading.
    module = tf.Module()
    module.encoder_variables = [v.value for v in task.encoder.variables]
    module.encoder_trainable_variables = [v.value for v in task.encoder.trainable_variables]
    # Only what a signature reads: the labels of a clustering task are as long as its data.
    read = [v for f in signatures.values() for v in f.get_concrete_function().variables]
    module.signature_variables = list({id(v): v for v in read}.values())
    # No signature: it updates the moving averages, which no client of a server may do.
    module.train = on_pixels(lambda x: {"features": task.encoder(x, training=True)})
    tf.saved_model.save(module, str(directory), signatures)
    return list(signatures)


def _check(task, directory, inputs):
    """Runs every signature in a graph Session and compares the features with Keras."""
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
                    f"{TOLERANCE}: nothing was exported"
                )
    finally:
        servable.close()


def _write_warmup(path, name, inputs):
    """Requests that TensorFlow Serving replays before it calls a version available."""
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
    """The task itself, or a float32 copy of one that computes in mixed precision."""

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
