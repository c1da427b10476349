"""How long does an event loop stand still while searches are awaited in it?

    python benchmarks/heartbeat.py

Beside eight searches of each kind a task wakes every five milliseconds; printed is the worst it was
late, in milliseconds, and the same with nothing beside it, which is the machine's own.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

from cot_engine import Engine

EVERY = 0.005
QUESTION = "How many orange circles are there?"
HOT = {"temperature": 2.0, "top_p": 1.0, "top_k": 0, "judge": "self"}


async def worst(beside: Callable[[], Awaitable[object]]) -> float:
    """The worst a heartbeat was late while `beside` ran, in milliseconds."""
    late = 0.0
    going = True

    async def beat() -> None:
        nonlocal late
        while going:
            before = time.perf_counter()
            await asyncio.sleep(EVERY)
            late = max(late, time.perf_counter() - before - EVERY)

    task = asyncio.ensure_future(beat())
    await beside()
    going = False
    await task
    return 1000 * late


def photograph(megapixels: int) -> bytes:
    """A JPEG of noise as coarse as a photograph's."""
    side = int((megapixels * 1e6) ** 0.5)
    coarse = np.random.default_rng(0).integers(0, 255, (side // 8, side // 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((side, side)).save(out, "JPEG", quality=90)
    return out.getvalue()


@contextmanager
def slow_server(picture: bytes, seconds: float) -> Iterator[str]:
    """The address of a picture whose server takes its time."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            time.sleep(seconds)
            self.send_response(200)
            self.send_header("Content-Length", str(len(picture)))
            self.end_headers()
            self.wfile.write(picture)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/picture.jpg"
    finally:
        server.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--searches", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3, help="the median of so many is printed")
    parser.add_argument("-n", type=int, default=64, help="candidates of the round robin")
    parser.add_argument("--megapixels", type=int, default=24)
    args = parser.parse_args()
    large, small = photograph(args.megapixels), photograph(1)

    async def many(engine: Engine, picture: object, **options: object) -> None:
        asked = (
            engine.asolve(picture, f"{QUESTION} ({k})", **options) for k in range(args.searches)
        )
        await asyncio.gather(*asked)

    with Engine.from_pretrained() as engine, slow_server(small, 2) as url:
        kinds: dict[str, Callable[[], Awaitable[object]]] = {
            "nothing": lambda: asyncio.sleep(2),
            "a picture on a slow server": lambda: many(
                engine, url, strategy="greedy", allow_url="inner"
            ),
            f"a JPEG of {args.megapixels} megapixels": lambda: many(
                engine, large, strategy="greedy"
            ),
            f"round-robin, n={args.n}": lambda: many(
                engine, small, n=args.n, tournament="round-robin", **HOT
            ),
        }
        for name, beside in kinds.items():
            late = sorted(asyncio.run(worst(beside)) for _ in range(args.rounds))
            print(f"{name:30} {late[len(late) // 2]:6.0f} ms ({late[0]:.0f} to {late[-1]:.0f})")


if __name__ == "__main__":
    main()
