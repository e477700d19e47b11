"""Extraction while the processes of client and server are killed and restarted."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import keras_ssl as kssl
from keras_ssl.serving.client import extraction

# Without TensorFlow and most of keras_ssl a process starts in half a second.
LIGHT = """
import importlib.util, sys, types
for name in ("tensorflow", "keras_ssl", "keras_ssl.serving", "keras_ssl.serving.client"):
    module = types.ModuleType(name)
    module.__path__ = list(importlib.util.find_spec(name).submodule_search_locations)
    sys.modules[name] = module
"""
CLIENT = (
    LIGHT
    + """
from keras_ssl.serving.client.feature_client import FeatureClient
from keras_ssl.serving.client.extraction import extract
address, names, out = sys.argv[1:]
with FeatureClient(address, "m", batch_size=4) as client:
    extract(client, open(names).read().split(), out, progress=True)
"""
)
SERVER = (
    LIGHT
    + """
import time
from concurrent import futures
import grpc
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
class Fake(prediction_service_pb2_grpc.PredictionServiceServicer):
    def Predict(self, request, context):
        numbers = [int(content) for content in request.inputs["encoded"].string_val]
        time.sleep(0.03)
        response = predict_pb2.PredictResponse()
        response.model_spec.version.value = 1
        tensor = response.outputs["features"]
        tensor.dtype = 1
        for size in (len(numbers), 2):
            tensor.tensor_shape.dim.add(size=size)
        tensor.float_val.extend(value for i in numbers for value in (i, -i))
        return response
server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Fake(), server)
print(server.add_insecure_port("localhost:" + sys.argv[1]), flush=True)
server.start()
server.wait_for_termination()
"""
)


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def size(path):
    return os.path.getsize(path) if os.path.exists(path) else 0


def test_extract_resumes_after_its_process_was_killed(
    tmp_path, fake_server, numbered_files, check_result
):
    paths = numbered_files(tmp_path / "photos", 800)
    (tmp_path / "names").write_text("\n".join(paths))
    out = tmp_path / "features.npz"
    fake = fake_server(lambda numbers, context: time.sleep(0.02))
    rng, kills, resumed = np.random.default_rng(0), 0, 0
    with fake.served() as port:
        while not out.exists():
            process = start(CLIENT, f"localhost:{port}", tmp_path / "names", out)
            # Kill it in the middle of its work, and let the last one finish.
            enough = size(f"{out}.part") + (rng.integers(1, 800) if kills < 4 else 10**9)
            while process.poll() is None and size(f"{out}.part") < enough:
                time.sleep(0.001)
            if kills < 4:
                assert process.poll() is None
                time.sleep(rng.uniform(0, 0.03))
                process.send_signal(signal.SIGKILL)
                kills += 1
            _, err = process.communicate(timeout=30)
            assert "Traceback" not in err
            resumed += "resuming at image" in err
    assert (kills, resumed) == (4, 4)
    check_result(out, paths)
    # Only requests that were in flight are repeated.
    assert sum(map(len, fake.requests)) <= 800 + kills * 5 * 4 + 1
    again = tmp_path / "again.npz"
    with fake_server().client(batch_size=64) as client:
        extraction.extract(client, paths, again)
    assert again.read_bytes() == out.read_bytes()


def test_extract_survives_a_server_that_is_killed_and_restart(
    tmp_path, wait_for, numbered_files, check_result
):
    paths, out = numbered_files(tmp_path / "photos", 800), tmp_path / "features.npz"
    server = start(SERVER, 0)
    port = int(server.stdout.readline())

    def kill(enough):
        wait_for(lambda: size(f"{out}.part") > enough)
        server.kill()
        server.communicate()

    try:
        with kssl.FeatureClient(f"localhost:{port}", "m", batch_size=4, retries=0) as client:
            killer = threading.Thread(target=kill, args=(1000,))
            killer.start()
            with pytest.raises(
                ConnectionError, match=r"\d+ of 800 images are in .*, run the same command again"
            ):
                extraction.extract(client, paths, out)
            killer.join()
        assert 1000 < size(f"{out}.part") < 7000
        server = start(SERVER, port)
        assert int(server.stdout.readline()) == port
        with (
            kssl.FeatureClient(f"localhost:{port}", "m", batch_size=4) as client,
            ThreadPoolExecutor(1) as pool,
        ):
            shape = pool.submit(extraction.extract, client, paths, out)
            kill(size(f"{out}.part") + 1000)
            time.sleep(1)
            server = start(SERVER, port)
            assert shape.result(timeout=30) == (800, 2)
    finally:
        server.kill()
        server.communicate()
    check_result(out, paths)
