"""Picture files made to exhaust whoever opens them, and what loading one costs, in a process apart.

python tests/hostile_pictures.py        # a table: name, bytes of the file, seconds, MB, outcome
"""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path


def _chunk(kind: bytes, body: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + crc


def zeros(count: int) -> bytes:
    """So many zero bytes, compressed; made in pieces, since they are many."""
    packer, out = zlib.compressobj(9), []
    for _ in range(count >> 20):
        out.append(packer.compress(bytes(1 << 20)))
    return b"".join([*out, packer.compress(bytes(count & 0xFFFFF)), packer.flush()])


def png(width, height, depth=8, colour=2, more=b"", interlace=0, palette=b"", after=b"") -> bytes:
    """A PNG of nothing but zeros: a thousandth of its pixels in bytes."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    rows = height * (1 + (width * samples * depth + 7) // 8)
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    body = _chunk(b"IHDR", head) + palette + more + _chunk(b"IDAT", zeros(rows)) + after
    return b"\x89PNG\r\n\x1a\n" + body + _chunk(b"IEND", b"")


def ico(inside: bytes, claimed=(0, 0), count=1) -> bytes:
    entry = struct.pack("<BBBBHHII", *claimed, 0, 0, 1, 32, len(inside), 6 + 16 * count)
    return struct.pack("<HHH", 0, 1, count) + entry * count + inside


def saved(kind: str, mode: str, size: tuple[int, int], **options) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def bmp(width, height, body=b"", bits=24, compression=0) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(body), 0, 0, 54) + info + body


def tiff(tags: list[tuple[int, int, int, int]], body=b"") -> bytes:
    """One directory; `body` begins at byte 8 + 2 + 12 * len(tags) + 4."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + body


def plain_tiff(width, height, **more) -> bytes:
    at = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1, 273: 200, 279: 100, 278: height}
    at |= {int(k[1:]): v for k, v in more.items()}
    return tiff([(tag, 4, 1, value) for tag, value in at.items()], bytes(400))


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes `count` times."""
    data = saved("JPEG", "RGB", (3000, 3000), progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def frames(count: int) -> bytes:
    """A GIF of many frames of one pixel."""
    data = saved("GIF", "P", (200, 200))
    one = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return data[:-1] + one * count + b"\x3b"


def pages(count: int) -> bytes:
    """A TIFF of many directories."""
    tags = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 4, 1, 8), (262, 4, 1, 1), (273, 4, 1, 8)]
    tags += [(277, 4, 1, 1), (278, 4, 1, 8), (279, 4, 1, 64)]
    size, out = 2 + 12 * len(tags) + 4, [b"II*\0\x08\0\0\0"]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    for at in range(count):
        following = 8 + size * (at + 1) if at + 1 < count else 0
        out.append(struct.pack("<H", len(tags)) + entries + struct.pack("<I", following))
    return b"".join([*out, bytes(64)])


def exif(entries: int, size: int) -> bytes:
    """EXIF whose entries all claim the same `size` bytes."""
    at = 8 + 2 + 12 * entries + 4
    listed = b"".join(struct.pack("<HHII", 0x8000 + i, 7, size, at) for i in range(entries))
    body = b"II*\0\x08\0\0\0" + struct.pack("<H", entries) + listed + bytes(4) + bytes(size)
    return body


PALETTE = _chunk(b"PLTE", bytes(768)) + _chunk(b"tRNS", bytes(256))
BIG = 9990
ZOO = {
    # What it claims is beyond the limits, in its header or behind it.
    "ico-png": lambda: ico(png(30_000, 30_000, 1, 0)),
    "ico-many": lambda: ico(png(30_000, 30_000, 1, 0), (16, 16), 500),
    "ico-bmp": lambda: ico(bmp(30_000, 60_000, bits=32)[14:], (1, 1)),
    "ico-nothing": lambda: ico(b"", (0, 0)),
    "png-rgb": lambda: png(30_000, 30_000),
    "png-rgba-16": lambda: png(BIG, BIG, 16, 6),
    "png-rgba": lambda: png(8700, 8700, 8, 6),
    "png-grey-16": lambda: png(BIG, BIG, 16, 0),
    "png-grey-alpha": lambda: png(BIG, BIG, 8, 4),
    "png-palette": lambda: png(BIG, BIG, 8, 3, PALETTE),
    "png-1": lambda: png(BIG, BIG, 1, 0),
    "png-interlaced": lambda: png(BIG, BIG, 8, 2, interlace=1),
    "png-100-mp": lambda: png(10_000, 10_000),
    "png-turned": lambda: png(BIG, BIG, after=_chunk(b"eXIf", ORIENTED)),
    "png-itxt": lambda: png(8, 8, more=_chunk(b"iTXt", b"a\0\1\0\0\0" + zeros(1 << 26))),
    "png-ztxt": lambda: png(8, 8, more=_chunk(b"zTXt", b"a\0\0" + zeros(1 << 26)) * 3),
    "png-iccp": lambda: png(8, 8, more=_chunk(b"iCCP", b"a\0\0" + zeros(1 << 26))),
    "png-ztxt-after": lambda: png(8, 8, after=_chunk(b"zTXt", b"a\0\0" + zeros(1 << 26))),
    "png-idat": lambda: png(8, 8, more=_chunk(b"IDAT", zeros(1 << 30))),
    "png-exif": lambda: png(8, 8, after=_chunk(b"eXIf", exif(30_000, 100_000))),
    "png-frames": lambda: png(8, 8, more=_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
    "gif-screen": lambda: b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";",
    "gif-frames": lambda: frames(300_000),
    "gif-large": lambda: saved("GIF", "P", (BIG, BIG)),
    "webp": lambda: saved("WEBP", "RGB", (6400, 6400), lossless=True),
    "webp-alpha": lambda: saved("WEBP", "RGBA", (6400, 6400), lossless=True),
    "jpeg-scans": lambda: scans(3000),
    "jpeg-progressive": lambda: saved("JPEG", "RGB", (BIG, BIG), progressive=True),
    "jpeg-cmyk": lambda: saved("JPEG", "CMYK", (BIG, BIG)),
    "jpeg-exif": lambda: saved("JPEG", "RGB", (8, 8), exif=b"Exif\0\0" + exif(2000, 30_000)),
    "bmp-huge": lambda: bmp(2**31 - 1, 2**31 - 1),
    "bmp-negative": lambda: bmp(200, -(2**31)),
    "bmp-rle": lambda: bmp(BIG, BIG, b"\xff\0" * 391_000, 8, 1),
    "bmp-short": lambda: bmp(BIG, BIG),
    "ppm-huge": lambda: b"P6 " + b"9" * 1000 + b" 9 255\n",
    "ppm-plain": lambda: b"P1 9990 9990 " + b"1" * 100,
    "ppm-16": lambda: b"P5 9990 9990 65535\n",
    "tiff-tile": lambda: plain_tiff(64, 64, t322=60_000, t323=60_000, t324=200, t325=100, t259=5),
    "tiff-strips": lambda: plain_tiff(64, 64, t278=1),
    "tiff-float": lambda: saved("TIFF", "F", (BIG, BIG), compression="tiff_lzw"),
    "tiff-int": lambda: saved("TIFF", "I", (BIG, BIG), compression="tiff_lzw"),
    "tiff-pages": lambda: pages(100_000),
    "tiff-directory": lambda: exif(30_000, 500_000),
    # The most that is let through, of what costs most.
    "png-rgba-most": lambda: png(8650, 8650, 8, 6),
    "png-turned-most": lambda: png(8650, 8650, after=_chunk(b"eXIf", ORIENTED)),
    "webp-most": lambda: saved("WEBP", "RGB", (6120, 6120), lossless=True),
    "webp-alpha-most": lambda: saved("WEBP", "RGBA", (5470, 5470), lossless=True),
    "jpeg-progressive-most": lambda: saved("JPEG", "RGB", (7740, 7740), progressive=True),
    "jpeg-cmyk-most": lambda: saved("JPEG", "CMYK", (8650, 8650)),
    "jpeg2000-most": lambda: saved("JPEG2000", "RGB", (5470, 5470)),
    "jpeg2000-alpha-most": lambda: saved("JPEG2000", "RGBA", (5000, 5000)),
    "avif-most": lambda: saved("AVIF", "RGB", (7070, 7070), speed=10),
    "avif-alpha-most": lambda: saved("AVIF", "RGBA", (6120, 6120), speed=10),
    "tiff-float-most": lambda: saved("TIFF", "F", (8650, 8650), compression="tiff_lzw"),
}  # fmt: skip
ORIENTED = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"


def cost(path: Path) -> tuple[float, float, str]:
    """Seconds of processor time, MB beyond what the process had, and what came of it."""
    from cot_engine.errors import ImageError
    from cot_engine.images.load import load_image

    read, write = os.pipe()
    if (child := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
        before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        try:
            outcome = repr(load_image(path))
        except ImageError as error:
            outcome = f"ImageError: {error}"
        except BaseException as error:
            outcome = f"raw {type(error).__name__}: {error}"
        seconds = time.process_time() - begun
        more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        os.write(write, json.dumps((seconds, more, outcome)).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return tuple(json.loads(data)) if data else (0.0, 0.0, "raw death")


def measure(names: list[str], folder: Path) -> dict[str, tuple[int, float, float, str]]:
    """What loading each of the named files costs, in one process that has the libraries loaded."""
    script = [sys.executable, __file__, str(folder), *names]
    done = subprocess.run(script, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def main() -> None:
    import warnings

    import numpy  # noqa: F401
    from PIL import Image

    warnings.simplefilter("ignore")
    Image.init()
    folder, names = Path(sys.argv[1]), sys.argv[2:] or list(ZOO)
    found = {}
    for name in names:
        path = folder / name
        if not path.exists():
            path.write_bytes(ZOO[name]())
        found[name] = (path.stat().st_size, *cost(path))
        if not sys.argv[2:]:
            size, seconds, more, outcome = found[name]
            print(
                f"{name:18}{size:>10,} B {seconds:7.2f} s {more:8.0f} MB  {outcome[:150]}",
                flush=True,
            )
    if sys.argv[2:]:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
