"""Request smuggling against a REST port, or against a proxy in front of it.

python tools/hostile_rest.py HOST PORT [--proxied]

Each case is a stream of bytes on which two HTTP parsers may disagree. It contains requests for models that do
not exist; the responses contain the names of the models, so that each response shows which request it
answers. Each case lists the names that may be answered. `evil` is inside a body, or inside bytes that are not
HTTP, and must never be answered. And no other client may get a response for a stream.
"""

import argparse
import collections
import itertools
import re
import socket

TAGS = re.compile(rb"tag-(\w+)")
VICTIMS = 3  # requests of other clients after each case: a proxy sends them on the same connection


def get(tag, *headers, target="/v1/models/tag-{}", version="1.1"):
    """Builds a GET whose response contains a tag."""
    lines = [f"GET {target.format(tag)} HTTP/{version}", "Host: x", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


def post(tag, body, *headers, size=None):
    """Builds a POST whose response contains a tag, with a Content-Length unless `size` is ""."""
    length = [] if size == "" else [f"Content-Length: {len(body) if size is None else size}"]
    lines = [f"POST /v1/models/tag-{tag}:predict HTTP/1.1", "Host: x", *length, *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


EVIL = get("evil")
JSON = b'{"instances": [[1]]}'
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(JSON), JSON)
HIDDEN = b"0\r\n\r\n" + EVIL  # ends at once if it is chunked
LAST = get("last", "Connection: close")
CHUNKED_HEADER = "Transfer-Encoding: chunked"


def _obfuscated():
    """Yields headers that some parsers read as Transfer-Encoding: chunked, and others do not."""
    for name in (
        "Transfer-Encoding ", " Transfer-Encoding", "Transfer-Encoding\t", "Transfer_Encoding",
        "Transfer-Encoding\x00", "X: x\nTransfer-Encoding", "X: x\rTransfer-Encoding",
        "Transfer-Encoding\r\n ", "transfer-encoding", "\x0bTransfer-Encoding",
    ):  # fmt: skip
        yield f"{name}: chunked"
    for value in (
        "xchunked", "chunkedx", "chunked, identity", "identity, chunked", "identity", "CHUNKED",
        "chunked\x00", "\x0bchunked", '"chunked"', "\tchunked", "chunked ", ", chunked", "gzip, chunked",
        "chunked, chunked", "\n chunked", "\r\n chunked", "chunked\r\nTransfer-Encoding: x",
        "x\r\nTransfer-Encoding: chunked", "chunk\xebd", "chunked;q=1", "",
    ):  # fmt: skip
        yield f"Transfer-Encoding:{value}"


def _lengths(number):
    """Yields values of Content-Length that some parsers read as `number`."""
    for value in (
        "+{}", "-{}", "{}.0", "0x{:x}", "{},", "{}, {}", "{} 0", "{}\x0b", "\x0c{}", "{}\x00", "0{}", "{}e0",
        '"{}"', "{}\n", "{}\r", "\n {}", "\r\n {}", "{}\r\nContent-Length: {}", " ",
        "0\r\nContent-Length: {}", "{}\r\nContent-Length: 0", "{}\r\ncontent-length: 1", "\xb2{}",
    ):  # fmt: skip
        yield value.format(number, number)
    yield str(2**64 + number)
    yield "1_" + str(number)


def _bodies():
    """Returns cases about where a body ends, or whether there is one."""
    return {
        "CL.TE": (post("one", HIDDEN, CHUNKED_HEADER), ["one"]),
        "TE.CL": (
            post("one", b"%x\r\n%s\r\n0\r\n\r\n" % (len(EVIL), EVIL), CHUNKED_HEADER, size=4),
            ["one"],
        ),
        "TE.0": (post("one", CHUNKED + EVIL[:0], CHUNKED_HEADER, size=0), ["one"]),
        "chunked": (post("one", CHUNKED, CHUNKED_HEADER, size=""), ["one", "last"]),
        "body of a GET": (get("one", f"Content-Length: {len(EVIL)}") + EVIL, ["one", "last"]),
        "chunked body of a GET": (
            get("one", CHUNKED_HEADER) + b"%x\r\n%s\r\n0\r\n\r\n" % (len(EVIL), EVIL),
            ["one", "last"],
        ),
        "body of a HEAD": (
            b"HEAD" + get("one", f"Content-Length: {len(EVIL)}")[3:] + EVIL, ["one", "last"],
        ),
        "body of OPTIONS": (
            b"OPTIONS" + get("one", f"Content-Length: {len(EVIL)}")[3:] + EVIL, ["one", "last"],
        ),
        "evil as a body": (post("one", EVIL), ["one", "last"]),
        "Connection removes Content-Length": (
            post("one", EVIL, "Connection: keep-alive, Content-Length"), ["one", "last"],
        ),
        "Connection removes Transfer-Encoding": (
            post("one", HIDDEN, CHUNKED_HEADER, "Connection: Transfer-Encoding", size=""),
            ["one", "evil", "last"],  # here this is a request
        ),
    }  # fmt: skip


def _requests():
    """Returns cases of requests on one connection, their targets, methods and versions."""
    return {
        "pipelined": (get("one") + post("two", JSON) + get("three"), ["one", "two", "three", "last"]),
        "twenty pipelined": (
            b"".join(get(f"n{i}") for i in range(20)), [*(f"n{i}" for i in range(20)), "last"],
        ),
        "empty line between": (post("one", JSON) + b"\r\n" + get("two"), ["one", "two", "last"]),
        "trailing data": (post("one", JSON) + b"x=1", ["one"]),
        "trailing zeros": (post("one", JSON) + b"\0\0\0\0" + EVIL, ["one"]),
        "absolute form": (get("one", target="http://y/v1/models/tag-{}"), ["one", "last"]),
        "absolute form without a path": (get("one", target="http://y"), ["one", "last"]),
        "target is a request": (
            get("one", target="/v1/models/tag-{} HTTP/1.1\r\nX: "), ["one", "last"],
        ),
        "upgrade to websocket": (
            get("one", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
            + get("two"),
            ["one", "two", "last"],
        ),
        "upgrade to h2c": (
            get("one", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
            + get("two"),
            ["one", "two", "last"],
        ),
        "upgrade with a body": (
            post("one", EVIL, "Connection: Upgrade", "Upgrade: websocket"), ["one", "last"],
        ),
        "CONNECT": (b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n" + EVIL, []),
        "Expect": (post("one", JSON, "Expect: 100-continue"), ["one", "last"]),
        "Expect something else": (post("one", EVIL, "Expect: 100-continuex"), ["one", "last"]),
        "HTTP/1.0": (get("one", "Connection: keep-alive", version="1.0"), ["one", "last"]),
        "HTTP/1.0 chunked": (
            post("one", HIDDEN, CHUNKED_HEADER, size="").replace(b"HTTP/1.1", b"HTTP/1.0"), ["one"],
        ),
        "HTTP/0.9": (b"GET /v1/models/tag-one\r\n", ["one"]),
        "HTTP/2.0": (get("one", version="2.0"), ["one"]),
        "HTTP/1.10": (get("one", version="1.10"), ["one"]),
    }  # fmt: skip


def _heads():
    """Returns cases of headers that are folded, badly ended, or have odd names."""
    return {
        "two hosts": (get("one", "Host: y"), ["one", "last"]),
        "lower case method": (get("one").replace(b"GET", b"get") + EVIL[:0], ["one"]),
        "space in front of a header": (get("one", " X: y"), ["one", "last"]),
        "folded header": (get("one", "X: a\r\n b: c"), ["one", "last"]),
        "bare LF": (get("one").replace(b"\r\n", b"\n"), ["one", "last"]),
        "bare LF in a header": (get("one", "X: y\nContent-Length: 3") + EVIL, ["one", "evil", "last"]),
        "bare CR in a header": (get("one", "X: y\rContent-Length: 3") + EVIL, ["one", "evil", "last"]),
        "bare LF at the end of the head": (
            get("one", "X: y")[:-4] + b"\n\n" + get("two"), ["one", "two", "last"],
        ),
        "name with a space": (post("one", EVIL, f"Content-Length : {len(EVIL)}", size=""), ["one"]),
        "name with a NUL": (post("one", EVIL, f"Content-Length\0: {len(EVIL)}", size=""), ["one"]),
        "empty name": (post("one", EVIL, ": x"), ["one", "last"]),
    }  # fmt: skip


def _chunks():
    """Returns cases of chunked bodies."""
    found = {}
    for chunk in (
        b"14;a=b\r\n%s\r\n0\r\n\r\n", b'14;a="\r\n\r\n"\r\n%s\r\n0\r\n\r\n', b"14;\n%s\r\n0\r\n\r\n",
        b"14\n%s\n0\n\n", b"14;a\rb\r\n%s\r\n0\r\n\r\n", b"0x14\r\n%s\r\n0\r\n\r\n",
        b"+14\r\n%s\r\n0\r\n\r\n", b" 14\r\n%s\r\n0\r\n\r\n", b"14 \r\n%s\r\n0\r\n\r\n",
        b"-1\r\n%s\r\n0\r\n\r\n",
        b"10000000000000014\r\n%s\r\n0\r\n\r\n", b"14\r\n%s0\r\n\r\n", b"14\r\n%sxx0\r\n\r\n",
        b"14\r\n%s\r\n0\r\nX: y\r\n\r\n", b"14\r\n%s\r\n0\r\nContent-Length: 99\r\n\r\n",
        b"14\r\n%s\r\n00\r\n\r\n", b"14\r\n%s\r\n0;\r\n\r\n", b"14\r\n%s\r\n0\r\n \r\n",
    ):  # fmt: skip
        body = chunk % JSON
        found[f"chunks {chunk!r}"] = post("one", body, CHUNKED_HEADER, size=""), ["one", "last"]
    return found


def cases():
    """Returns a dict of name to (bytes, names that may be answered in this order)."""
    found = {**_bodies(), **_requests(), **_heads()}
    for header in _obfuscated():
        found[f"TE.TE {header!r}"] = post("one", HIDDEN, header), ["one", "last"]
    for value in _lengths(len(EVIL)):
        found[f"length {value!r}"] = post("one", EVIL, size=value), ["one", "last"]
    return {**found, **_chunks()}


def exchange(host, port, data, seconds=5.0):
    """Sends bytes on a new connection; returns the bytes received until it is closed or silent."""
    with socket.create_connection((host, port), timeout=seconds) as connection:
        received = b""
        try:
            connection.sendall(data)
            while part := connection.recv(2**16):
                received += part
        except OSError:  # reset, or no further response
            pass
    return received


def answered(received):
    """Returns the name in each response of a stream, None for a response without one."""
    parts = re.split(rb"HTTP/1\.[01] (?=[2-5]\d\d)", received)[1:]
    found = [TAGS.search(part) for part in parts]
    return [match[1].decode() if match else None for match in found]


def run(host, port, proxied=False, seconds=5.0):
    """Sends all cases to a server or proxy; raises AssertionError if a client gets a wrong response.

    Args:
        host: str.
        port: int, of REST or of a proxy.
        proxied: bool, whether to check only the other clients: the proxy may read a stream in any way, if it
            sends the server bytes that both read alike.
        seconds: float, how long to wait for further responses on a connection that stays open.

    Returns:
        dict of the number of cases by status of the first response; "closed" for none.
    """
    outcomes, wrong = collections.Counter(), []
    number = itertools.count()
    for name, (data, allowed) in cases().items():
        received = exchange(host, port, data + LAST, seconds)
        status = re.match(rb"HTTP/1\.[01] (\d\d\d)", received)
        outcomes[status[1].decode() if status else "closed"] += 1
        names = answered(received)
        # An error without a name answers the first request that has no response yet.
        own = all(name in (None, *allowed[i : i + 1]) for i, name in enumerate(names))
        if not (own or proxied):
            wrong.append(f"{name}: responses for {names}, not {allowed}: {received[:300]!r}")
        for _ in range(VICTIMS):
            tag = f"victim{next(number)}"
            received = exchange(host, port, get(tag, "Connection: close"), seconds)
            if answered(received) != [tag]:
                wrong.append(f"{name}: {tag} got {received[:300]!r}")
    assert not wrong, "\n".join(wrong)
    return dict(outcomes)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--proxied", action="store_true", help="the port is that of a proxy")
    args = parser.parse_args()
    outcomes = run(args.host, args.port, args.proxied)
    print(f"{len(cases())} cases, no wrong response: {outcomes}")


if __name__ == "__main__":
    main()
