"""The configuration files of tensorflow_model_server."""

import inspect
import re

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

import keras_ssl as kssl
from keras_ssl.serving.server import configs
from keras_ssl.zoo import versions


def test_model_and_monitoring_configs_are_valid(serving_files):
    parsed = text_format.Parse(
        (serving_files.folder / "models.config").read_text(),
        model_server_config_pb2.ModelServerConfig(),
    )
    for model in parsed.model_config_list.config:
        assert model.base_path == f"/models/{model.name}"  # where compose and Kubernetes mount them
        assert model.model_platform == "tensorflow"
        assert versions(serving_files.root / "saved_models" / model.name), model.name
    monitoring = configs.read(serving_files.folder / "monitoring.config", configs.MonitoringConfig)
    assert monitoring.prometheus_config.enable
    for scrape in serving_files.scrape_configs.values():
        assert scrape["metrics_path"] == monitoring.prometheus_config.path


@pytest.mark.parametrize("name", ["batching_cpu.config", "batching_gpu.config"])
def test_batching_configs_are_valid(name, serving_files):
    batching = configs.read(serving_files.folder / name, configs.BatchingParameters)
    # Requests larger than max_batch_size are rejected.
    largest = inspect.signature(kssl.FeatureClient).parameters["batch_size"].default
    assert batching.max_batch_size.value >= largest
    assert batching.num_batch_threads.value >= 1
    assert batching.max_enqueued_batches.value >= batching.num_batch_threads.value
    assert 0 <= batching.batch_timeout_micros.value <= 10_000
    sizes = list(batching.allowed_batch_sizes)
    assert sizes == sorted(set(sizes))
    assert not sizes or sizes[-1] == batching.max_batch_size.value
    assert not batching.pad_variable_length_inputs
    text = (serving_files.folder / name).read_text()
    for field, _ in batching.ListFields():  # each has a comment with its reason
        assert re.search(rf"#[^\n]*\n(?:{field.name}:[^\n]*\n)*{field.name}\b", text), field.name
