"""Reads and checks the configuration files of tensorflow_model_server, and finds models."""

import os
from pathlib import Path

from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from keras_ssl.serving.server.errors import invalid_argument
from keras_ssl.zoo import is_folder, scan_versions, versions

# The tensorflow-serving-api package lacks these messages. Names and numbers of the fields are those of
# ssl_config.proto, monitoring_config.proto and session_bundle_config.proto of TensorFlow Serving.
SCHEMAS = {
    "SSLConfig": {
        "server_key": (1, "string"),
        "server_cert": (2, "string"),
        "custom_ca": (3, "string"),
        "client_verify": (4, "bool"),
    },
    "PrometheusConfig": {"enable": (1, "bool"), "path": (2, "string")},
    "MonitoringConfig": {"prometheus_config": (1, ".tensorflow.serving.PrometheusConfig")},
    "BatchingParameters": {
        "max_batch_size": (1, ".google.protobuf.Int64Value"),
        "batch_timeout_micros": (2, ".google.protobuf.Int64Value"),
        "max_enqueued_batches": (3, ".google.protobuf.Int64Value"),
        "num_batch_threads": (4, ".google.protobuf.Int64Value"),
        "thread_pool_name": (5, ".google.protobuf.StringValue"),
        "allowed_batch_sizes": (6, "repeated int64"),
        "pad_variable_length_inputs": (7, "bool"),
        "enable_large_batch_splitting": (8, ".google.protobuf.BoolValue"),
        "max_execution_batch_size": (9, ".google.protobuf.Int64Value"),
    },
}


def _messages():
    """Creates the message classes in a separate pool, in case a package defines the original ones."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(
        name="keras_ssl/serving.proto",
        package="tensorflow.serving",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    field_type = descriptor_pb2.FieldDescriptorProto
    for name, fields in SCHEMAS.items():
        message = file.message_type.add(name=name)
        for field_name, (number, kind) in fields.items():
            field = message.field.add(name=field_name, number=number)
            repeated, _, kind = kind.rpartition(" ")
            field.label = field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
            if kind.startswith("."):
                field.type, field.type_name = field_type.TYPE_MESSAGE, kind
            else:
                field.type = getattr(field_type, f"TYPE_{kind.upper()}")
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"tensorflow.serving.{name}")
        )
        for name in SCHEMAS
    }


_MESSAGES = _messages()
SSLConfig = _MESSAGES["SSLConfig"]
MonitoringConfig = _MESSAGES["MonitoringConfig"]
BatchingParameters = _MESSAGES["BatchingParameters"]


def read(path, message):
    """Reads a protobuf message in text format, the format of tensorflow_model_server's files.

    Args:
        path: path of the file.
        message: class of the message, for example `BatchingParameters`.

    Returns:
        `message` instance.

    Raises:
        ValueError: the file cannot be read or parsed.

    Example:
        >>> read("serving/batching_cpu.config", BatchingParameters).max_batch_size.value
        64
    """
    try:
        return text_format.Parse(Path(path).read_text(), message())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {str(path)!r}: {error}") from None
    except text_format.ParseError as error:
        name = message.DESCRIPTOR.full_name
        raise ValueError(f"Error parsing text-format {name}: {path}: {error}") from None


def models_in(directory):
    """Finds the models in a directory.

    Args:
        directory: a folder of models, or the folder of one model (with numeric version directories).

    Returns:
        dict of model name to its absolute pathlib.Path, sorted by name.

    Raises:
        ValueError: the directory does not exist or contains no model.

    Example:
        >>> models_in("saved_models")                                   # doctest: +SKIP
        {'rotation_cifar10': PosixPath('/home/me/saved_models/rotation_cifar10')}
    """
    path = Path(directory).resolve()
    if not path.is_dir():
        raise ValueError(f"directory must exist, but there is no folder {str(directory)!r}")
    if scan_versions(path):
        models = {path.name: path}
    else:
        with os.scandir(path) as entries:
            folders = [e for e in entries if not e.name.startswith(".") and is_folder(e)]
        models = {
            e.name: path / e.name for e in sorted(folders, key=lambda e: e.name) if versions(e)
        }
    if not models:
        raise ValueError(
            f"no model in {str(directory)!r}: expected <model>/<version>/ as keras_ssl.export writes"
        )
    return models


def config_of(models):
    """Creates the ModelServerConfig that serves the newest version of each model.

    Args:
        models: dict of name to directory.

    Returns:
        ModelServerConfig proto.
    """
    config = model_server_config_pb2.ModelServerConfig()
    for name, path in models.items():
        config.model_config_list.config.add(
            name=name, base_path=str(path), model_platform="tensorflow"
        )
    return config


def check_models(config):
    """Checks a ModelServerConfig.

    Args:
        config: ModelServerConfig proto.

    Raises:
        StatusError: INVALID_ARGUMENT, with the message of TensorFlow Serving.
    """
    if config.WhichOneof("config") != "model_config_list":  # an empty file would unload everything
        raise invalid_argument(
            "ServerModelConfig type not supported by HandleReloadConfigRequest."
            " Only ModelConfigList is currently supported"
        )
    names = set()
    for model in config.model_config_list.config:
        if not model.name:
            raise invalid_argument("Every config of model_config_list needs a name")
        if model.name in names:
            raise invalid_argument(
                f"Illegal to list model {model.name} multiple times in config list"
            )
        names.add(model.name)
        if not os.path.isabs(model.base_path):
            raise invalid_argument(
                f"Expected model {model.name} to have an absolute path or URI; got "
                f"base_path()={model.base_path}"
            )
        if "\0" in model.base_path:  # each function of `os` refuses it with a different error
            raise invalid_argument(
                f"base_path {model.base_path!r} of model {model.name} has a NUL character: remove it"
            )
        if model.model_platform not in ("tensorflow", "") or not (
            model.model_platform or model.model_type == model_server_config_pb2.TENSORFLOW
        ):
            raise invalid_argument(
                f"Model {model.name} requests unsupported platform {model.model_platform or '(none)'}"
            )
