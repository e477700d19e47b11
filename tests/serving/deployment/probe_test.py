"""The readiness probe, which is a shell command: it is run against servers in every state."""

import http.server
import json
import re
import subprocess
import threading

import pytest
from tensorflow_serving.config import model_server_config_pb2

from keras_ssl.serving.server import configs


@pytest.fixture(scope="module")
def probe(serving_files):
    return serving_files.container["readinessProbe"]["exec"]["command"]


def test_compose_and_kubernetes_have_the_same_probe(serving_files, probe):
    assert serving_files.container["startupProbe"]["exec"]["command"] == probe
    kind, *command = serving_files.server["healthcheck"]["test"]
    assert kind == "CMD"
    # Compose replaces $name by a variable, and $$ by $.
    assert not any("$" in part.replace("$$", "") for part in command)
    assert [part.replace("$$", "$") for part in command] == probe
    (name,) = re.findall(r"/v1/models/(\w+)", probe[-1])
    config = configs.read(
        serving_files.folder / "models.config", model_server_config_pb2.ModelServerConfig
    )
    assert name in {m.name for m in config.model_config_list.config}
    assert serving_files.container["livenessProbe"]["httpGet"]["path"] == f"/v1/models/{name}"


def status(*states):
    return {"model_version_status": [{"version": "1", "state": s, "status": {}} for s in states]}


@pytest.mark.parametrize(
    ("code", "response", "ready"),
    [(200, status("AVAILABLE"), True), (200, status("AVAILABLE", "END"), True),
     (200, status("LOADING"), False), (200, status("START"), False), (200, status("END"), False),
     (404, {"error": "Could not find any versions of model rotation_cifar10"}, False)],
)  # fmt: skip
def test_the_probe_succeeds_only_with_an_available_version(probe, code, response, ready):
    paths = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            paths.append(self.path)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(response, indent=1).encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        command = [part.replace("/8501", f"/{server.server_port}") for part in probe]
        process = subprocess.run(command, timeout=10, capture_output=True, check=False)
        server.shutdown()
        thread.join()
    assert (process.returncode == 0) == ready, process
    assert paths == ["/v1/models/rotation_cifar10"]


def test_the_probe_fails_without_a_server(probe):
    command = [part.replace("/8501", "/1") for part in probe]
    assert subprocess.run(command, timeout=10, capture_output=True, check=False).returncode
