"""The engine beside its peer, and on it: vLLM's build for CPUs, with the same model, on the same
cores.

    python benchmarks/peer.py --problems 64 --in-flight 32 --threads 2

All sample whole responses (four for each problem, temperature 1, nothing cut) to the same prompts
in fp32:

- `engine`: by `majority`, in this process or in replicas of its own;
- `vllm`: `n=4` of a bare client of vLLM's HTTP server, as it is used without a search;
- `logprobs`: the same, and the log-probability of each token, which a search breaks ties by;
- `search`: by `majority` again, whose model is that server. What it takes beyond the two is what
  the search layer costs.

They run in turns, each round with pictures of its own, so that nobody finds its prompts in a cache;
the medians of the rounds' ratios are the results, of problems a second, and of the search layer
also of tokens for each second of processor time (its own, the server's and the client's): what a
busy machine lets one measure. `vllm_server.py` makes and starts the server.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replicas import used
from vllm_server import VENV, Server, ServerError, serving

from cot_engine.core.problem import Problem


@dataclass(frozen=True)
class Round:
    """What one side did in one round."""

    seconds: float
    problems: int
    tokens: int
    processor: float

    @property
    def problems_a_second(self) -> float:
        return self.problems / self.seconds

    @property
    def tokens_a_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def tokens_a_processor_second(self) -> float:
        return self.tokens / max(self.processor, 1e-9)

    def row(self) -> dict[str, float]:
        return {
            "problems_a_second": round(self.problems_a_second, 2),
            "tokens_a_second": round(self.tokens_a_second),
            "tokens": self.tokens,
            "tokens_a_processor_second": round(self.tokens_a_processor_second),
            "problems_a_processor_second": round(self.problems / max(self.processor, 1e-9), 2),
        }


def ask(problem: Problem, model: str, n: int, seed: int, logprobs: bool = False) -> dict[str, Any]:
    """The body of a chat completion that asks what the engine asks."""
    content: list[dict[str, Any]] = []
    for image in problem.images:
        data = io.BytesIO()
        image.pixels.save(data, "PNG")
        address = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
        content.append({"type": "image_url", "image_url": {"url": address}})
    content.append({"type": "text", "text": problem.question})
    return {
        "model": model, "messages": [{"role": "user", "content": content}], "n": n, "seed": seed,
        "temperature": 1.0, "top_p": 1.0, "top_k": 0, "logprobs": logprobs,
    }  # fmt: skip


async def over_http(
    server: Server, problems: Sequence[Problem], n: int, in_flight: int, logprobs: bool = False
) -> Round:
    """n responses to each from the server, `in_flight` requests at a time."""
    import httpx2

    bodies = [ask(each, server.model, n, 1000 * i, logprobs) for i, each in enumerate(problems)]
    limits = httpx2.Limits(max_connections=in_flight)
    gate = asyncio.Semaphore(in_flight)
    async with httpx2.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:

        async def one(body: dict[str, Any]) -> int:
            async with gate:
                answer = await client.post("/v1/chat/completions", json=body)
            answer.raise_for_status()
            said = answer.json()
            if len(said["choices"]) != n:
                raise ServerError(f"{len(said['choices'])} responses came back of {n}.")
            return int(said["usage"]["completion_tokens"])

        began, used = time.perf_counter(), server.processor_seconds() + time.process_time()
        tokens = await asyncio.gather(*map(one, bodies))
        used = server.processor_seconds() + time.process_time() - used
        return Round(time.perf_counter() - began, len(problems), sum(tokens), used)


def processor_seconds(engine: Any, server: Server | None) -> float:
    """What this process has used, and the replicas' processes or the server's."""
    if server is not None:
        return time.process_time() + server.processor_seconds()
    replicas = getattr(engine.backend, "backends", ())
    return time.process_time() + sum(used(each.process.pid) for each in replicas)


def searched(
    engine: Any, problems: Sequence[Problem], n: int, server: Server | None = None
) -> Round:
    """The same of an engine, whose model is `server`'s if one is given."""
    began, spent = time.perf_counter(), processor_seconds(engine, server)
    answers = list(
        engine.solve_many(
            problems, strategy="majority", n=n, temperature=1.0, top_p=1.0, top_k=0, mode="trained"
        )
    )
    seconds, spent = time.perf_counter() - began, processor_seconds(engine, server) - spent
    return Round(seconds, len(answers), sum(answer.total.decoded for answer in answers), spent)


def compare(args: argparse.Namespace) -> dict[str, Any]:
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # replicas divide it among them
    import torch
    from models import scene

    from cot_engine import Engine
    from cot_engine.engine.facade import model_path

    torch.set_num_threads(args.threads)
    rows = args.in_flight * args.n
    sides: dict[str, list[Round]] = {"engine": [], "vllm": [], "logprobs": [], "search": []}
    with (
        serving(
            Path(model_path(args.model)), args.venv, threads=args.peer_threads, rows=rows
        ) as server,
        Engine.from_pretrained(args.model, device=args.device, dtype="float32",
                               in_flight=args.in_flight) as engine,
        Engine.from_pretrained(f"{server.url}/v1", in_flight=args.in_flight) as on_server,
    ):  # fmt: skip
        turns = {
            "engine": lambda asked: searched(engine, asked, args.n),
            "vllm": lambda asked: asyncio.run(over_http(server, asked, args.n, args.in_flight)),
            "logprobs": lambda asked: asyncio.run(
                over_http(server, asked, args.n, args.in_flight, True)
            ),
            "search": lambda asked: searched(on_server, asked, args.n, server),
        }
        for r in range(args.rounds + 1):
            for k, name in enumerate(sides):  # pictures of its own: vLLM keeps what it has seen
                first = 10_000 * k + r * args.problems
                asked = [scene(i) for i in range(first, first + (args.problems if r else 8))]
                found = turns[name](asked)
                if r:  # the first round warms up
                    sides[name].append(found)

    def ratio(one: str, other: str, what: str) -> float:
        """The median of the rounds' ratios."""
        pairs = zip(sides[one], sides[other], strict=True)
        return round(statistics.median(getattr(a, what) / getattr(b, what) for a, b in pairs), 3)

    return {
        "model": args.model, "problems": args.problems, "in_flight": args.in_flight, "n": args.n,
        "device": args.device, "threads": args.threads, "peer_threads": args.peer_threads,
        "load": round(os.getloadavg()[0], 1), "torch": torch.__version__,
        "rounds": {name: [r.row() for r in rounds] for name, rounds in sides.items()},
        "ratio": ratio("engine", "vllm", "problems_a_second"),
        "kept": {
            other: [ratio("search", other, what) for what in (
                "problems_a_second", "tokens_a_processor_second")]
            for other in ("vllm", "logprobs")
        },
    }  # fmt: skip


def told(result: dict[str, Any]) -> str:
    """The result as a table."""
    lines = [f"{'':9}{'problems/s':>12}{'tokens/s':>12}{'problems/cpu-s':>16}   (each round)"]
    for name, rounds in result["rounds"].items():
        per = [row["problems_a_second"] for row in rounds]
        tokens = statistics.median(row["tokens_a_second"] for row in rounds)
        busy = statistics.median(row["problems_a_processor_second"] for row in rounds)
        each = ", ".join(f"{value:.1f}" for value in per)
        lines.append(f"{name:9}{statistics.median(per):12.1f}{tokens:12,.0f}{busy:16.2f}   {each}")
    lines.append(f"engine / vllm: {result['ratio']:.2f} (median of the rounds' ratios)")
    for other, (kept, processor) in result["kept"].items():
        lines.append(
            f"search / {other}: {kept:.2f} of its problems a second, {processor:.2f} of its tokens "
            "a second of processor time"
        )
    return "\n".join(lines)


def parsed(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled", help="bundled, or the folder of a Llava")
    parser.add_argument("--problems", type=int, default=64, help="a round")
    parser.add_argument("--in-flight", type=int, default=32, help="problems at a time")
    parser.add_argument("--n", type=int, default=4, help="whole responses to each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--device", default="cpu", help="of the engine; cpu,cpu: two replicas, a thread each"
    )
    parser.add_argument("--threads", type=int, default=2, help="of torch, for the engine")
    parser.add_argument(
        "--peer-threads",
        type=int,
        default=1,
        help="of vLLM's model; its scheduler and its server are processes of their own, so that"
        " on two cores one is quickest",
    )
    parser.add_argument(
        "--venv", type=Path, default=VENV, help="vLLM's environment, made there if it is missing"
    )
    parser.add_argument("--json", type=Path, help="write the result here too")
    args = parser.parse_args(argv)
    for name in ("problems", "in_flight", "n", "rounds", "threads", "peer_threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parsed(argv)
    try:
        result = compare(args)
    except ServerError as error:
        sys.exit(str(error))
    print(told(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
