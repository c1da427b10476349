"""Which judge is right more often? Pairs of the model's own samples with different outcomes.

    python benchmarks/judges.py --problems 300

Each held-out scene is answered by stage-beam and by best-of-n, at a temperature where samples
differ, with a random judge in between. Their selections are then judged again, every pair meeting
every other, by each judge on the same pairs. A pair counts where one candidate is right and the
other wrong: whole answers by their conclusion, captions by whether every object is. The intervals
are Wilson's, 95 %, and take pairs as independent, which those of one problem are not.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict

from cot_engine import Engine, scenes
from cot_engine.judges import ScorerJudge, SelfJudge
from cot_engine.stages import DEFAULT_PLAN, read
from cot_engine.statistics import wilson
from cot_engine.types import Problem

JUDGES = {"verdict": SelfJudge(least_mass=0.0), "likelihood": ScorerJudge()}


def right(stage: str, text: str, problem: scenes.SceneProblem) -> bool:
    """Whether a candidate is right, as far as it has been written."""
    contents = read(text, DEFAULT_PLAN).contents
    if stage == "CAPTION":
        found = scenes.grade_caption(contents.get("CAPTION", ""), problem.objects)
        return found[0] == found[1]
    return scenes.grade(contents.get("CONCLUSION", ""), problem.answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=1.5, help="the samples must differ")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    sample = [scenes.sample(2, i, "val") for i in range(args.problems)]
    problems = [Problem(p.id, p.question, (load(p),)) for p in sample]
    hits: dict[tuple[str, str], list[float]] = defaultdict(list)
    flips: dict[tuple[str, str], list[bool]] = defaultdict(list)
    options = {"n": args.n, "temperature": args.temperature, "top_p": 1.0, "top_k": 0}
    options["judge"] = "random"
    with Engine.from_pretrained(args.model) as engine:
        for strategy in ("stage-beam", "best-of-n"):
            answers = engine.solve_many(problems, strategy=strategy, **options)
            for scene, answer in zip(sample, answers, strict=True):
                for name, judge in JUDGES.items():
                    score(engine, answer.trace, judge, name, scene, hits, flips)
    rows = []
    for (stage, name), values in sorted(hits.items()):
        n, share = len(values), sum(values) / len(values)
        low, high = wilson(sum(values), n)
        flipped = flips[stage, name]
        rows.append(
            {
                "stage": stage,
                "judge": name,
                "pairs": n,
                "right": round(share, 3),
                "interval": [round(low, 3), round(high, 3)],
                "flips": round(sum(flipped) / len(flipped), 3),
            }
        )
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'stage':10} {'judge':11} {'pairs':>6} {'right':>6}  95 % interval   flips")
    for r in rows:
        low, high = r["interval"]
        print(
            f"{r['stage']:10} {r['judge']:11} {r['pairs']:6} {r['right']:6.3f}"
            f"  {low:.3f} .. {high:.3f}  {r['flips']:.3f}"
        )


def score(engine, trace, judge, name, scene, hits, flips) -> None:
    """Judge a trace's selections again and count the pairs with different outcomes."""
    chains = trace.chains()
    again = engine.rejudge(trace, judge=judge, tournament="round-robin")
    for selection in again.selections:
        stage = "whole" if selection.after.about == "whole" else selection.after.stage
        if stage not in ("whole", "CAPTION"):
            continue
        for match in selection.after.matches:
            first, second = (
                right(stage, chains[i].text, scene) for i in (match.first, match.second)
            )
            if first == second:
                continue
            # The mean of both orders, ties half right: what the margins know, tie rule aside.
            credit = 0.5 if match.margin == 0 else float((match.margin > 0) == first)
            hits[stage, name].append(credit)
            flips[stage, name].append(match.flipped)


def load(problem: scenes.SceneProblem):
    from cot_engine.images import load_image

    return load_image(problem.image)


if __name__ == "__main__":
    main()
