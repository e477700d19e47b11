"""Floods a REST port with JSON bodies, and measures delays of other clients and memory that the server keeps.

python tools/hostile_bodies.py PORT PID

The server is on this machine, without a proxy. Fails if the server keeps 5 % more memory or descriptors.
"""

import argparse
import collections
import contextlib
import socket
import statistics
import sys
import threading
import time

from hostile_grpc import BARS, Usage
from hostile_rest import JSON, answered, get, post

LISTS = b'{"instances": [' + b"[]," * ((2**17 - 30) // 3) + b"1]}"  # parsed by the server itself
BODIES = {
    "many lists": (LISTS, 60),
    "4 MiB with wrong keys": (b'{"x": "%s"}' % (b"a" * 2**22), 4),
    "4 MiB of a wrong type": (b'{"instances": ["%s"]}' % (b"a" * 2**22), 4),
}


def flood(port, body=LISTS, number=60, seconds=3.0):
    """Sends bodies with mistakes from 127.0.0.1, and other requests from 127.0.0.2.

    Args:
        port: int, of REST.
        body: bytes.
        number: int, connections that send one body after another.
        seconds: float.

    Returns:
        dict of lists of times in s, of "body" (from 127.0.0.1), "GET" and "POST" (from 127.0.0.2).
    """
    data, end, times = post("evil", body), time.monotonic() + seconds, collections.defaultdict(list)

    def ask(name, connection, request):
        start = time.monotonic()
        connection.sendall(request)
        names = answered(connection.recv(2**16))
        times[name].append(time.monotonic() - start)
        return names

    def connect(source):
        return socket.create_connection(("127.0.0.1", port), timeout=30, source_address=(source, 0))

    def send():
        while time.monotonic() < end:
            with contextlib.suppress(ConnectionError), connect("127.0.0.1") as connection:
                ask("body", connection, data)

    threads = [threading.Thread(target=send) for _ in range(number)]
    for thread in threads:
        thread.start()
    while not times["POST"] or time.monotonic() < end:
        for name, request in (("GET", get("one")), ("POST", post("one", JSON))):
            with connect("127.0.0.2") as connection:
                assert ask(name, connection, request) == ["one"]
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    return dict(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("port", type=int)
    parser.add_argument("pid", type=int)
    args = parser.parse_args()
    kept = []
    for body, number in BODIES.values():  # the first pass warms up
        flood(args.port, body, number, 1.0)
    for name, (body, number) in BODIES.items():
        before = Usage(args.pid)
        times = flood(args.port, body, number)
        peak = before.peak()
        growth, files, is_kept = before.kept()
        kept += [name] if is_kept else []
        waits = ", ".join(
            f"{key} {statistics.median(values):.3f} (at most {max(values):.3f})"
            for key, values in times.items()
        )
        print(
            f"{name}: {len(times['body'])} bodies, s for {waits}, peak {peak / 2**20:.0f} MiB, afterwards "
            f"{growth:+.1%} and {files:+} descriptors"
        )
    if kept:
        sys.exit(f"{BARS['after']}: {', '.join(kept)}")


if __name__ == "__main__":
    main()
