"""The page of a table, over HTTP: what it serves, and what it refuses."""

import asyncio
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image

from keras_ssl.tables import FeatureTable
from keras_ssl.tables.explore import HEADERS, PAGE, application
from keras_ssl.tables.layout import layout


@pytest.fixture(scope="module")
def module_path(tmp_path_factory):
    return tmp_path_factory.mktemp("explore")


@pytest.fixture
def table(module_path, smooth_image, identity):
    """40 images in two classes, a file that is gone (40), a secret one (41) and an unreadable one (42)."""
    path = module_path / "photos.lance"
    if path.exists():
        return FeatureTable(path)
    rows = []
    for i in range(40):
        image = smooth_image(i % 2, 60, 200 + i)
        file = module_path / f"{i}.png"
        image.save(file)
        vector = np.asarray(image.resize((4, 4)), np.float32).ravel() + i
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        rows.append(
            {"id": i, "path": str(file), "vector": vector, "label": "ab"[i % 2], "hash": digest}
        )
    rows.append({**rows[0], "id": 40, "path": "/gone.png", "hash": "x"})
    secret = module_path / "secret.txt"
    secret.write_text("secret")
    rows.append({**rows[0], "id": 41, "path": str(secret), "hash": "y"})
    rows.append({"id": 42, "path": str(module_path / "0.png"), "reason": "no image"})
    table = FeatureTable.create(path, identity, 48)
    table.add(rows)
    return table


@pytest.fixture
def get(table):
    """`get(url, ...)`: (status, headers, body) of one request to the application."""

    def run(url, body=None, encoder=None, **headers):
        async def request():
            async with TestClient(TestServer(application(table, encoder))) as client:
                method = "GET" if body is None else "POST"
                response = await client.request(method, url, data=body, headers=headers)
                is_json = "json" in response.headers["Content-Type"]
                return response, await (response.json() if is_json else response.read())

        response, content = asyncio.run(request())
        return response.status, response.headers, content

    return run


def test_the_page_needs_nothing_from_elsewhere(get):
    status, headers, page = get("/")
    assert status == 200
    assert page == PAGE.read_bytes()
    assert headers["Content-Type"].startswith("text/html")
    assert {name: headers[name] for name in HEADERS} == HEADERS
    assert not re.findall(rb"https?://|@import|<link|src=[\"'](?!\")", page)


def test_table_and_map(get, table):
    about = get("/api/table")[2]
    assert about == {
        "name": "photos.lance", "model": "rotation_photos version 1", "rows": 42, "unreadable": 1,
        "encodes": False,
    }  # fmt: skip
    rows = get("/api/map")[2]["rows"]
    assert get("/api/rows")[2]["rows"] == [
        {name: row[name] for name in ("id", "path", "time", "label")} for row in rows
    ]
    assert [row["id"] for row in rows] == list(range(42))
    assert rows == layout(table)  # the same each time
    places = np.array([(row["x"], row["y"]) for row in rows])
    assert (places.min(axis=0) == 0).all()
    assert (places.max(axis=0) == 1).all()
    assert {row["label"] for row in rows} == {"a", "b"}
    # Images of one class are nearer to each other on the map than to those of the other.
    first, second = places[0:40:2], places[1:40:2]
    spread = np.linalg.norm(first - first.mean(axis=0), axis=1).mean()
    assert np.linalg.norm(first.mean(axis=0) - second.mean(axis=0)) > 2 * spread
    classes = [{row["cluster"] for row in rows[:40] if row["label"] == name} for name in "ab"]
    assert not classes[0] & classes[1]


def test_a_map_of_a_sample_and_of_few_rows(table, write_table):
    sample = layout(table, 10)
    assert len({row["id"] for row in sample}) == 10
    for number in (1, 2, 3, 5):
        rows = layout(write_table(np.eye(7, dtype=np.float32)[:number], f"{number}.lance"))
        assert np.isfinite([(row["x"], row["y"]) for row in rows]).all()
    same = layout(write_table(np.ones((6, 4), np.float32), "same.lance"))
    assert {row["cluster"] for row in same} == {0}


def test_neighbors(get, table):
    status, _, found = get("/api/neighbors/7?number=3")
    assert status == 200
    assert found["row"]["id"] == 7
    assert "vector" not in found["row"]
    _, vectors = table.vectors()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = [i for i in np.argsort(-(unit @ unit[7]), kind="stable") if i != 7][:3]
    assert [match["id"] for match in found["matches"]] == expected
    assert found["matches"][0]["path"].endswith(f"/{expected[0]}.png")
    assert len(get("/api/neighbors/7")[2]["matches"]) == 24


def test_a_query_by_a_file(get, module_path):
    content = (module_path / "5.png").read_bytes()
    assert get("/api/search?number=2", content)[2]["matches"][0]["id"] == 5

    class Encoder:
        def files(self, items):
            for row, content in items:
                yield row, np.full(48, 9, np.float32) if content == b"new" else "no image"

    assert len(get("/api/search?number=2", b"new", Encoder())[2]["matches"]) == 2
    status, _, answer = get("/api/search", b"text", Encoder())
    assert (status, answer["error"]) == (
        400,
        "images: the file cannot be read as an image: no image",
    )
    status, _, answer = get("/api/search", b"new")
    assert status == 400
    assert answer["error"].startswith("model is missing: the file is not in")


@pytest.mark.parametrize(("side", "size"), [("", (160, 46)), ("?side=640", (207, 60))])
def test_thumbnails(get, side, size):
    import io

    status, headers, body = get(f"/thumbnails/7{side}")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert Image.open(io.BytesIO(body)).size == size


@pytest.mark.parametrize(
    ("url", "status", "message"),
    [
        ("/thumbnails/40", 404, "the file is gone, or no image"),
        ("/thumbnails/41", 404, "the file is gone, or no image"),  # of a row, but not an image
        ("/thumbnails/42", 404, "the file is gone, or no image"),
        ("/thumbnails/99", 404, "there is no row with this id"),
        ("/thumbnails/7?side=9999", 400, "side must be of 160, 640, got '9999'"),
        ("/thumbnails/%2Fetc%2Fpasswd", 404, "open the address that was printed"),
        ("/thumbnails/../secret.txt", 404, "open the address that was printed"),
        ("/thumbnails/-1", 404, "open the address that was printed"),
        ("/thumbnails/9999999999999999999", 404, "open the address that was printed"),
        ("/secret.txt", 404, "open the address that was printed"),
        ("/api/neighbors/42", 400, "images must be"),
        ("/api/neighbors/99", 404, "there is no row with this id"),
        ("/api/neighbors/7?number=0", 400, "number must be in 1..200, got '0'"),
        ("/api/neighbors/7?number=x", 400, "number must be in 1..200, got 'x'"),
        ("/api/neighbors/7?number=%C2%B2", 400, "number must be in 1..200"),
        ("/api/search", 405, "Method Not Allowed"),
    ],
)
def test_what_is_not_there(get, url, status, message):
    found, headers, body = get(url)
    assert (found, body["error"][: len(message)]) == (status, message)
    assert headers["Content-Security-Policy"] == HEADERS["Content-Security-Policy"]


def test_other_web_pages_are_refused(get):
    assert get("/api/table", Host="photos.example.org")[0] == 403  # a name that leads to 127.0.0.1
    assert get("/thumbnails/7", Host="photos.example.org:80")[0] == 403
    assert get("/api/table", Host="localhost:1")[0] == 200
    assert get("/api/search", b"x", Origin="https://photos.example.org")[0] == 403
    assert get("/api/search", b"x", Origin="null")[0] == 403
    assert get("/api/table", Host="127.0.0.1:5", Origin="http://127.0.0.1:5")[0] == 200
    # An image that another page embeds, and a link from it.
    assert get("/thumbnails/7", **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert get("/", **{"Sec-Fetch-Site": "cross-site"})[0] == 200
    assert get("/api/table", **{"Sec-Fetch-Site": "same-origin"})[0] == 200


def test_only_who_knows_the_token(table):
    async def look():
        async with TestClient(TestServer(application(table, token="s3cret-s3cret"))) as client:
            for url in (
                "/",
                "/s3cret/",
                "/api/table",
                "/thumbnails/1",
                "/%C3%A9/",
                "/s3cret/api/table",
            ):
                response = await client.get(url)
                assert response.status == 404, url
                assert (await response.json())["error"] == "open the address that was printed"
                assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert (await client.get("/s3cret-s3cret/")).status == 200
            assert (await client.get("/s3cret-s3cret/api/table")).status == 200
            assert not client.session.cookie_jar
            image = await client.get(
                "/s3cret-s3cret/thumbnails/1", headers={"Sec-Fetch-Site": "same-site"}
            )
            assert image.status == 403

    asyncio.run(look())


def test_the_command_serves_until_it_is_stopped(table, program, command, tmp_path):
    """Without TensorFlow; and a port that another process has is one sentence."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, "explore", table.path, "--port", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        found = re.fullmatch(
            r"http://127.0.0.1:(\d+)/([\w-]{22})/ shows \S+photos.lance; Ctrl-C stops\n",
            line,
        )
        assert found, line + process.stderr.read()
        code, _, err = command("explore", table.path, "--port", found[1])
        assert code == 2
        assert err == (
            f"keras-ssl: --port {found[1]} on 127.0.0.1 cannot be used (Address already in use): give "
            "another, or 0 for a free one\n"
        )
        for path, status in (("", "404"), (f"/{found[2]}", "200")):
            request = f"GET {path}/api/table HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n"
            with socket.create_connection(("127.0.0.1", int(found[1]))) as connection:
                connection.sendall(request.encode())
                assert connection.makefile().readline().split()[1] == status
        maps = f"/proc/{process.pid}/maps"
        assert not os.path.exists(maps) or "libtensorflow" not in Path(maps).read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
