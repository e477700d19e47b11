"""TLS and mutual TLS of both clients and of the extract command."""

import os

import grpc
import numpy as np
import pytest

from keras_ssl import serving


def test_tls_and_mutual_tls(certificates, client_class, fake_server, encoded, rows, features_by):
    def read(name):
        return (certificates / name).read_bytes()

    def credentials(*names):
        return serving.credentials(*(certificates / name for name in names))

    pair = [(read("server.key"), read("server.crt"))]
    with fake_server().served(credentials=grpc.ssl_server_credentials(pair)) as port:
        address = f"localhost:{port}"
        found = features_by(client_class, address, encoded(9), credentials=credentials("ca.crt"))
        np.testing.assert_array_equal(found, rows(9))
        for wrong in (credentials("stranger.crt"), serving.credentials(), None):
            with pytest.raises(ConnectionError):
                features_by(client_class, address, encoded(1), credentials=wrong, retries=0)

    mutual = grpc.ssl_server_credentials(pair, read("ca.crt"), require_client_auth=True)
    with fake_server().served(credentials=mutual) as port:
        address = f"localhost:{port}"
        known = credentials("ca.crt", "client.crt", "client.key")
        found = features_by(client_class, address, encoded(9), credentials=known)
        np.testing.assert_array_equal(found, rows(9))
        for wrong in (
            credentials("ca.crt"), credentials("ca.crt", "stranger.crt", "stranger.key"),
        ):  # fmt: skip
            with pytest.raises(ConnectionError):
                features_by(client_class, address, encoded(1), credentials=wrong, retries=0)
    with pytest.raises(ValueError, match="certificate and key belong together"):
        serving.credentials(certificates / "ca.crt", certificates / "client.crt")


def test_the_extract_command_uses_mutual_tls(
    certificates, command, tmp_path, monkeypatch, fake_server, numbered_files, check_result
):
    monkeypatch.chdir(tmp_path)
    numbered_files(tmp_path / "photos", 30)
    paths = sorted(os.path.join("photos", name) for name in os.listdir("photos"))
    mutual = grpc.ssl_server_credentials(
        [((certificates / "server.key").read_bytes(), (certificates / "server.crt").read_bytes())],
        (certificates / "ca.crt").read_bytes(), require_client_auth=True,
    )  # fmt: skip
    with fake_server().served(credentials=mutual) as port:
        common = ("extract", "photos", "--model", "m", "--server", f"localhost:{port}")
        files = (("ca", "ca.crt"), ("certificate", "client.crt"), ("key", "client.key"))
        tls = [part for option, name in files for part in (f"--{option}", certificates / name)]
        code, out, err = command(*common, *tls)
        assert (code, out, err) == (0, "wrote features.npz: 30 x 2\n", "")
        check_result("features.npz", paths)
        code, _, err = command(*common, *tls[:4])
        assert code == 2
        assert "certificate and key belong together" in err
        code, _, err = command("extract", "photos", "--model", "m", *tls)
        assert code == 2
        assert "--ca, --certificate and --key need --server" in err
