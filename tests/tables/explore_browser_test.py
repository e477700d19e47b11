"""The page of a table in headless Chromium, by its debugging protocol: clicks, the map, a dropped file."""

import asyncio
import base64
import contextlib
import json
import shutil

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from keras_ssl.tables import FeatureTable
from keras_ssl.tables.explore import application

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DROP = """
const file = new File([Uint8Array.from(atob("{content}"), c => c.charCodeAt(0))], "query.png");
const data = new DataTransfer();
data.items.add(file);
dispatchEvent(new DragEvent("drop", {{dataTransfer: data}}));
"""
CLICK_ON_MAP = """
const [x, y] = place(rows[5]), box = element("map").getBoundingClientRect();
element("map").dispatchEvent(new MouseEvent("mousemove", {clientX: box.left + x, clientY: box.top + y}));
element("map").dispatchEvent(new MouseEvent("click", {clientX: box.left + x, clientY: box.top + y}));
"""


class Tab:
    """A tab of the browser: `run(script)` returns the value of an expression."""

    def __init__(self, socket):
        self._socket, self._number, self.errors = socket, 0, []

    async def call(self, method, **parameters):
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
        async for message in self._socket:
            answer = json.loads(message.data)
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(answer["params"])
            if answer.get("id") == self._number:
                return answer["result"]

    async def run(self, script):
        result = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def wait(self, condition):
        for _ in range(1200):
            if await self.run(condition):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(
            f"{condition}: {await self.run('document.body.innerText')} {self.errors}"
        )


@contextlib.asynccontextmanager
async def browser(url, profile):
    process = await asyncio.create_subprocess_exec(
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
        "--window-size=1200,800", f"--user-data-dir={profile}", url,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        port = profile / "DevToolsActivePort"
        for _ in range(400):
            if port.exists() and port.read_text().count("\n"):
                break
            await asyncio.sleep(0.05)
        address = f"http://127.0.0.1:{port.read_text().splitlines()[0]}"
        async with aiohttp.ClientSession() as session:
            tabs = await (await session.get(f"{address}/json")).json()
            (tab,) = [tab for tab in tabs if tab["type"] == "page"]
            async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                yield Tab(socket)
    finally:
        process.kill()
        await process.wait()


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_the_page_in_a_browser(tmp_path, identity, encoder, smooth_image):
    table = FeatureTable.create(tmp_path / "photos.lance", identity, 432)
    rows = []
    for i in range(70):
        file = tmp_path / f"<b>{i}.png"  # a name that is no HTML
        smooth_image(i % 3, 40 + i, 60).save(file)
        ((_, vector),) = encoder.files([({"path": ""}, file.read_bytes())])
        rows.append({"id": i, "path": str(file), "vector": vector, "label": "abc"[i % 3]})
    table.add(rows)
    query = base64.b64encode((tmp_path / "<b>5.png").read_bytes()).decode()

    async def look():
        server = TestServer(application(table, encoder, "s3cret"))
        async with (
            server,
            browser(str(server.make_url("/s3cret/")), tmp_path / "profile") as tab,
        ):
            await tab.call("Runtime.enable")
            await tab.call("Log.enable")
            await tab.wait("document.querySelectorAll('#grid button').length === 60")
            assert await tab.run("document.title") == "photos.lance"
            assert (
                await tab.run("element('about').textContent")
                == "70 images, rotation_photos version 1"
            )
            assert await tab.run("element('legend').innerText.split(/\\s+/).join()") == "a,b,c"
            await tab.run("element('more').click()")
            assert await tab.run("document.querySelectorAll('#grid button').length") == 70
            await tab.wait("document.querySelector('#grid img').naturalWidth > 0")

            await tab.run("document.querySelector('#grid button[data-id=\"7\"]').click()")
            await tab.wait("element('what').textContent === 'Nearest to <b>7.png (b)'")
            first = await tab.run("document.querySelector('#grid button').innerText")
            assert float(first.split()[0]) > 0.99
            ids = await tab.run(
                "[...document.querySelectorAll('#grid button')].map(b => +b.dataset.id)"
            )
            assert len(ids) == 24
            assert {i % 3 for i in ids[:10]} == {1}
            assert await tab.run("location.hash") == "#7"

            await tab.wait("element('wait').hidden")  # the map has come
            await tab.run(CLICK_ON_MAP)
            await tab.wait("!element('what').textContent.includes('<b>7.png')")
            assert await tab.run("!element('tip').hidden")
            await tab.run("element('color').value = 'cluster'; element('color').onchange()")
            assert await tab.run("element('legend').children.length") >= 3

            await tab.run(DROP.format(content=query))
            await tab.wait("element('what').textContent === 'Nearest to query.png'")
            assert await tab.run("document.querySelector('#grid button').dataset.id") == "5"
            await tab.wait("element('shown').naturalWidth === 60")
            await tab.run("element('back').click()")
            assert await tab.run("document.querySelectorAll('#grid button').length") == 60

            await tab.run("location.hash = '9999'")
            await tab.wait("element('error').textContent === 'there is no row with this id'")
            failed = [error for error in tab.errors if "404" not in json.dumps(error)]
            assert failed == []

    asyncio.run(look())
