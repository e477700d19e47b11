"""The deployment files: each against its schema, and all against each other and TensorFlow Serving."""

import copy
import http.server
import inspect
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import jsonschema
import kubernetes_validate
import promql_parser
import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

import keras_ssl as kssl
from keras_ssl.serving.server import configs
from keras_ssl.serving.server.metrics import Metrics
from keras_ssl.serving.server.servable import versions

ROOT = Path(__file__).parent.parent.parent
SERVING = ROOT / "serving"
DOCUMENTS = [ROOT / "docs" / "operations.md", SERVING / "README.md"]

# What tensorflow_model_server exports: the labels of each metric, and whether it is a histogram
# (then _bucket, _sum and _count exist, and not the name itself). Times are in microseconds.
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
    "up": (set(), False),  # Prometheus' own
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
    return yaml.safe_load((SERVING / name).read_text())


def kubernetes(kind):
    documents = yaml.safe_load_all((SERVING / "kubernetes.yaml").read_text())
    (document,) = [d for d in documents if d["kind"] == kind]
    return document


COMPOSE = load("docker-compose.yml")
SERVER = COMPOSE["services"]["tensorflow-serving"]
POD = kubernetes("Deployment")["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
KUSTOMIZATION = load("kustomization.yaml")
ADAPTER = load("prometheus_adapter.yaml")
DASHBOARD = json.loads((SERVING / "grafana_dashboard.json").read_text())
SCRAPE_CONFIGS = {
    name: load(name)["scrape_configs"][0]
    for name in ("prometheus.yml", "prometheus_kubernetes.yml")
}


def flags(arguments):
    """Dict of the flags; each only once, and of the form --name=value."""
    pairs = [re.fullmatch(r"--(\w+)=(.+)", a).groups() for a in arguments]
    assert len({name for name, _ in pairs}) == len(pairs)
    return dict(pairs)


# ---- Each file against its schema.


def strict(properties, required=()):
    return {
        "type": "object", "properties": properties, "required": list(required),
        "additionalProperties": False,
    }  # fmt: skip


def array(items, least=1):
    return {"type": "array", "items": items, "minItems": least}


STRING, TEXT, WHOLE = {"type": "string", "minLength": 1}, {"type": "string"}, {"type": "integer"}
DURATION = {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"}
LABEL = {"type": "string", "pattern": "^[a-zA-Z_][a-zA-Z0-9_]*$"}

PROMETHEUS = strict(
    {
        "global": strict({"scrape_interval": DURATION}),
        "scrape_configs": array(
            strict(
                {
                    "job_name": STRING,
                    "metrics_path": {"type": "string", "pattern": "^/"},
                    "scrape_interval": DURATION,
                    "static_configs": array(
                        strict(
                            {"targets": array({"type": "string", "pattern": r"^[\w.-]+:\d+$"})},
                            ["targets"],
                        )
                    ),
                    "kubernetes_sd_configs": array(
                        strict(
                            {"role": {"enum": ["pod", "service", "endpoints", "node"]}}, ["role"]
                        )
                    ),
                    "relabel_configs": array(
                        strict(
                            {
                                "source_labels": array(LABEL),
                                "regex": STRING,
                                "action": {"enum": ["keep", "drop", "replace"]},
                                "target_label": LABEL,
                                "replacement": TEXT,
                            },
                            ["source_labels"],
                        )
                    ),
                },
                ["job_name"],
            )
        ),
    },
    ["scrape_configs"],
)

ADAPTER_RULES = strict(
    {
        "rules": array(
            strict(
                {
                    "seriesQuery": STRING,
                    "resources": strict(
                        {
                            "overrides": {
                                "type": "object",
                                "propertyNames": LABEL,
                                "additionalProperties": strict(
                                    {"resource": STRING, "group": TEXT}, ["resource"]
                                ),
                            }
                        },
                        ["overrides"],
                    ),
                    "name": strict({"matches": STRING, "as": LABEL}, ["as"]),
                    "metricsQuery": STRING,
                },
                ["seriesQuery", "resources", "metricsQuery"],
            )
        )
    },
    ["rules"],
)

KUSTOMIZE = strict(
    {
        "apiVersion": {"const": "kustomize.config.k8s.io/v1beta1"},
        "kind": {"const": "Kustomization"},
        "resources": array(STRING),
        "configMapGenerator": array(
            strict({"name": STRING, "files": array(STRING)}, ["name", "files"])
        ),
        "generatorOptions": strict({"disableNameSuffixHash": {"type": "boolean"}}),
    },
    ["apiVersion", "kind", "resources"],
)

GRAFANA_SOURCE = strict(
    {"type": {"const": "prometheus"}, "uid": {"const": "${datasource}"}}, ["type", "uid"]
)
GRAFANA = strict(
    {
        "title": STRING, "uid": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,40}$"},
        "tags": array(STRING), "schemaVersion": {"type": "integer", "minimum": 36},
        "version": WHOLE, "editable": {"type": "boolean"}, "graphTooltip": {"enum": [0, 1, 2]},
        "refresh": DURATION, "timezone": {"enum": ["browser", "utc", ""]},
        "time": strict({"from": STRING, "to": STRING}, ["from", "to"]),
        "annotations": strict({"list": array({}, 0)}, ["list"]), "links": array({}, 0),
        "templating": strict(
            {
                "list": array(
                    strict(
                        {
                            "name": LABEL, "label": STRING,
                            "type": {"enum": ["datasource", "query"]},
                            "datasource": GRAFANA_SOURCE, "definition": STRING,
                            "query": {
                                "anyOf": [STRING, strict({"query": STRING, "refId": STRING}, ["query"])]
                            },
                            "multi": {"type": "boolean"}, "includeAll": {"type": "boolean"},
                            "allValue": STRING, "current": {"type": "object"},
                            "refresh": {"enum": [0, 1, 2]}, "sort": WHOLE,
                        },
                        ["name", "type", "query"],
                    )
                )
            },
            ["list"],
        ),
        "panels": array(
            strict(
                {
                    "id": WHOLE, "type": {"enum": ["timeseries", "stat", "table"]},
                    "title": STRING, "description": STRING, "datasource": GRAFANA_SOURCE,
                    "gridPos": strict(
                        {
                            "x": {"type": "integer", "minimum": 0}, "y": {"type": "integer", "minimum": 0},
                            "w": {"type": "integer", "minimum": 1, "maximum": 24},
                            "h": {"type": "integer", "minimum": 1},
                        },
                        ["x", "y", "w", "h"],
                    ),
                    "fieldConfig": strict(
                        {
                            "defaults": strict(
                                {"unit": {"enum": ["reqps", "s", "short"]}, "min": WHOLE}, ["unit"]
                            ),
                            "overrides": array({}, 0),
                        },
                        ["defaults", "overrides"],
                    ),
                    "options": {"type": "object"},
                    "targets": array(
                        strict(
                            {
                                "refId": {"type": "string", "pattern": "^[A-Z]$"},
                                "datasource": GRAFANA_SOURCE, "expr": STRING, "legendFormat": STRING,
                            },
                            ["refId", "expr"],
                        )
                    ),
                },
                ["id", "type", "title", "gridPos", "targets"],
            )
        ),
    },
    ["title", "schemaVersion", "panels", "templating", "time"],
)  # fmt: skip

# Grafana's provisioning files, which docker-compose.yml holds.
PROVISIONING = strict(
    {
        "apiVersion": {"const": 1},
        "datasources": array(
            strict(
                {
                    "name": STRING, "type": {"const": "prometheus"}, "isDefault": {"type": "boolean"},
                    "access": {"enum": ["proxy", "direct"]}, "url": STRING,
                },
                ["name", "type", "access", "url"],
            )
        ),
        "providers": array(
            strict(
                {"name": STRING, "type": {"const": "file"}, "options": strict({"path": STRING}, ["path"])},
                ["name", "type", "options"],
            )
        ),
    },
    ["apiVersion"],
)  # fmt: skip

SCHEMAS = {
    "prometheus.yml": PROMETHEUS,
    "prometheus_kubernetes.yml": PROMETHEUS,
    "prometheus_adapter.yaml": ADAPTER_RULES,
    "kustomization.yaml": KUSTOMIZE,
    "grafana_dashboard.json": GRAFANA,
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_files_fit_their_schema(name):
    jsonschema.validate(load(name), SCHEMAS[name])  # JSON is YAML, too


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_misspelt_key_is_found(name):
    """The schemas say no: to each of the files with one key changed."""

    def misspelt(value):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in list(items):
            if isinstance(value, dict):
                yield {(k + "x" if k == key else k): v for k, v in value.items()}
            if isinstance(item, dict | list) and key not in ("options", "current", "overrides"):
                for changed in misspelt(item):
                    other = copy.copy(value)
                    other[key] = changed
                    yield other

    content = load(name)
    if "panels" in content:
        content["panels"] = content["panels"][:1]
    validator = jsonschema.Draft202012Validator(SCHEMAS[name])
    assert validator.is_valid(content)
    changed = list(misspelt(content))
    assert len(changed) >= 5
    assert not any(map(validator.is_valid, changed))


def compose_errors(path):
    """What the Compose specification, which check-jsonschema ships, says against a file."""
    process = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return process.stdout + process.stderr if process.returncode else ""


def test_compose_fits_the_compose_specification(tmp_path):
    assert not compose_errors(SERVING / "docker-compose.yml")
    changed = tmp_path / "docker-compose.yml"
    text = (SERVING / "docker-compose.yml").read_text()
    changed.write_text(text.replace("start_period:", "start_periodd:"))
    assert "start_periodd" in compose_errors(changed)
    for content in COMPOSE["configs"].values():
        jsonschema.validate(yaml.safe_load(content["content"]), PROVISIONING)


@pytest.mark.parametrize("version", ["1.29", kubernetes_validate.latest_version()])
def test_kubernetes_manifests_fit_their_schema(version):
    documents = list(yaml.safe_load_all((SERVING / "kubernetes.yaml").read_text()))
    assert sorted(d["kind"] for d in documents) == [
        "Deployment", "HorizontalPodAutoscaler", "PersistentVolumeClaim", "PodDisruptionBudget",
        "Service",
    ]  # fmt: skip
    for document in documents:
        kubernetes_validate.validate(document, version, strict=True)
    broken = copy.deepcopy(documents[0])
    broken["spec"]["template"]["spec"]["containers"][0]["readyProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, version, strict=True)


def test_protos_parse():
    parsed = text_format.Parse(
        (SERVING / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    )
    for model in parsed.model_config_list.config:
        assert model.base_path == f"/models/{model.name}"  # where compose and Kubernetes mount them
        assert model.model_platform == "tensorflow"
        assert versions(ROOT / "saved_models" / model.name), model.name
    monitoring = configs.read(SERVING / "monitoring.config", configs.MonitoringConfig)
    assert monitoring.prometheus_config.enable
    for scrape in SCRAPE_CONFIGS.values():
        assert scrape["metrics_path"] == monitoring.prometheus_config.path


@pytest.mark.parametrize("name", ["batching_cpu.config", "batching_gpu.config"])
def test_batching_presets(name):
    batching = configs.read(SERVING / name, configs.BatchingParameters)
    # A larger request than max_batch_size is refused.
    largest = inspect.signature(kssl.FeatureClient).parameters["batch_size"].default
    assert batching.max_batch_size.value >= largest
    assert batching.num_batch_threads.value >= 1
    assert batching.max_enqueued_batches.value >= batching.num_batch_threads.value
    assert 0 <= batching.batch_timeout_micros.value <= 10_000
    sizes = list(batching.allowed_batch_sizes)
    assert sizes == sorted(set(sizes))
    assert not sizes or sizes[-1] == batching.max_batch_size.value
    assert not batching.pad_variable_length_inputs
    text = (SERVING / name).read_text()
    for field, _ in batching.ListFields():  # each with its reason
        assert re.search(rf"#[^\n]*\n(?:{field.name}:[^\n]*\n)*{field.name}\b", text), field.name


# ---- The files against each other.


def test_flags_are_those_of_tensorflow_model_server():
    assert set(flags(SERVER["command"])) <= FLAGS
    assert set(flags(CONTAINER["args"])) <= FLAGS
    for path in DOCUMENTS:
        for name in re.findall(r"--(\w+)=", path.read_text()):
            assert name in FLAGS, f"{path.name}: --{name}"
    # The image's entrypoint gives these; a second one would be an accident.
    for given in (flags(SERVER["command"]), flags(CONTAINER["args"])):
        assert not {"port", "rest_api_port", "model_name", "model_base_path"} & set(given)


def test_every_file_that_a_flag_names_is_mounted():
    (generator,) = KUSTOMIZATION["configMapGenerator"]
    for name in generator["files"] + KUSTOMIZATION["resources"]:
        assert (SERVING / name).is_file(), name
    assert ".:/config:ro" in SERVER["volumes"]
    assert "../saved_models:/models:ro" in SERVER["volumes"]
    for arguments in (SERVER["command"], CONTAINER["args"]):
        files = {v for n, v in flags(arguments).items() if n.endswith("_file")}
        assert len(files) == 3
        for file in files:
            assert Path(file).parent == Path("/config")
            assert Path(file).name in generator["files"]
    mounts = {m["name"]: m for m in CONTAINER["volumeMounts"]}
    volumes = {v["name"]: v for v in POD["volumes"]}
    assert set(mounts) == set(volumes)
    assert mounts["config"]["mountPath"] == "/config"
    assert mounts["models"]["mountPath"] == "/models"
    assert not any("subPath" in m for m in mounts.values())  # would never be updated
    assert volumes["config"]["configMap"]["name"] == generator["name"]
    # With a hash in the name each write of models.config would restart the pods.
    assert KUSTOMIZATION["generatorOptions"]["disableNameSuffixHash"]
    claim = kubernetes("PersistentVolumeClaim")["metadata"]["name"]
    assert volumes["models"]["persistentVolumeClaim"]["claimName"] == claim


def test_every_file_that_compose_mounts_is_there():
    services = COMPOSE["services"]
    for service in services.values():
        for volume in service["volumes"]:
            source, _, mode = volume.split(":")
            assert (SERVING / source).exists(), source
            assert mode == "ro"
    assert set(COMPOSE["configs"]) == {c["source"] for c in services["grafana"]["configs"]}
    provider = yaml.safe_load(COMPOSE["configs"]["grafana_provider"]["content"])
    folder = provider["providers"][0]["options"]["path"]
    assert any(v.split(":")[1].startswith(f"{folder}/") for v in services["grafana"]["volumes"])
    source = yaml.safe_load(COMPOSE["configs"]["grafana_datasource"]["content"])
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    assert services["prometheus"]["ports"] == ["127.0.0.1:9090:9090"]


def test_ports_agree():
    assert SERVER["ports"] == ["8500:8500", "8501:8501"]
    ports = {p["name"]: p["containerPort"] for p in CONTAINER["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    service = kubernetes("Service")["spec"]
    assert {p["targetPort"]: p["port"] for p in service["ports"]} == ports
    assert CONTAINER["livenessProbe"]["httpGet"]["port"] == "rest"
    (static,) = SCRAPE_CONFIGS["prometheus.yml"]["static_configs"]
    assert static["targets"] == ["tensorflow-serving:8501"]
    kept = {
        r["source_labels"][0]: r["regex"]
        for r in SCRAPE_CONFIGS["prometheus_kubernetes.yml"]["relabel_configs"]
        if r.get("action") == "keep"
    }
    assert kept["__meta_kubernetes_pod_container_port_name"] == "rest"
    assert kept["__meta_kubernetes_pod_label_app_kubernetes_io_name"] == "tensorflow-serving"
    for path in DOCUMENTS:
        assert set(re.findall(r"\b85\d\d\b", path.read_text())) <= {"8500", "8501"}


def test_labels_select_the_pods():
    name = {"app.kubernetes.io/name": "tensorflow-serving"}
    deployment = kubernetes("Deployment")
    assert deployment["spec"]["template"]["metadata"]["labels"] == name
    assert deployment["spec"]["selector"]["matchLabels"] == name
    assert kubernetes("Service")["spec"]["selector"] == name
    assert kubernetes("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == name
    target = kubernetes("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"]  # the autoscaler's


def test_images_agree_and_have_a_version():
    images = [s["image"] for s in COMPOSE["services"].values()] + [
        c["image"] for c in kubernetes("Deployment")["spec"]["template"]["spec"]["containers"]
    ]
    for image in images:
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", image), image
    serving = {i for i in images if i.startswith("tensorflow/serving:")}
    assert len(serving) == 1
    for path in DOCUMENTS:
        assert set(re.findall(r"tensorflow/serving:[\w.]+", path.read_text())) <= serving


def test_sizes_agree():
    batching = configs.read(SERVING / "batching_cpu.config", configs.BatchingParameters)
    threads = batching.num_batch_threads.value
    assert int(CONTAINER["resources"]["requests"]["cpu"]) == threads
    assert int(flags(CONTAINER["args"])["tensorflow_session_parallelism"]) == threads
    (metric,) = kubernetes("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert int(metric["pods"]["target"]["averageValue"]) == threads


def test_a_pod_goes_when_its_clients_are_elsewhere():
    channel = dict(
        pair.split("=") for pair in flags(CONTAINER["args"])["grpc_channel_arguments"].split(",")
    )
    age = int(channel["grpc.max_connection_age_ms"]) / 1000
    command, seconds = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert int(seconds) > 1.1 * age  # gRPC spreads the age by 10 percent
    timeout = inspect.signature(kssl.FeatureClient).parameters["timeout"].default
    assert POD["terminationGracePeriodSeconds"] >= int(seconds) + timeout


# ---- Metrics.


def selectors(node):
    """The vector selectors of a PromQL expression, and the labels that it groups by."""
    found, labels = [], set()

    def visit(item):
        if isinstance(item, promql_parser.VectorSelector):
            found.append(item)
        if isinstance(item, promql_parser.AggregateExpr) and item.modifier:
            labels.update(item.modifier.labels)

    promql_parser.walk(node, visit)
    return found, labels


def check_query(query):
    """That the metrics of a query exist, with the labels it uses."""
    found, grouped = selectors(promql_parser.parse(query))
    assert found, query
    for selector in found:
        base, suffix = re.fullmatch(r"(.+?)(_bucket|_sum|_count)?", selector.name).groups()
        if selector.name in METRICS:  # request_count is no histogram's count
            base, suffix = selector.name, None
        assert base in METRICS, f"{selector.name} is no metric of TensorFlow Serving"
        labels, histogram = METRICS[base]
        assert histogram == (suffix is not None), selector.name
        known = labels | SCRAPED | ({"le"} if suffix == "_bucket" else set())
        used = {m.name for m in selector.matchers.matchers} | grouped
        assert used <= known, f"{selector.name} has no {used - known}"


def dashboard_queries():
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "5m").replace("$model", "m")
            yield pytest.param(query, panel["fieldConfig"]["defaults"]["unit"], id=panel["title"])


@pytest.mark.parametrize(("query", "unit"), dashboard_queries())
def test_dashboard_asks_for_metrics_that_exist(query, unit):
    check_query(query)
    # Microseconds are shown as seconds; waiting requests are microseconds waited per second, too.
    assert ("latency" in query) == query.endswith("/ 1e6")
    assert unit != "s" or "latency" in query
    assert ("histogram_quantile" in query) == ("_bucket" in query)


def test_a_query_for_nothing_is_found():
    for query in (
        "rate(:tensorflow:serving:requests[5m])",
        "rate(:tensorflow:serving:request_latency[5m])",
        "rate(:tensorflow:serving:request_count_bucket[5m])",
        'rate(:tensorflow:serving:request_count{code="OK"}[5m])',
        "sum by (entrypoint) (rate(:tensorflow:serving:request_count[5m]))",
    ):
        with pytest.raises(AssertionError):
            check_query(query)


def test_dashboard_hangs_together():
    variables = {v["name"] for v in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(DASHBOARD["panels"])))
    assert used == variables
    (model,) = [v for v in DASHBOARD["templating"]["list"] if v["name"] == "model"]
    metric, label = re.fullmatch(r"label_values\((\S+), (\w+)\)", model["definition"]).groups()
    assert label in METRICS[metric][0]
    assert model["query"]["query"] == model["definition"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells = set()
    for panel in DASHBOARD["panels"]:
        p = panel["gridPos"]
        assert p["x"] + p["w"] <= 24
        place = {
            (x, y) for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])
        }
        assert not cells & place, panel["title"]
        cells |= place
        for target in panel["targets"]:
            for name in re.findall(r"{{(\w+)}}", target["legendFormat"]):
                assert re.search(rf"by \([^)]*\b{name}\b", target["expr"]), target


def test_autoscaler_reads_what_the_adapter_makes_of_the_queue():
    (rule,) = ADAPTER["rules"]
    (metric,) = kubernetes("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["type"] == "Pods"
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    series = promql_parser.parse(rule["seriesQuery"])
    check_query(rule["seriesQuery"])
    assert re.fullmatch(rule["name"]["matches"], series.name)
    query = rule["metricsQuery"]
    for template, value in (
        ("<<.Series>>", series.name),
        ("<<.LabelMatchers>>", 'pod=~"a|b",namespace="n"'),
        ("<<.GroupBy>>", "pod"),
    ):
        assert template in query
        query = query.replace(template, value)
    check_query(query)
    # Both the labels by which the adapter finds the pod, and the job that makes them.
    assert set(rule["resources"]["overrides"]) == {"namespace", "pod"}
    made = {
        r.get("target_label")
        for r in SCRAPE_CONFIGS["prometheus_kubernetes.yml"]["relabel_configs"]
    }
    assert {"namespace", "pod"} <= made
    # The metric exists with batching only.
    assert flags(CONTAINER["args"])["enable_batching"] == "true"


def test_the_embedded_server_gives_the_same_metrics():
    """At least what the autoscaler reads: the same names and labels."""
    metrics = Metrics()
    metrics.count("m", grpc.StatusCode.OK)
    metrics.request("m", "Predict", "GRPC", 0.1)
    metrics.runtime("m", "Predict", 0.1)
    metrics.queued(0.1)
    series = set()
    for line in metrics.page().decode().splitlines():
        if not line.startswith("#"):
            name, labels = re.match(r"([\w:]+){(.*)}", line).groups()
            check_query(f"{name}{{{labels}}}")
            series.add(name)
    assert promql_parser.parse(ADAPTER["rules"][0]["seriesQuery"]).name in series


# ---- The probe: a shell command, so it is run.

PROBE = CONTAINER["readinessProbe"]["exec"]["command"]


def test_one_probe_everywhere():
    assert CONTAINER["startupProbe"]["exec"]["command"] == PROBE
    kind, *command = SERVER["healthcheck"]["test"]
    assert kind == "CMD"
    # A single $ is Compose's own: it would put in a variable.
    assert not any("$" in part.replace("$$", "") for part in command)
    assert [part.replace("$$", "$") for part in command] == PROBE
    (name,) = re.findall(r"/v1/models/(\w+)", PROBE[-1])
    config = configs.read(SERVING / "models.config", model_server_config_pb2.ModelServerConfig)
    assert name in {m.name for m in config.model_config_list.config}
    assert CONTAINER["livenessProbe"]["httpGet"]["path"] == f"/v1/models/{name}"


def status(*states):
    return {"model_version_status": [{"version": "1", "state": s, "status": {}} for s in states]}


@pytest.mark.parametrize(
    ("code", "answer", "ready"),
    [(200, status("AVAILABLE"), True), (200, status("AVAILABLE", "END"), True),
     (200, status("LOADING"), False), (200, status("START"), False), (200, status("END"), False),
     (404, {"error": "Could not find any versions of model rotation_cifar10"}, False)],
)  # fmt: skip
def test_probe(code, answer, ready):
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(answer, indent=1).encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        command = [part.replace("/8501", f"/{server.server_port}") for part in PROBE]
        process = subprocess.run(command, timeout=10, capture_output=True, check=False)
        server.shutdown()
        thread.join()
    assert (process.returncode == 0) == ready, process
    assert asked == ["/v1/models/rotation_cifar10"]


def test_probe_without_a_server():
    command = [part.replace("/8501", "/1") for part in PROBE]
    assert subprocess.run(command, timeout=10, capture_output=True, check=False).returncode


# ---- The documents.


def snippets():
    text = DOCUMENTS[0].read_text()
    return [
        text_format.Parse(t, model_server_config_pb2.ModelServerConfig()).model_config_list.config[
            0
        ]
        for t in re.findall(r"```proto\n(.*?)```", text, re.DOTALL)
    ]


def test_a_rollout_by_labels_never_labels_what_is_not_loaded():
    """Each config gives its labels only to versions that the one before it has loaded."""
    pinned, *steps = snippets()
    assert not pinned.version_labels
    assert len(steps) == 4
    assert [dict(step.version_labels) for step in steps] == [
        {"stable": 1}, {"stable": 1}, {"stable": 1, "canary": 2}, {"stable": 2, "canary": 2},
    ]  # fmt: skip
    loaded = {1}
    for step in steps:
        assert set(step.version_labels.values()) <= loaded
        loaded = set(step.model_version_policy.specific.versions)
        assert set(step.version_labels.values()) <= loaded
    # What a server needs to start with labels.
    for arguments in (SERVER["command"], CONTAINER["args"]):
        assert flags(arguments)["allow_version_labels_for_unavailable_models"] == "true"
        assert int(flags(arguments)["model_config_file_poll_wait_seconds"]) > 0


def test_documents_name_what_exists():
    for path in DOCUMENTS:
        text = path.read_text()
        for name in re.findall(r"`([\w-]+\.(?:config|ya?ml|json))`", text):
            if name != "ssl.config":
                assert (SERVING / name).is_file(), name
        for link in re.findall(r"\]\(([^)#]+)(?:#[\w-]*)?\)", text):
            assert (path.parent / link).exists(), link
        headings = {
            re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-")
            for h in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        }
        for anchor in re.findall(r"\]\(#([\w-]+)\)", text):
            assert anchor in headings, anchor
        for name in re.findall(r"`(:tensorflow:[\w:]+)`", text):
            assert name in METRICS, name
    readme = DOCUMENTS[1].read_text()
    for file in SERVING.iterdir():
        assert file.name == "README.md" or f"`{file.name}`" in readme, file.name
