"""The parts of `gpu.py`: each yields its rows as it measures them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from graph_alone import alone
from models import Subject, noise, random_model, scene, subject_of
from reference_loop import ReferenceLoop

from cot_engine import Answer, Sampling
from cot_engine.backends.local.backend import LocalBackend
from cot_engine.backends.local.loading import Loaded
from cot_engine.core.boundaries import Until
from cot_engine.core.requests import Generate, Prompt

T = TypeVar("T")
GIGA = 1e9
ROOT = Path(__file__).parents[1]  # importable from here where nothing is installed


@dataclass(frozen=True)
class Row:
    """One number; `bar` is what it must not exceed, or must reach (`at_least`)."""

    part: str
    what: str
    value: float | None = None
    unit: str = ""
    bandwidth: float | None = None
    bar: float | None = None
    at_least: bool = False
    error: str = ""

    @property
    def met(self) -> bool | None:
        if self.bar is None or self.value is None:
            return None
        return self.value >= self.bar if self.at_least else self.value <= self.bar


@dataclass(frozen=True)
class Plan:
    """Which models, and how much of everything. `rows` are those of a decode step; `few` and
    `many` how many problems are in flight; `crowd` how many in LLaVA's memory."""

    device: str
    dtype: str
    llava: str
    qwen: str
    mllama: str
    rows: tuple[int, ...]
    columns: int
    steps: int
    few: int
    many: int
    crowd: int
    solve: tuple[str, ...]
    clock: Callable[[], float] = time.perf_counter

    @classmethod
    def full(cls, device: str) -> Plan:
        return cls(
            device, "bfloat16", "llava-7b", "qwen-7b", "mllama-11b",
            (1, 4, 16, 64, 128), 832, 48, 8, 32, 64, ("solve",),
        )  # fmt: skip

    @classmethod
    def tiny(cls, device: str) -> Plan:
        return cls(
            device, "float32", "tiny", "qwen-tiny", "mllama-tiny", (1, 4), 96, 16, 2, 3, 4, (),
            time.process_time,  # steps this short are lost in the noise of a shared machine's wall
        )  # fmt: skip

    def load(self, name: str) -> Loaded:
        """The model, or the one that the part before had; only one is held."""
        if name not in _held:
            _held.clear()
            self.free()
            _held[name] = random_model(name, self.device, self.dtype)
        return _held[name]

    def free(self) -> None:
        """What nobody holds goes back to the device."""
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()

    def sync(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    def timed(self, work: Callable[[], T]) -> tuple[float, T]:
        self.sync()
        began = self.clock()
        done = work()
        self.sync()
        return self.clock() - began, done


_held: dict[str, Loaded] = {}


@dataclass(frozen=True)
class Part:
    """`seconds`: what it may take at most."""

    measure: Callable[[Plan], Iterator[Row]]
    seconds: float


# --- bandwidth -----------------------------------------------------------------------------------

_copied: dict[str, float] = {}


def copy_bandwidth(plan: Plan) -> float:
    """Bytes a second that copying within the device reads and writes; measured once."""
    if plan.device not in _copied:
        count = (1 << 30) if plan.device.startswith("cuda") else (1 << 23)
        source = torch.ones(count, dtype=torch.uint8, device=plan.device)
        target = torch.empty_like(source)
        target.copy_(source)
        best = min(plan.timed(lambda: target.copy_(source))[0] for _ in range(5))
        _copied[plan.device] = 2 * count / best
    return _copied[plan.device]


def bandwidth(plan: Plan) -> Iterator[Row]:
    yield Row("bandwidth", "copy within the device", copy_bandwidth(plan) / GIGA, "GB/s")


def share(plan: Plan, loaded: Loaded, tokens: float, seconds: float) -> float:
    """Of the bandwidth, where the language model is read once, and `tokens` of keys and values."""
    adapter = loaded.adapter
    weights = sum(p.nbytes for p in adapter.lm.layers.parameters()) + adapter.head.weight.nbytes
    read = weights + tokens * adapter.kv_shape().bytes_per_token
    return read / seconds / copy_bandwidth(plan)


# --- the engine's step ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """`groups` problems with `each` candidates, all in one batch; drawn by `sampling`."""

    groups: int
    each: int
    sampling: Sampling = Sampling(1.0, 1.0, 50)

    @classmethod
    def rows(cls, rows: int, **more: Any) -> Asked:
        return cls(max(1, rows // 4), min(rows, 4), **more)


def _request(plan: Plan, backend: LocalBackend, asked: Asked, group: int, length: int) -> Generate:
    """Its prompt is filled up with words, so that the last token stands at the plan's columns."""
    problem = noise(group)

    def of(words: int) -> Generate:
        return Generate(
            scope=f"group {group}",
            prompt=Prompt(problem.question + " picture" * words, problem.images),
            prefix=(),
            until=Until(),
            seeds=tuple(range(100 * group, 100 * group + asked.each)),
            max_new_tokens=length,
            sampling=asked.sampling,
        )

    cost = backend.estimate(of(0))
    return of(max(0, plan.columns - plan.steps - cost.prefilled - cost.cached))


async def _write(backend: LocalBackend, requests: list[Generate]) -> int:
    """All of them in one batch; returns a prompt's length."""
    done = await asyncio.gather(*map(backend.generate, requests))
    return max(it.usage.prefilled + it.usage.cached for it in done)


def engine_step(plan: Plan, backend: LocalBackend, asked: Asked) -> tuple[float, float]:
    """Seconds a step of the engine, and tokens of keys and values that a step must read.

    What `steps` more tokens take, prompts and pictures being kept from the call before: so all that
    a step is counts, and no prefill. The first call captures whatever is captured.
    """
    few, many = (
        [_request(plan, backend, asked, group, length) for group in range(asked.groups)]
        for length in (2, 2 + plan.steps)
    )
    prompt = asyncio.run(_write(backend, many))
    took: dict[int, list[float]] = {2: [], 2 + plan.steps: []}
    for _ in range(2):
        for requests in (few, many):
            seconds, _ = plan.timed(lambda: asyncio.run(_write(backend, requests)))  # noqa: B023
            took[requests[0].max_new_tokens].append(seconds)
    for request in many:
        backend.release(request.scope)
    step = (min(took[2 + plan.steps]) - min(took[2])) / plan.steps
    if step <= 0:
        raise RuntimeError("A step is lost in the noise of this machine's clock.")
    return step, asked.groups * prompt + asked.groups * asked.each * plan.steps / 2


def steps(name: str, model: Callable[[Plan], str], bar: float | None) -> Part:
    def measure(plan: Plan) -> Iterator[Row]:
        loaded = plan.load(model(plan))
        bare: dict[int, float] = {}
        for rows in plan.rows:  # first: the engine's arena will take what is free
            try:
                took = alone(loaded.adapter, rows, plan.columns, plan.steps)
            except torch.OutOfMemoryError:
                yield Row(name, f"graph alone, {rows} rows x {plan.columns}",
                          error="no room for keys and values of each row apart")  # fmt: skip
                continue
            finally:
                plan.free()
            bare[rows] = took
            part = share(plan, loaded, rows * plan.columns, took)
            yield Row(name, f"graph alone, {rows} rows x {plan.columns}", 1e3 * took, "ms", part)
        with contextlib.closing(LocalBackend(loaded)) as backend:
            for rows in plan.rows:
                took, tokens = engine_step(plan, backend, Asked.rows(rows))
                part = share(plan, loaded, tokens, took)
                yield Row(name, f"engine step, {rows} rows, 4 a prompt", 1e3 * took, "ms", part)
                if rows in bare:
                    limit = bar if rows == 4 else None
                    yield Row(name, f"engine / graph, {rows} rows", took / bare[rows], "x",
                              bar=limit)  # fmt: skip

    return Part(measure, 55)


def sharing(plan: Plan) -> Iterator[Row]:
    """16 prompts with four candidates each, against the same with one."""
    groups = max(plan.rows) // 8 or 2
    loaded = plan.load(plan.llava)
    with contextlib.closing(LocalBackend(loaded)) as backend:
        took: list[float] = []
        for each in (1, 4):
            seconds, tokens = engine_step(plan, backend, Asked(groups, each))
            took.append(seconds)
            part = share(plan, loaded, tokens, seconds)
            what = f"step of {groups * each} rows, {groups} prompts"
            yield Row("sharing", what, 1e3 * seconds, "ms", part)
    what = f"{4 * groups} rows / {groups} rows"
    yield Row("sharing", what, took[1] / took[0], "x", bar=1.3)


def drawing(plan: Plan) -> Iterator[Row]:
    """A whole step with and without top-k, over the largest vocabulary."""
    loaded = plan.load(plan.qwen)
    with contextlib.closing(LocalBackend(loaded)) as backend:
        for rows in sorted({4, max(plan.rows)}):
            took = {}
            for top_k in (50, 0):
                asked = Asked.rows(rows, sampling=Sampling(1.0, 1.0, top_k))
                took[top_k], _ = engine_step(plan, backend, asked)
                yield Row("drawing", f"step of {rows} rows, top_k={top_k}", 1e3 * took[top_k], "ms")
            yield Row(
                "drawing", f"top_k=0 / top_k=50, {rows} rows", took[0] / took[50], "x", bar=1.5
            )


# --- searches ------------------------------------------------------------------------------------


def solve(subject: Subject, count: int, n: int) -> list[Any]:
    """Answers, or the errors in their places."""
    return list(
        subject.engine.solve_many(
            subject.problems[:count], strategy="stage-beam", n=n, plan=subject.plan,
            mode=subject.mode, temperature=subject.temperature, on_error="keep",
        )
    )  # fmt: skip


def answered(answers: list[Any]) -> int:
    """Those that were answered to their end. Raises the first error where none was."""
    whole = [a for a in answers if isinstance(a, Answer)]
    if not whole:
        raise answers[0]
    return len(whole)


def published(plan: Plan) -> Iterator[Row]:
    """Mllama against a loop in the manner of the published script."""
    subject = subject_of(plan.load(plan.mllama), plan.many)
    adapter = subject.backend.adapter
    loop = ReferenceLoop(
        adapter.model, adapter.processor, subject.plan, subject.mode,
        Sampling(temperature=subject.temperature),
    )  # fmt: skip
    with subject.engine:
        solve(subject, 1, 4)
        single, _ = plan.timed(lambda: answered(solve(subject, 1, 4)))
        yield Row("published", "engine, N=4, one problem", single, "s")
        wide = {}
        for n in (1, 8):
            wide[n], _ = plan.timed(lambda: answered(solve(subject, 1, n)))  # noqa: B023
            yield Row("published", f"engine, N={n}, one problem", wide[n], "s")
        yield Row("published", "N=8 / N=1", wide[8] / wide[1], "x", bar=1.5)
        slow, _ = plan.timed(lambda: loop.solve(subject.problems[0], 4))
        yield Row("published", "published loop, N=4, one problem", slow, "s")
        yield Row("published", "loop / engine, one problem", slow / single, "x", bar=12,
                  at_least=True)  # fmt: skip
        for count in (plan.few, plan.many):
            took, whole = plan.timed(lambda: answered(solve(subject, count, 4)))  # noqa: B023
            each = took / whole
            yield Row("published", f"engine, {count} in flight, a problem", each, "s")
            bar = 60 if count == plan.many else None
            yield Row("published", f"loop / engine, {count} in flight", slow / each, "x", bar=bar,
                      at_least=True)  # fmt: skip


def crowd(plan: Plan) -> Iterator[Row]:
    """LLaVA's half a megabyte a token, for as many problems at once as never fitted."""
    if plan.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    subject = subject_of(plan.load(plan.llava), plan.crowd, in_flight=plan.crowd)
    with subject.engine:
        took, whole = plan.timed(lambda: answered(solve(subject, plan.crowd, 4)))
        yield Row("crowd", f"{plan.crowd} in flight, N=4: answered", whole, "", bar=plan.crowd,
                  at_least=True)  # fmt: skip
        yield Row("crowd", "seconds a problem", took / whole, "s")
        if plan.device.startswith("cuda"):
            most = torch.cuda.max_memory_allocated() / GIGA
            yield Row("crowd", "memory taken at most", most, "GB", bar=80)
        for note in subject.backend.info.notes:
            yield Row("crowd", note[:44])
        _, again = plan.timed(lambda: answered(solve(subject, 1, 4)))
        yield Row("crowd", "afterwards, one more: answered", again, "", bar=1, at_least=True)


def starting(plan: Plan) -> Iterator[Row]:
    """A process from its start to its end."""
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "scene.png"
        problem = scene(0)
        problem.images[0].pixels.save(picture)
        commands = {"--help": ["--help"]}
        if plan.solve:
            asked = [*plan.solve, str(picture), problem.question, "--device", plan.device]
            commands["solve, bundled model"] = asked
        for what, arguments in commands.items():
            command = [sys.executable, "-m", "cot_engine", *arguments]
            began = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            took = time.perf_counter() - began
            if done.returncode:
                yield Row("starting", what, error=done.stderr[-200:].strip())
            else:
                yield Row("starting", what, took, "s")


# Those of one model stand together. What is over goes to the last.
PARTS = {
    "bandwidth": Part(bandwidth, 10),
    "starting": Part(starting, 40),
    "llava": steps("llava", lambda plan: plan.llava, 1.25),
    "sharing": Part(sharing, 30),
    "crowd": Part(crowd, 70),
    "qwen": steps("qwen", lambda plan: plan.qwen, 1.25),
    "drawing": Part(drawing, 30),
    "published": Part(published, 180),
}
