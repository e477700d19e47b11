"""Web page of a table: thumbnails, neighbors, queries by files, a map; for this machine only."""

import asyncio
import functools
import logging
from pathlib import Path

from aiohttp import web

from keras_ssl.tables import layout, neighbors, thumbnails
from keras_ssl.tables.store import UNREADABLE

log = logging.getLogger("keras_ssl.tables")
PAGE = Path(__file__).with_name("explore.html")
HOST = "127.0.0.1"
NUMBER, MAX_NUMBER = 24, 200  # neighbors
SIDES = (160, 640)  # pixels of thumbnails
MAX_FILE = 64 * 2**20  # bytes of a query
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob:; connect-src 'self'; "
    "script-src 'unsafe-inline'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def application(table, encoder=None, token=None):
    """Creates the aiohttp application of a table.

    Only files of rows of the table are read, as thumbnails: a request names the id of a row, not a path.
    Requests with another host name are refused, so that no other web page can read the images through a host
    name that resolves to this machine. With a `token`, requests of other users of this machine, who do not
    know it, are refused, too.

    Args:
        table: FeatureTable with features.
        encoder: the result of `neighbors.encoder_of`, for queries with files that are not in the table; or
            None.
        token: str; all paths begin with "/<token>/", or with "/" if it is None.

    Returns:
        aiohttp.web.Application.

    Example:
        >>> web.run_app(application(FeatureTable("features.lance")), host=HOST)     # doctest: +SKIP
    """
    app = web.Application(middlewares=[_guarded], client_max_size=MAX_FILE)
    explorer = _Explorer(table, encoder)
    # In the path: browsers send cookies to all ports of a host, no matter who listens on them.
    base = f"/{token}/" if token else "/"
    app.add_routes([
        web.get(base, explorer.page),
        web.get(base + "api/table", explorer.table),
        web.get(base + "api/rows", explorer.rows),
        web.get(base + "api/map", explorer.map),
        web.get(base + "api/neighbors/{id:[0-9]{1,18}}", explorer.neighbors),
        web.post(base + "api/search", explorer.search),
        web.get(base + "thumbnails/{id:[0-9]{1,18}}", explorer.thumbnail),
    ])  # fmt: skip
    return app


@web.middleware
async def _guarded(request, handler):
    """Refuses requests from other web pages; answers errors of the user in JSON."""
    origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site", "none")
    foreign = request.url.host not in (HOST, "localhost")
    foreign |= origin not in (None, f"http://{request.host}")
    # A link on another site may open the page, but other sites may not embed its images.
    foreign |= site not in ("same-origin", "none") and not request.path.endswith("/")
    if foreign:
        response = web.json_response({"error": f"use http://{HOST}, from its own page"}, status=403)
    else:
        try:
            response = await handler(request)
        except ValueError as error:
            response = web.json_response({"error": str(error)}, status=400)
        except web.HTTPNotFound as error:
            reason = (
                error.reason if error.reason != "Not Found" else "open the address that was printed"
            )
            response = web.json_response({"error": reason}, status=404)
        except web.HTTPException as error:
            response = web.json_response({"error": error.reason}, status=error.status)
        except Exception as error:  # from LanceDB, or a server that is away
            log.exception("a request failed")
            response = web.json_response({"error": str(error)[:500]}, status=500)
    response.headers.update(HEADERS)
    return response


class _Explorer:
    """The handlers, which read the disk and compute in threads."""

    def __init__(self, table, encoder):
        self._table, self._encoder = table, encoder
        self._layout = None  # asyncio.Task, started by the first page
        self._encoding = asyncio.Lock()

    async def page(self, _):
        version = self._table.lance.version
        await asyncio.to_thread(self._table.refresh)
        done = self._layout and self._layout.done()
        if done and (self._layout.exception() or self._table.lance.version != version):
            self._layout = None
        self._start_layout()
        return web.Response(text=PAGE.read_text("utf-8"), content_type="text/html")

    async def table(self, _):
        table = self._table
        rows = await asyncio.to_thread(table.count)
        unreadable = await asyncio.to_thread(table.count, UNREADABLE)
        return web.json_response({
            "name": Path(table.path).name, "model": table.identity.label, "rows": rows,
            "unreadable": unreadable, "encodes": self._encoder is not None,
        })  # fmt: skip

    def _start_layout(self):
        if self._layout is None:
            self._layout = asyncio.create_task(asyncio.to_thread(layout.layout, self._table))
        return self._layout

    async def rows(self, _):
        return web.json_response({"rows": await asyncio.to_thread(layout.sample, self._table)})

    async def map(self, _):
        return web.json_response({"rows": await asyncio.shield(self._start_layout())})

    async def neighbors(self, request):
        number = _number(request)
        row = await self._row(request, ["vector", "height", "width"])
        vectors = neighbors.checked(self._table, [row.pop("vector")])
        (matches,) = await asyncio.to_thread(neighbors.nearest, self._table, vectors, number + 1)
        others = [match for match in matches if match.id != row["id"]][:number]
        return web.json_response({"row": row, "matches": [match._asdict() for match in others]})

    async def search(self, request):
        number, content = _number(request), await request.read()
        async with self._encoding:
            find = functools.partial(
                neighbors.search, self._table, [content], number, self._encoder
            )
            (matches,) = await asyncio.to_thread(find)
        return web.json_response({"matches": [match._asdict() for match in matches]})

    async def thumbnail(self, request):
        side = request.query.get("side", str(SIDES[0]))
        if side not in map(str, SIDES):
            raise ValueError(f"side must be of {', '.join(map(str, SIDES))}, got {side!r}")
        row = await self._row(request, ["path", "time", "vector"])
        image = None
        if row["vector"] is not None:
            image = await asyncio.to_thread(
                thumbnails.thumbnail, row["path"], row["time"], int(side)
            )
        if image is None:
            raise web.HTTPNotFound(reason="the file is gone, or no image that can be shown")
        body = await asyncio.to_thread(thumbnails.jpeg, image)
        return web.Response(body=body, content_type="image/jpeg")

    async def _row(self, request, columns):
        row_id = int(request.match_info["id"])
        columns = ["path", "time", "label", *columns]
        try:
            (row,) = await asyncio.to_thread(self._table.rows, [row_id], columns)
        except ValueError:
            raise web.HTTPNotFound(reason="there is no row with this id") from None
        return row


def _number(request):
    text = request.query.get("number", str(NUMBER))
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= MAX_NUMBER):
        raise ValueError(f"number must be in 1..{MAX_NUMBER}, got {text!r}")
    return int(text)
