"""What a GPU makes of the engine: all bars of the project in one call, one table.

    python benchmarks/gpu.py --json gpu.jsonl       # on a GPU, 16 bits, under six minutes
    python benchmarks/gpu.py --tiny                 # the same on a CPU, in shapes of no meaning

Nothing is downloaded: published shapes, random weights made on the device. A part that fails or
takes too long says so and the next begins; what was measured before stays (`--json` is written row
by row, each with the device, the versions and the commit). `--part` chooses.

Beside milliseconds stands the share of the memory bandwidth: the bytes that a step has to read
(weights once, each prompt's keys and values once, each row's own) / time / what a copy reaches.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from gpu_parts import PARTS, Plan, Row


class OutOfTime(KeyboardInterrupt):
    """A part's time is over. As an interrupt: a search that it hits is cancelled, not orphaned."""


@dataclass(frozen=True)
class Where:
    """What the numbers are of."""

    device: str
    torch: str
    transformers: str
    commit: str

    @classmethod
    def here(cls, device: str) -> Where:
        gpu = device.startswith("cuda")
        name = torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine()
        folder = Path(__file__).parent
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run(
                ["git", "rev-parse", "--short", "HEAD"],
                cwd=folder, capture_output=True, text=True, timeout=5, check=True,
            )  # fmt: skip
            return cls(name, torch.__version__, transformers.__version__, said.stdout.strip())
        return cls(name, torch.__version__, transformers.__version__, "unknown")


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises OutOfTime in the block after that, where the system has such an alarm."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_: object) -> None:
        raise OutOfTime(f"more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measured(name: str, plan: Plan, seconds: float) -> Iterator[Row]:
    """The rows of one part, each as soon as it is there; its failure is the last one."""
    try:
        with at_most(seconds):
            yield from PARTS[name].measure(plan)
    except OutOfTime as over:
        yield Row(name, "stopped", error=f"out of time: {over}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever it is, the next part has a GPU still
        text = " ".join(str(error).split())[:300]
        yield Row(name, "stopped", error=f"{type(error).__name__}: {text}")
    finally:
        gc.collect()  # a model that failed hangs in its traceback's cycles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def table(rows: list[Row]) -> str:
    """All rows, one a line; what misses its bar is marked."""
    lines = [f"{'part':10} {'what':44} {'measured':>12} {'bandwidth':>9}  bar"]
    for row in rows:
        if row.error:
            lines.append(f"{row.part:10} {row.what:44} {row.error}")
            continue
        value = f"{row.value:,.2f} {row.unit}" if row.value is not None else ""
        share = f"{row.bandwidth:.0%}" if row.bandwidth is not None else ""
        bar = ""
        if row.bar is not None:
            sign = ">=" if row.at_least else "<="
            bar = f"{sign} {row.bar:g}  {'met' if row.met else 'MISSED'}"
        lines.append(f"{row.part:10} {row.what:44} {value:>12} {share:>9}  {bar}".rstrip())
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="shapes of no meaning, for a CPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--part", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=350, help="for all parts together")
    parser.add_argument("--json", type=Path, help="write each row here as a line of JSON")
    args = parser.parse_args(argv)
    device = args.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not args.tiny:
        parser.error("there is no GPU here; --tiny runs everything with small shapes on a CPU")
    plan = Plan.tiny(device) if args.tiny else Plan.full(device)
    where = asdict(Where.here(device))
    print(" ".join(f"{key} {value}" for key, value in where.items()), file=sys.stderr, flush=True)
    end, rows = time.monotonic() + args.seconds, []
    with args.json.open("w", encoding="utf-8") if args.json else contextlib.nullcontext() as out:
        for name in args.part:
            began = time.monotonic()
            for row in measured(name, plan, max(1.0, min(PARTS[name].seconds, end - began))):
                rows.append(row)
                print(table([row]).splitlines()[1], file=sys.stderr, flush=True)
                if out is not None:
                    more: dict[str, Any] = {"met": row.met, "seconds": time.monotonic() - began}
                    out.write(json.dumps({**asdict(row), **more, **where}) + "\n")
                    out.flush()
    print(table(rows))
    return 0 if all(not row.error for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
