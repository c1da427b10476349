"""What a second replica on a CPU brings: problems a second with one and with two, in one run.

    python benchmarks/replicas.py --problems 64

Each replica computes with one thread, so that two give two cores the work that one gives to one.
They take turns, `--rounds` times; the result is the median of the ratios of a round. Wall time:
for a machine with nothing else to do. `idle` says whether it was one: what two processes that do
no more than count got of two cores, before and after. `on_idle_cores` is what processor times come
to: that of one, against the busiest of the replicas and of who asks them, or half of all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

_SPIN = "import time; e = time.time() + 1\nwhile time.time() < e: pass\nprint(time.process_time())"


def idle(cores: int = 2) -> float:
    """Of `cores`, how many this run can have."""
    command = [sys.executable, "-c", _SPIN]
    spinning = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(cores)]
    return round(sum(float(each.communicate()[0]) for each in spinning), 2)


def used(pid: int | str) -> float:
    """Processor seconds of a process so far, on Linux."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--strategy", default="stage-beam")
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=1.2)
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--flight", type=int, default=16, help="for each replica")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "2"  # of both replicas together
    import torch

    from cot_engine import Engine, Problem, scenes
    from cot_engine.images.load import load_image

    torch.set_num_threads(1)
    made = [scenes.sample(5, i, "val") for i in range(args.problems)]
    problems = [Problem(p.id, p.question, (load_image(p.image),)) for p in made]
    options = {"strategy": args.strategy, "n": args.n, "temperature": args.temperature}
    seconds: dict[str, list[float]] = {"cpu": [], "cpu,cpu": []}
    busy: dict[str, list[float]] = {device: [] for device in seconds}
    answers: dict[str, list[str | None]] = {}
    engines = {
        device: Engine.from_pretrained(
            args.model, device=device, in_flight=args.flight * (1 + device.count(","))
        )
        for device in seconds
    }
    before = idle()
    for turn in range(args.rounds + 1):  # the first warms up
        for device, engine in engines.items():
            replicas = getattr(engine.backend, "backends", ())
            processes = ["self", *(each.process.pid for each in replicas)]
            had = [used(pid) for pid in processes]
            began = time.perf_counter()
            answers[device] = [answer.text for answer in engine.solve_many(problems, **options)]
            if turn:
                seconds[device].append(time.perf_counter() - began)
                parts = [used(pid) - s for pid, s in zip(processes, had, strict=True)]
                busy[device].append(max(*parts, sum(parts) / 2) if replicas else parts[0])
    after = idle()
    for engine in engines.values():
        engine.close()
    one, two = seconds.values()
    idle_one, idle_two = busy.values()
    ratios = [a / b for a, b in zip(one, two, strict=True)]
    same = sum(a == b for a, b in zip(*answers.values(), strict=True))
    rates = {
        device: round(args.problems / statistics.median(times), 2)
        for device, times in seconds.items()
    }
    table = {
        "problems_per_second": rates,
        "ratio": round(statistics.median(ratios), 2),
        "range": [round(min(ratios), 2), round(max(ratios), 2)],
        "on_idle_cores": round(statistics.median(idle_one) / statistics.median(idle_two), 2),
        "same_answers": f"{same} of {args.problems}",
        "idle": [before, after],
    }
    print(json.dumps({"model": args.model, "flight": args.flight, **options} | table, indent=1))


if __name__ == "__main__":
    main()
