"""Image files, also such that no library would write."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)


def encode(image, kind, **arguments):
    file = io.BytesIO()
    image.save(file, kind, **arguments)
    return file.getvalue()


RGB = Image.fromarray(PIXELS)


def patched(encoded, offset, data):
    return encoded[:offset] + data + encoded[offset + len(data) :]


def chunk(kind, content):
    """A chunk of a PNG."""
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(width, height, text_chunks=0, depth=8):
    """A black PNG, with chunks of compressed text of 8 MB each."""
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(7_900_000), 9))
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width * depth // 8 + 1) * height), 9)
    parts = chunk(b"IHDR", header), text * text_chunks, chunk(b"IDAT", rows), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def segment(code, content):
    """A segment of a JPEG."""
    return b"\xff" + bytes([code]) + struct.pack(">H", len(content) + 2) + content


def progressive(width, height, scans, frame=0xC2):
    """A gray JPEG whose further scans all refine nothing, in 15 bits for 32,767 blocks."""
    blocks = -(-width // 8) * -(-height // 8)
    bits = "0" + 14 * "1"  # a run of blocks without a coefficient
    bits = bits * -(-blocks // 32767)
    bits += "1" * (-len(bits) % 8)
    run = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    first, refine = (segment(0xDA, bytes([1, 1, 0]) + s) for s in (b"\0\0\0", b"\1\x3f\x10"))
    return b"".join([
        b"\xff\xd8",
        segment(0xDB, b"\0" + bytes([1] * 64)),
        segment(frame, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0"),
        segment(0xC4, b"\x00" + bytes([1] + [0] * 15) + b"\x00"),
        segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\xe0"),
        first + bytes(8),
        (refine + run) * (scans - 1),
        b"\xff\xd9",
    ])  # fmt: skip
