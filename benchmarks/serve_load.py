"""Many clients of one `cot-engine serve`, on this machine: what fails, how long answers take,
whether memory stays flat, and whether one who does not read holds anybody up.

    python benchmarks/serve_load.py --clients 64 --seconds 60 --json load.json

The server is a process of its own with the bundled model; the clients are one process beside it,
on the same cores. Each asks one question after another about a small picture; of a 429 it waits as
long as it says. One more asks for a stream and never reads it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx

from cot_engine import scenes

PAGE = os.sysconf("SC_PAGE_SIZE")
TICK = os.sysconf("SC_CLK_TCK")


def bodies(count: int, strategy: str) -> list[dict]:
    """Questions of the bundled world, as they are sent."""
    made = []
    for index in range(count):
        scene = scenes.sample(5, index, "val")
        buffer = io.BytesIO()
        scene.image.save(buffer, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        parts = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": scene.question},
        ]
        asked = {"messages": [{"role": "user", "content": parts}], "strategy": strategy}
        made.append({"model": "bundled", **asked})
    return made


class Seen:
    """What the clients saw."""

    def __init__(self) -> None:
        self.status: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.wrong: list[str] = []

    def take(self, reply: httpx.Response, seconds: float) -> None:
        self.status[str(reply.status_code)] += 1
        if reply.status_code == 200:
            self.seconds.append(seconds)
            if not reply.json()["choices"][0]["message"]["content"]:
                self.wrong.append("an answer without content")
        elif reply.status_code == 429:
            if "retry-after" not in reply.headers:
                self.wrong.append("a 429 without Retry-After")
        else:
            self.wrong.append(reply.text[:200])


async def client(http: httpx.AsyncClient, number: int, asked: list[dict], end: float, seen: Seen):
    """One client: the next question as soon as the last one is answered."""
    count = number
    while time.monotonic() < end:
        body = {**asked[count % len(asked)], "user": f"client-{number}", "seed": count}
        count += 64
        begun = time.monotonic()
        try:
            reply = await http.post("/v1/chat/completions", json=body)
        except httpx.HTTPError as error:
            seen.status[type(error).__name__] += 1
            seen.wrong.append(repr(error))
            continue
        seen.take(reply, time.monotonic() - begun)
        if reply.status_code == 429:
            await asyncio.sleep(float(reply.headers.get("retry-after", 1)))


def unread(port: int, asked: dict) -> socket.socket:
    """A stream that nobody reads."""
    body = json.dumps({**asked, "stream": True}).encode()
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    made.connect(("127.0.0.1", port))
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
    made.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    return made


def resident(pid: int) -> float:
    """MB that the process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 1e6


def processor(pid: int) -> float:
    """Seconds of processor time that the process took."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


async def watch(pid: int, end: float, held: list[float]) -> None:
    while time.monotonic() < end:
        held.append(resident(pid))
        await asyncio.sleep(0.5)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


async def load(base: str, pid: int, args: argparse.Namespace) -> dict:
    asked = bodies(256, args.strategy)
    seen, held = Seen(), []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(
        base_url=base, timeout=120, limits=limits, trust_env=False
    ) as http:
        warm = Seen()
        await asyncio.gather(
            *(client(http, n, asked, time.monotonic() + 1, warm) for n in range(args.clients))
        )
        silent = unread(int(base.rpartition(":")[2]), asked[0])
        begun, used = time.monotonic(), processor(pid)
        end = begun + args.seconds
        await asyncio.gather(
            watch(pid, end, held),
            *(client(http, n, asked, end, seen) for n in range(args.clients)),
        )
        took = time.monotonic() - begun
        metrics = (await http.get("/metrics")).text
        silent.close()
    answered = seen.status["200"]
    quarter = held[: max(1, len(held) // 4)]
    return {
        "clients": args.clients,
        "seconds": round(took, 1),
        "strategy": args.strategy,
        "statuses": dict(seen.status),
        "wrong": seen.wrong[:5],
        "answered_per_second": round(answered / took, 2),
        "p50": round(percentile(seen.seconds, 0.5), 3),
        "p99": round(percentile(seen.seconds, 0.99), 3),
        "longest": round(max(seen.seconds, default=float("nan")), 3),
        "memory_mb": {
            "first_quarter": round(max(quarter), 1),
            "end": round(held[-1], 1),
            "most": round(max(held), 1),
        },
        "server_processor_seconds": round(processor(pid) - used, 1),
        "trace_bytes": float(re.search(r"^cot_engine_trace_bytes (\S+)$", metrics, re.M)[1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--strategy", default="stage-beam")
    parser.add_argument("--queue", type=int, default=64, help="--max-queue of the server")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    command = [sys.executable, "-m", "cot_engine", "serve", "--port", "0", "--quiet"]
    command += ["--max-queue", str(args.queue)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            base = re.match(r"(http://\S+)/v1 serves", server.stdout.readline())[1]
            found = asyncio.run(load(base, server.pid, args))
        finally:
            server.terminate()
            found_code = server.wait(60)
    found["exit_code"] = found_code
    text = json.dumps(found, indent=2)
    print(text)
    if args.json:
        Path(args.json).write_text(text + "\n", "utf-8")
    if found["wrong"] or found_code:
        sys.exit("Something failed that was no honest 429.")


if __name__ == "__main__":
    main()
