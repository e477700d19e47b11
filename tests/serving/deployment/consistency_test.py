"""The deployment files against each other and against the flags of TensorFlow Serving."""

import hashlib
import inspect
import os
import re
import subprocess
from pathlib import Path

import yaml

import keras_ssl as kssl
from keras_ssl.cli import serve
from keras_ssl.serving.server import configs


def test_flags_are_those_of_tensorflow_model_server(serving_files):
    assert set(serving_files.flags(serving_files.server["command"])) <= serving_files.known_flags
    assert set(serving_files.flags(serving_files.container["args"])) <= serving_files.known_flags
    own = {
        "enable_grpc_reflection",
        "max_rows",
        "reload_config",
        "reload_config_roots",
        "rest_api_max_connections_per_client",
        "rest_api_max_request_bytes",
    }  # of the embedded server alone
    assert own <= {action.dest for action in serve.parser()._actions} - serving_files.known_flags
    for path in serving_files.documents:
        for name in re.findall(r"--(\w+)=", path.read_text()):
            assert name in serving_files.known_flags | own, f"{path.name}: --{name}"
    # The entrypoint of the image sets these.
    for given in (
        serving_files.flags(serving_files.server["command"]),
        serving_files.flags(serving_files.container["args"]),
    ):
        assert not {"port", "rest_api_port", "model_name", "model_base_path"} & set(given)


def test_every_file_that_a_flag_names_is_mounted(serving_files):
    (generator,) = serving_files.kustomization["configMapGenerator"]
    for name in generator["files"] + serving_files.kustomization["resources"]:
        assert (serving_files.folder / name).is_file(), name
    assert ".:/config:ro" in serving_files.server["volumes"]
    assert "../saved_models:/models:ro" in serving_files.server["volumes"]
    for arguments in (serving_files.server["command"], serving_files.container["args"]):
        files = {v for n, v in serving_files.flags(arguments).items() if n.endswith("_file")}
        assert len(files) == 3
        for file in files:
            assert Path(file).parent == Path("/config")
            assert Path(file).name in generator["files"]
    mounts = {m["name"]: m for m in serving_files.container["volumeMounts"]}
    volumes = {v["name"]: v for v in serving_files.pod["volumes"]}
    assert set(mounts) == set(volumes) == {"models", "config", "tmp"}
    assert mounts["config"]["mountPath"] == "/config"
    assert mounts["models"]["mountPath"] == "/models"
    assert not any("subPath" in m for m in mounts.values())  # would not be updated
    assert volumes["config"]["configMap"]["name"] == generator["name"]
    # With a hash in the name every change of models.config would restart the pods.
    assert serving_files.kustomization["generatorOptions"]["disableNameSuffixHash"]
    claim = serving_files.kubernetes("PersistentVolumeClaim")["metadata"]["name"]
    assert volumes["models"]["persistentVolumeClaim"]["claimName"] == claim


def test_files_that_compose_mounts_exist(serving_files):
    services = serving_files.compose["services"]
    for service in services.values():
        for volume in service["volumes"]:
            source, _, mode = volume.split(":")
            assert (serving_files.folder / source).exists(), source
            assert mode == "ro"
    assert set(serving_files.compose["configs"]) == {
        c["source"] for c in services["grafana"]["configs"]
    }
    provider = yaml.safe_load(serving_files.compose["configs"]["grafana_provider"]["content"])
    folder = provider["providers"][0]["options"]["path"]
    assert any(v.split(":")[1].startswith(f"{folder}/") for v in services["grafana"]["volumes"])
    source = yaml.safe_load(serving_files.compose["configs"]["grafana_datasource"]["content"])
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    assert services["prometheus"]["ports"] == ["127.0.0.1:9090:9090"]


def test_ports_agree(serving_files):
    assert serving_files.server["ports"] == ["127.0.0.1:8500:8500", "127.0.0.1:8501:8501"]
    ports = {p["name"]: p["containerPort"] for p in serving_files.container["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    service = serving_files.kubernetes("Service")["spec"]
    assert {p["targetPort"]: p["port"] for p in service["ports"]} == ports
    assert serving_files.container["livenessProbe"]["httpGet"]["port"] == "rest"
    (static,) = serving_files.scrape_configs["prometheus.yml"]["static_configs"]
    assert static["targets"] == ["tensorflow-serving:8501"]
    kept = {
        r["source_labels"][0]: r["regex"]
        for r in serving_files.scrape_configs["prometheus_kubernetes.yml"]["relabel_configs"]
        if r.get("action") == "keep"
    }
    assert kept["__meta_kubernetes_pod_container_port_name"] == "rest"
    assert kept["__meta_kubernetes_pod_label_app_kubernetes_io_name"] == "tensorflow-serving"
    for path in serving_files.documents:
        assert set(re.findall(r"\b85\d\d\b", path.read_text())) <= {"8500", "8501"}


def test_labels_select_the_pods(serving_files):
    name = {"app.kubernetes.io/name": "tensorflow-serving"}
    deployment = serving_files.kubernetes("Deployment")
    assert deployment["spec"]["template"]["metadata"]["labels"] == name
    assert deployment["spec"]["selector"]["matchLabels"] == name
    assert serving_files.kubernetes("Service")["spec"]["selector"] == name
    assert (
        serving_files.kubernetes("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == name
    )
    target = serving_files.kubernetes("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"]  # set by the autoscaler


def test_container_images_agree_and_have_a_version(serving_files):
    images = [s["image"] for s in serving_files.compose["services"].values()] + [
        c["image"]
        for c in serving_files.kubernetes("Deployment")["spec"]["template"]["spec"]["containers"]
    ]
    for image in images:
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+(@sha256:[0-9a-f]{64})?", image), image
    serving = {i for i in images if i.startswith("tensorflow/serving:")}
    assert len(serving) == 1
    for path in serving_files.documents:
        assert set(re.findall(r"tensorflow/serving:[\w.]+", path.read_text())) <= serving


def test_the_command_in_the_readme_pins_all_images(serving_files, tmp_path):
    """A stand-in for docker knows another digest for each image, and none at first for Grafana's."""
    (command,) = re.findall(
        r"^    for image in .*?^    done$", serving_files.documents[1].read_text(), re.M | re.S
    )
    docker = tmp_path / "docker"
    tools = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    names = ("docker-compose.yml", "kubernetes.yaml")
    before = [
        re.sub(r"@sha256:\w+", "", (serving_files.folder / name).read_text()) for name in names
    ]
    for name, text in zip(names, before, strict=True):
        (tmp_path / name).write_text(text)

    def pinned(knows):
        digest = 'echo "sha256:$(printf %s "$4" | sha256sum | cut -c-64)"'
        docker.write_text(
            f"#!/bin/sh\n[ '{{{{.Manifest.Digest}}}}' = \"$6\" ] && {knows} && {digest}\n"
        )
        docker.chmod(0o755)
        subprocess.run(["bash", "-c", command], cwd=tmp_path, env=tools, check=False)
        return [(tmp_path / name).read_text() for name in names]

    def with_digest(match):
        return f"{match[0]}@sha256:{hashlib.sha256(match[1].encode()).hexdigest()}"

    expected = [re.sub(r"(?<=image: )(\S+)$", with_digest, text, flags=re.M) for text in before]
    assert sum(text.count("@sha256:") for text in expected) == 4
    partly = pinned('[ "${4#grafana}" = "$4" ]')
    assert [text.count("@sha256:") for text in partly] == [2, 1]
    assert "image: grafana/grafana:12.0.0\n" in partly[0]
    assert pinned("true") == expected
    assert pinned("true") == expected  # what has a digest keeps it


def test_numbers_of_cores_and_threads_agree(serving_files):
    batching = configs.read(
        serving_files.folder / "batching_cpu.config", configs.BatchingParameters
    )
    threads = batching.num_batch_threads.value
    assert int(serving_files.container["resources"]["requests"]["cpu"]) == threads
    assert (
        int(serving_files.flags(serving_files.container["args"])["tensorflow_session_parallelism"])
        == threads
    )
    (metric,) = serving_files.kubernetes("HorizontalPodAutoscaler")["spec"]["metrics"]
    assert int(metric["pods"]["target"]["averageValue"]) == threads


def test_a_pod_stops_after_its_clients_have_reconnected(serving_files):
    channel = dict(
        pair.split("=")
        for pair in serving_files.flags(serving_files.container["args"])[
            "grpc_channel_arguments"
        ].split(",")
    )
    age = int(channel["grpc.max_connection_age_ms"]) / 1000
    command, seconds = serving_files.container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert int(seconds) > 1.1 * age  # gRPC adds jitter of 10 percent
    timeout = inspect.signature(kssl.FeatureClient).parameters["timeout"].default
    assert serving_files.pod["terminationGracePeriodSeconds"] >= int(seconds) + timeout
