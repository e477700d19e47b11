"""Request smuggling: streams that two parsers may read differently, sent to the server and to proxies."""

import contextlib
import shutil
import socket
import subprocess

import hostile_rest
import pytest
import server_process


def test_smuggled_requests_are_not_answered(server):
    """The short form of `tools/hostile_rest.py`."""
    outcomes = hostile_rest.run("127.0.0.1", server.rest_port)
    assert outcomes["400"] > 80
    assert outcomes["404"] >= 8  # the valid streams


NGINX = """daemon off; master_process off; pid {folder}/pid; error_log {folder}/errors;
events {{ worker_connections 100; }}
http {{
    access_log off;
    client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
    uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
    upstream rest {{ server 127.0.0.1:{rest}; keepalive 1; }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://rest; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_request_buffering off;
        }}
    }}
}}
"""
HAPROXY = """defaults
    mode http
    timeout connect 5s
    timeout client 20s
    timeout server 20s
    http-reuse always
frontend clients
    bind 127.0.0.1:{port}
    option accept-invalid-http-request
    default_backend rest
backend rest
    server one 127.0.0.1:{rest} pool-max-conn 1
"""
PROXIES = {
    "nginx": (NGINX, ["-c", "{file}", "-p", "{folder}"]),
    "haproxy": (HAPROXY, ["-db", "-f", "{file}"]),
}


@pytest.mark.parametrize("proxy", PROXIES)
def test_clients_of_a_proxy_get_their_own_responses(server, tmp_path, proxy, wait_for):
    """All clients share one connection from the proxy to the server."""
    program = shutil.which(proxy, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if program is None:
        pytest.skip(f"{proxy} is not installed")
    text, arguments = PROXIES[proxy]
    names = {"folder": tmp_path, "file": tmp_path / "config", "port": server_process.free_port()}
    names["file"].write_text(text.format(**names, rest=server.rest_port))
    with subprocess.Popen(
        [program, *(one.format(**names) for one in arguments)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            wait_for(lambda: _listens(names["port"]))
            hostile_rest.run("127.0.0.1", names["port"], proxied=True)
        finally:
            process.kill()


def _listens(port):
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        return True
