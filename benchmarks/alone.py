"""How many searches have another trace among others than alone?

    python benchmarks/alone.py --problems 60 --temperature 0.6 1 2

A search does the same arithmetic alone and in a batch, but not in the same order, so its logits
differ in their last digits, and now and then these decide a token. Counted are searches in which
anything but a number is another: a text, a choice, an outcome. Of the others, the largest
differences of a step's summed log-probability and of a verdict's margin are given, in nats.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

from cot_engine import Engine
from cot_engine.questions.data import load_data


def numbers(a: object, b: object, name: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of two canonical traces by what they are called, as differences; nan where
    anything else differs."""
    if isinstance(a, float) and isinstance(b, float):
        yield name, abs(a - b)
    elif isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        for key in a:
            yield from numbers(a[key], b[key], key)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for x, y in zip(a, b, strict=True):
            yield from numbers(x, y, name)
    elif a != b and not str(a).startswith("mass "):  # of a verdict by logits, to two digits
        yield name, math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--problems", type=int, default=60, help="of the bundled test set")
    parser.add_argument("--temperature", type=float, nargs="+", default=[1.0])
    parser.add_argument("--strategy", nargs="+", default=["best-of-n", "stage-beam"])
    parser.add_argument("-n", type=int, default=3)
    parser.add_argument("--dtype", default="auto", help="float32 or bfloat16")
    args = parser.parse_args()
    problems = [item.problem() for item in load_data("scenes", n=args.problems).items]
    with Engine.from_pretrained(args.model, dtype=args.dtype) as engine:
        for temperature in args.temperature:
            for strategy in args.strategy:
                how = {"strategy": strategy, "n": args.n, "temperature": temperature}
                how |= {"top_p": 1.0, "top_k": 0}
                among = list(engine.solve_many(problems, **how))
                alone = [next(iter(engine.solve_many([p], **how))) for p in problems]
                other, most = 0, {"logprob": 0.0, "margin": 0.0}
                for a, b in zip(alone, among, strict=True):
                    found = list(numbers(a.trace.canonical(), b.trace.canonical()))
                    if any(math.isnan(size) for _, size in found) or a.text != b.text:
                        other += 1
                        continue
                    for name, size in found:
                        if name in most:
                            most[name] = max(most[name], size)
                said = ", ".join(f"{name} by {size:.1e}" for name, size in most.items())
                print(
                    f"{strategy} n={args.n} T={temperature:g}: {other} of {len(problems)} differ; "
                    f"the others' numbers at most: {said}"
                )


if __name__ == "__main__":
    main()
