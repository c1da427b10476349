"""How well are budgets in seconds kept?

    python benchmarks/seconds.py --problems 5 --clock cpu

Each problem is searched under each budget, one at a time, after one search that is not counted:
the first forward passes of a process take longer. Prints, for each budget, how many searches took
longer than it and by how much, and how many answers were whole. `--clock cpu` gives the engine
processor time for its clock: on one thread that is what a quiet machine's clock shows.
"""

from __future__ import annotations

import argparse
import functools
import time
from types import SimpleNamespace

import torch

from cot_engine import Engine
from cot_engine.backends.local import worker
from cot_engine.questions.data import load_data
from cot_engine.search import session
from cot_engine.search.budget import Meter

AMOUNTS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--problems", type=int, default=5, help="of the bundled test set")
    parser.add_argument("--seconds", type=float, nargs="+", default=AMOUNTS)
    parser.add_argument("--strategy", nargs="+", default=["stage-beam", "best-of-n", "majority"])
    parser.add_argument("--fill", action="store_true", help="use the budgets up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    args = parser.parse_args()
    if args.clock == "cpu":
        session.Meter = functools.partial(Meter, clock=time.process_time)
        worker.time = SimpleNamespace(monotonic=time.process_time)
    torch.set_num_threads(args.threads)
    problems = [item.problem() for item in load_data("scenes", n=args.problems).items]
    over: list[float] = []
    with Engine.from_pretrained(args.model) as engine:
        for strategy in args.strategy:
            how = {"strategy": strategy, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
            how |= {"fill": True} if args.fill else {}
            engine.solve(problems[0], **how)
            for amount in args.seconds:
                answers = [engine.solve(p, budget=f"{amount} s", **how) for p in problems]
                late = [1000 * (answer.seconds - amount) for answer in answers]
                whole = sum(answer.complete for answer in answers)
                over += [ms for ms in late if ms > 0]
                said = f"{sum(ms > 0 for ms in late)} of {len(late)} over"
                worst = f", by {max(late):.0f} ms at most" if max(late) > 0 else ""
                print(f"{strategy} {amount:g} s: {said}{worst}; {whole} answers are whole")
    count = len(args.strategy) * len(args.seconds) * len(problems)
    over = sorted(over) or [0.0]
    print(
        f"{len([ms for ms in over if ms])} of {count} budgets were overspent:"
        f" {over[len(over) // 2]:.1f} ms in the median, {over[-1]:.1f} ms at most"
    )


if __name__ == "__main__":
    main()
