"""How many searches have another trace among others than alone?

    python benchmarks/alone.py --problems 60 --temperature 0.6 1 2

A search does the same arithmetic alone and in a batch, but not in the same order, so its logits
differ in their last digits, and now and then these decide a token. Log-probabilities may differ by
a thousandth; anything else counts.
"""

from __future__ import annotations

import argparse

from cot_engine import Engine
from cot_engine.ablation.data import load_data
from cot_engine.testing import alike


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--problems", type=int, default=60, help="of the bundled test set")
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0])
    parser.add_argument("--strategy", nargs="+", default=["best-of-n", "stage-beam"])
    parser.add_argument("-n", type=int, default=3)
    args = parser.parse_args()
    problems = [item.problem() for item in load_data("scenes", n=args.problems).items]
    with Engine.from_pretrained(args.model) as engine:
        for temperature in args.temperature:
            for strategy in args.strategy:
                how = {"strategy": strategy, "n": args.n, "temperature": temperature}
                how |= {"top_p": 1.0, "top_k": 0}
                among = list(engine.solve_many(problems, **how))
                alone = [next(iter(engine.solve_many([p], **how))) for p in problems]
                pairs = zip(alone, among, strict=True)
                other = sum(not alike(a.trace.canonical(), b.trace.canonical()) for a, b in pairs)
                print(f"{strategy} n={args.n} T={temperature:g}: {other} of {len(problems)} differ")


if __name__ == "__main__":
    main()
