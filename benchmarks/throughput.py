"""How many problems of an ablation are done in a second, by how many are in flight.

    python benchmarks/throughput.py --problems 64 --flight 1 8 32

The whole path of `cot-engine ablate` for one cell: the data set, the searches on one batch of the
model, scores, rows and traces in a store. All sizes run in turns in one process, `--rounds` times;
the result is the median, and the ratio to the first size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from cot_engine import Engine
from cot_engine.ablation.grid import parse_ablation
from cot_engine.ablation.runner import ablate, plan_run, run_local
from cot_engine.ablation.store import Store
from cot_engine.questions.data import load_data

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--strategy", default="stage-beam")
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=0.6)
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--flight", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of torch, on a CPU")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    clock = CLOCKS[args.clock]
    cell = {"strategy": args.strategy, "n": args.n, "temperature": args.temperature}
    ablation = parse_ablation({"cells": [cell]}, name="throughput")
    data = load_data("scenes", n=args.problems)
    seconds: dict[int, list[float]] = {flight: [] for flight in args.flight}
    with Engine.from_pretrained(args.model, device=args.device) as engine:
        whole = plan_run(ablation, data, engine, "throughput")
        cell_hash = list(whole.cells)[-1]  # after the baselines
        work = replace(
            whole,
            run=replace(whole.run, cells={cell_hash: whole.run.cells[cell_hash]}),
            cells={cell_hash: whole.cells[cell_hash]},
        )
        for _ in range(args.rounds):
            for flight, times in seconds.items():
                with (
                    tempfile.TemporaryDirectory() as folder,
                    Store(Path(folder) / "rows.sqlite", create=True) as store,
                ):
                    began = clock()
                    ablate(work, store, partial(run_local, engine, in_flight=flight))
                    times.append(clock() - began)
    rates = {f: args.problems / statistics.median(times) for f, times in seconds.items()}
    first = rates[args.flight[0]]
    table = {
        f"{flight} in flight": {
            "problems_per_second": round(rate, 2),
            "ratio": round(rate / first, 2),
            "range": [round(args.problems / t, 2) for t in (max(times), min(times))],
        }
        for (flight, rate), times in zip(rates.items(), seconds.values(), strict=True)
    }
    about = {"model": args.model, "cell": cell, "threads": args.threads, "clock": args.clock}
    print(json.dumps(about | table, indent=1))


if __name__ == "__main__":
    main()
