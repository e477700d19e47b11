"""Retries, backoff and deadlines of both clients."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

import keras_ssl as kssl
from keras_ssl.serving.client import retry

Code = grpc.StatusCode
EXCEPTIONS = {
    Code.UNAVAILABLE: ConnectionError, Code.DEADLINE_EXCEEDED: TimeoutError,
    Code.INVALID_ARGUMENT: ValueError, Code.NOT_FOUND: ValueError,
    Code.FAILED_PRECONDITION: ValueError,
}  # fmt: skip


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
def test_only_unavailable_is_retried(
    short_backoff, code, client_class, fake_server, failing, encoded, features_by
):
    fake = fake_server(failing(*[code] * 9))
    with fake.served() as port, pytest.raises(EXCEPTIONS.get(code, RuntimeError)) as raised:
        features_by(client_class, f"localhost:{port}", encoded(1), retries=3)
    assert raised.value.code == code.name
    assert len(fake.requests) == (4 if code is Code.UNAVAILABLE else 1)


def test_retried_requests_keep_their_place(
    short_backoff, client_class, fake_server, failing, encoded, rows, features_by
):
    fake = fake_server(
        failing(Code.UNAVAILABLE, None, None, Code.UNAVAILABLE, Code.UNAVAILABLE, None)
    )
    with fake.served() as port:
        found = features_by(client_class, f"localhost:{port}", encoded(20), batch_size=2)
    np.testing.assert_array_equal(found, rows(20))
    assert len(fake.requests) == 13


def test_overload_is_a_runtime_error(fake_server, failing, encoded):
    message = "is overloaded; lower window or batch_size, or retry later"
    fake = fake_server(failing(Code.RESOURCE_EXHAUSTED))
    with fake.client() as client, pytest.raises(RuntimeError, match=message):
        client.features(encoded(1))


def test_the_deadline_covers_all_attempts(
    monkeypatch, client_class, fake_server, failing, encoded, features_by
):
    monkeypatch.setattr(retry, "INITIAL_BACKOFF", 0.2)
    monkeypatch.setattr(retry, "MAX_BACKOFF", 0.2)
    fake = fake_server(failing(*[Code.UNAVAILABLE] * 99))
    start = time.monotonic()
    with fake.served() as port, pytest.raises(ConnectionError):
        features_by(client_class, f"localhost:{port}", encoded(1), timeout=1, retries=90)
    assert time.monotonic() - start < 6
    assert 2 <= len(fake.deadlines) <= 7
    assert 0.5 < fake.deadlines[0] <= 1.1
    assert all(a - b > 0.1 for a, b in itertools.pairwise(fake.deadlines))


def test_a_timeout_is_not_retried(fake_server, encoded):
    fake = fake_server(lambda numbers, context: time.sleep(1))
    with (
        fake.client(timeout=0.2) as client,
        pytest.raises(TimeoutError, match="within 0.2 s; raise"),
    ):
        client.features(encoded(1))
    assert len(fake.requests) == 1


def test_backoff_doubles_and_outlasts_a_restart():
    with kssl.FeatureClient("localhost:1", "m", retries=9, timeout=1000) as client:
        policy = retry.RetryPolicy(client.timeout, client.retries)
        waits = [policy.backoff(Code.UNAVAILABLE) for _ in range(10)]
    usual = [0.7, 1.4, 2.8, 5.6, 11.2, 20, 20, 20, 20]
    assert waits.pop() is None
    assert all(0.8 * b <= a <= 1.2 * b for a, b in zip(waits, usual, strict=True))
    assert any(a != b for a, b in zip(waits, usual, strict=True))
    with kssl.FeatureClient("localhost:1", "m") as client:
        assert 0.8 * sum(usual[: client.retries]) > 17
        assert 1.2 * sum(usual[: client.retries]) < client.timeout


def test_a_server_that_starts_late_is_reached(fake_server, encoded, rows):
    with fake_server().served() as port:
        pass
    with kssl.FeatureClient(f"localhost:{port}", "m") as client, ThreadPoolExecutor(1) as pool:
        found = pool.submit(client.features, encoded(9))
        time.sleep(1)
        with fake_server().served(port):
            np.testing.assert_array_equal(found.result(timeout=20), rows(9))


def test_closing_a_client_during_backoff_ends_its_requests(fake_server, failing, wait_for):
    fake, errors = fake_server(failing(*[Code.UNAVAILABLE] * 9)), []
    with fake.client() as client:

        def ask():
            with pytest.raises(ValueError, match="closed") as raised:
                client.features([b"0"])
            errors.append(raised.value)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        wait_for(lambda: fake.requests)
        time.sleep(0.1)
        client.close()
        thread.join(timeout=10)
    assert len(errors) == 1
