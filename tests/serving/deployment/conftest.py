"""The files in serving/, parsed, and what TensorFlow Serving exports and accepts."""

import json
import re
import types
from pathlib import Path

import promql_parser
import pytest
import yaml

ROOT = Path(__file__).parents[3]
SERVING = ROOT / "serving"

# The metrics of tensorflow_model_server: their labels, and whether they are histograms, which have
# _bucket, _sum and _count instead of the name itself. Times are in microseconds.
METRICS = {
    ":tensorflow:serving:request_count": ({"model_name", "status"}, False),
    ":tensorflow:serving:request_latency": ({"model_name", "API", "entrypoint"}, True),
    ":tensorflow:serving:runtime_latency": ({"model_name", "API", "runtime"}, True),
    ":tensorflow:serving:batching_session:queuing_latency": ({"thread_pool_name"}, True),
    ":tensorflow:serving:batching_session:wrapped_run_count": (set(), False),
    ":tensorflow:serving:batching_session:input_batch_size": (set(), True),
    ":tensorflow:serving:batching_session:processed_batch_size": (set(), True),
    ":tensorflow:serving:batching_session:padding_size": ({"execution_batch_size"}, True),
    ":tensorflow:serving:model_warmup_latency": ({"model_path", "status"}, True),
    ":tensorflow:serving:model_warmup_records_read": ({"model_path", "status"}, False),
    ":tensorflow:cc:saved_model:load_attempt_count": ({"model_path", "status"}, False),
    "up": (set(), False),  # of Prometheus itself
}
SCRAPED = {"instance", "job", "namespace", "pod"}  # labels that Prometheus adds

# The flags of tensorflow_model_server 2.19.
FLAGS = set(
    re.findall(
        r"\w+",
        """port grpc_socket_path rest_api_port rest_api_num_threads rest_api_timeout_in_ms
    rest_api_enable_cors_support enable_batching allow_version_labels_for_unavailable_models
    batching_parameters_file enable_per_model_batching_parameters model_config_file
    model_config_file_poll_wait_seconds model_name model_base_path num_load_threads
    num_unload_threads max_num_load_retries load_retry_interval_micros
    file_system_poll_wait_seconds flush_filesystem_caches tensorflow_session_parallelism
    tensorflow_session_config_file tensorflow_intra_op_parallelism tensorflow_inter_op_parallelism
    use_alts_credentials ssl_config_file platform_config_file per_process_gpu_memory_fraction
    saved_model_tags grpc_channel_arguments grpc_max_threads enable_model_warmup
    num_request_iterations_for_warmup version monitoring_config_file
    remove_unused_fields_from_bundle_metagraph prefer_tflite_model num_tflite_pools
    num_tflite_interpreters_per_pool enable_signature_method_name_check
    xla_cpu_compilation_enabled xla_gpu_compilation_enabled enable_profiler
    thread_pool_factory_config_file mixed_precision skip_initialize_tpu
    enable_grpc_healthcheck_service enable_serialization_as_tensor_content""",
    )
)


def load(name):
    """Parses a YAML or JSON file of serving/."""
    return yaml.safe_load((SERVING / name).read_text())


def kubernetes(kind):
    """Returns the only document of a kind in kubernetes.yaml."""
    documents = yaml.safe_load_all((SERVING / "kubernetes.yaml").read_text())
    (document,) = [d for d in documents if d["kind"] == kind]
    return document


def flags(arguments):
    """Parses flags of the form --name=value into a dict, and checks that none is repeated."""
    pairs = [re.fullmatch(r"--(\w+)=(.+)", a).groups() for a in arguments]
    assert len({name for name, _ in pairs}) == len(pairs)
    return dict(pairs)


@pytest.fixture(scope="session")
def serving_files():
    """The files of serving/, and functions to read them."""
    compose = load("docker-compose.yml")
    pod = kubernetes("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return types.SimpleNamespace(
        root=ROOT,
        folder=SERVING,
        documents=[ROOT / "docs" / "operations.md", SERVING / "README.md"],
        compose=compose,
        server=compose["services"]["tensorflow-serving"],
        pod=pod,
        container=container,
        kustomization=load("kustomization.yaml"),
        adapter=load("prometheus_adapter.yaml"),
        dashboard=json.loads((SERVING / "grafana_dashboard.json").read_text()),
        scrape_configs={
            name: load(name)["scrape_configs"][0]
            for name in ("prometheus.yml", "prometheus_kubernetes.yml")
        },
        known_flags=FLAGS,
        load=load,
        kubernetes=kubernetes,
        flags=flags,
    )


@pytest.fixture(scope="session")
def metrics():
    """The labels of each metric of TensorFlow Serving, and whether it is a histogram."""
    return METRICS


@pytest.fixture(scope="session")
def check_query():
    """`check_query(query)`: checks that the metrics of a query exist and have the labels it uses."""
    return _check_query


def _selectors(node):
    """Returns the vector selectors of a PromQL expression, and the labels that it groups by."""
    found, labels = [], set()

    def visit(item):
        if isinstance(item, promql_parser.VectorSelector):
            found.append(item)
        if isinstance(item, promql_parser.AggregateExpr) and item.modifier:
            labels.update(item.modifier.labels)

    promql_parser.walk(node, visit)
    return found, labels


def _check_query(query):
    found, grouped = _selectors(promql_parser.parse(query))
    assert found, query
    for selector in found:
        base, suffix = re.fullmatch(r"(.+?)(_bucket|_sum|_count)?", selector.name).groups()
        if selector.name in METRICS:  # request_count is no histogram's count
            base, suffix = selector.name, None
        assert base in METRICS, f"{selector.name} is not a metric of TensorFlow Serving"
        labels, histogram = METRICS[base]
        assert histogram == (suffix is not None), selector.name
        known = labels | SCRAPED | ({"le"} if suffix == "_bucket" else set())
        used = {m.name for m in selector.matchers.matchers} | grouped
        assert used <= known, f"{selector.name} has no {used - known}"
