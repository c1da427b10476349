"""Stores made by hand, for the report: every case that it must show, with no model and no clock.

`make_store` simulates a small ablation. Nothing in it is measured: the numbers only have the shape
of a real one. `put` stores single searches whose numbers a test knows by heart.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import make_traces
from make_traces import Recorder, match

from cot_engine.ablation.records import (
    CandidateRecord,
    ItemRecord,
    Key,
    ResultRow,
    Run,
    SelectionRecord,
)
from cot_engine.ablation.store import Store
from cot_engine.core.stages import DEFAULT_PLAN
from cot_engine.core.usage import Usage

TYPES = ("count", "colour", "yes/no")
RIGHT = {"count": "3", "colour": "red", "yes/no": "yes"}
WRONG = {"count": ("2", "4"), "colour": ("blue", "a <b>dark</b> | green"), "yes/no": ("no", "No.")}
HOSTILE_QUESTION = "How many <script>alert(1)</script> | pipes | are `left` of [this](http://x)?"
FAILED = (5, 1)  # (problem, seed) at which the reference fails: what it would match has no row
_SETTINGS = {
    "device": "cpu", "dtype": "float32", "model": "bundled", "quantize": None,
    "judge": "likelihood", "tournament": "knockout", "orders": "both", "judge_image": "seen",
    "detail": "normal", "mode": "trained", "temperature": 1.5, "top_p": 1.0, "top_k": 0,
    "budget": None, "plan": {"stages": [{"tag": stage.tag} for stage in DEFAULT_PLAN]},
}  # fmt: skip


def plain(strategy: str, parameters: dict[str, Any] | None = None, match=None, rollouts: int = 0,
          **settings) -> dict[str, Any]:  # fmt: skip
    """A cell as `Cell.plain` has it."""
    return {
        "strategy": strategy,
        "parameters": parameters or {},
        "config": _SETTINGS | settings,
        "match": match,
        "rollouts": rollouts,
    }


def digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def make_cells() -> dict[str, tuple[str, dict[str, Any]]]:
    """Hash -> (label, plain), as in a Run."""
    beam = plain("stage-beam", {"n": 4, "keep": 1, "fill": False}, rollouts=8)
    goal = {"unit": "flops", "amount": None, "reference": digest(beam)}
    cells = {
        "greedy": plain("greedy"),
        "one sample": plain("best-of-n", {"n": 1, "fill": False}),
        "majority (matched)": plain("majority", {"n": 4, "fill": True}, goal),
        "stage-beam n=1": plain("stage-beam", {"n": 1, "keep": 1, "fill": False}, rollouts=8),
        "stage-beam n=2": plain("stage-beam", {"n": 2, "keep": 1, "fill": False}, rollouts=8),
        "stage-beam n=4": beam,
        "best-of-n n=4": plain("best-of-n", {"n": 4, "fill": False}),
        "best-of-n (matched)": plain("best-of-n", {"n": 4, "fill": True}, goal),
        "sentence-beam (matched)": plain(
            "sentence-beam", {"n": 2, "keep": 1, "max_sentences": 128, "fill": True}, goal
        ),
    }
    return {digest(cell): (label, cell) for label, cell in cells.items()}


def make_run(problems: int = 60, seeds: tuple[int, ...] = (0, 1, 2), cells=None, reference="",
             **more) -> Run:  # fmt: skip
    """A run of these cells. `reference` is a label; "" for the usual one, if it is there."""
    cells = make_cells() if cells is None else cells
    by_label = {label: hash for hash, (label, _) in cells.items()}
    items = tuple(
        ItemRecord(
            digest("item", number),
            f"p{number:03}",
            TYPES[number % 3],
            HOSTILE_QUESTION if number == 3 else f"Question {number} about {TYPES[number % 3]}?",
            RIGHT[TYPES[number % 3]],
        )
        for number in range(problems)
    )
    about = {
        "data": {"name": "scenes", "digest": "sha256:da7a", "rule": "exact match, normalised"},
        "model": {"name": "bundled", "digest": "sha256:0123456789ab", "dtype": "float32"},
        "architecture": "LlavaForConditionalGeneration",
        "device": "cpu",
        "machine": "x86_64, Linux, Python 3.12.0",
    }
    settings = {
        "id": "0123456789ab",
        "name": "main",
        "command": "cot-engine ablate main.toml --store main.sqlite",
        "code": "cot-engine 0.2.0 (3fa9c1d2) torch 2.13.0 transformers 5.23.0",
        "model": "sha256:0123456789ab",
        "data": "sha256:da7a",
    } | more
    return Run(
        **settings, cells=cells, items=items, seeds=tuple(seeds),
        reference=by_label.get(reference or "stage-beam n=4"), about=about,
    )  # fmt: skip


def make_store(
    path: str | Path, problems: int = 60, seeds: tuple[int, ...] = (0, 1, 2), traces: int = 6
) -> tuple[Store, Run]:
    """A store with one finished run; the searches of the first `traces` problems have traces.

    The reference fails once (FAILED), so the matched cells have no row there; the matched
    sentence-beam spends only about 0.7 of what it may.
    """
    store, run = Store(path, create=True), make_run(problems, seeds)
    store._db.execute("pragma synchronous = off")  # a test's file need not survive the power
    store.begin(run)
    store._db.execute("update runs set started = ?", (_WHEN,))
    run = store.run(run.id)
    for number, item in enumerate(run.items):
        for seed in run.seeds:
            failed = (number, seed) == FAILED
            spent = 0.0
            for hash in sorted(run.cells, key=lambda hash: run.cells[hash][1]["match"] is not None):
                key, (_, cell) = Key(hash, seed, item.digest), run.cells[hash]
                if failed and cell["match"]:
                    continue
                if failed and hash == run.reference:
                    store.add(
                        run, ResultRow(key, "failed", "The budget is not enough.", finished=_WHEN)
                    )
                    continue
                row = _Simulated(key, cell, item, number).row(spent if cell["match"] else None)
                if hash == run.reference:
                    spent = row.spent
                store.add(run, row if number < traces else replace(row, trace=None))
    return store, run


_WHEN = "2025-01-01T00:00:00Z"
_picture = functools.cache(make_traces.image)


class _Simulated:
    """One search that no model did: its trace and its row agree with each other."""

    def __init__(self, key: Key, cell: dict[str, Any], item: ItemRecord, number: int) -> None:
        self.key, self.cell, self.item = key, cell, item
        self.strategy, self.n = cell["strategy"], cell["parameters"].get("n", 1)
        self.filling = cell["match"] is not None
        self.chance = 0.25 + 0.7 * random.Random(f"hard {number}").random()  # of a right response
        # Greedy does not depend on the seed.
        seed = 0 if self.strategy == "greedy" else key.seed
        self.draw = random.Random(f"{self.strategy} {self.n} {self.filling} {number} {seed}")
        self.recorder = Recorder(
            item.question, [_picture()], self.strategy, cell["parameters"], judge="likelihood",
            seed=key.seed, sampling=make_traces.Sampling(1.5, 1.0, 0),
        )  # fmt: skip
        self.recorder.events[0] = replace(self.recorder.events[0], problem=item.problem)
        self.selections: list[SelectionRecord] = []
        self.candidates: list[CandidateRecord] = []

    def row(self, allotted: float | None) -> ResultRow:
        base = 1e9 * (0.8 + 0.4 * random.Random(f"size {self.item.problem}").random())
        if self.strategy in ("stage-beam", "sentence-beam") and self.n > 1:
            answer, chain = self._stages()
            share = 0.4
        else:
            answer, chain = self._whole()
            share = 0.1 if self.strategy == "best-of-n" and self.n > 1 else 0.0
        spent = base * (self.n * (0.9 + 0.2 * self.draw.random()))
        if allotted is not None:
            spent = allotted * (0.72 if self.strategy == "sentence-beam" else 0.98)
        judge = int(spent * share)
        usage = {"generate": Usage(1, 300, 900, 60 * self.n, int(spent) - judge, self.n, 0.2)}
        if judge:
            usage["judge"] = Usage(0, 80 * self.n, 400, 0, judge, 2 * self.n, 0.1)
        trace = self.recorder.finish(chain)
        return ResultRow(
            self.key, "ok", answer=answer, correct=self._score(answer), unit="flops",
            allotted=allotted, spent=float(int(spent)),
            remaining=None if allotted is None else allotted - int(spent),
            seconds=0.25 * self.n, usage=usage, candidates=tuple(self.candidates),
            selections=tuple(self.selections), finished=_WHEN, trace=trace,
        )  # fmt: skip

    def _score(self, answer: str) -> float:
        return float(answer == self.item.expected)

    def _answer(self, chance: float) -> str:
        wrong = self.draw.choice(WRONG[self.item.type])
        return self.item.expected if self.draw.random() < chance else wrong

    def _whole(self) -> tuple[str, str]:
        """Whole responses: greedy, one sample, best-of-n, majority, and a beam of one."""
        n = self.n + 3 if self.filling else self.n
        chance = self.chance + (0.05 if self.strategy == "greedy" else 0)
        answers = [self._answer(chance) for _ in range(n)]
        ids = self.recorder.grow("r", "end", [_response(i, a) for i, a in enumerate(answers)])
        likely = [self.recorder.chains[id].likelihood() for id in ids]
        self.candidates = [
            CandidateRecord(id, answer, self._score(answer), p)
            for id, answer, p in zip(ids, answers, likely, strict=True)
        ]
        scores = {c.id: c.correct for c in self.candidates}
        if self.strategy == "majority":
            most = max(answers, key=lambda a: (answers.count(a), -answers.index(a)))
            return most, ids[answers.index(most)]
        if self.strategy == "greedy":
            return answers[0], ids[0]
        kept = self._judge(ids, scores, "whole", {})
        return answers[ids.index(kept)], kept

    def _stages(self) -> tuple[str, str]:
        """A beam: each stage's candidates have a worth, the caption's also facts."""
        kept, worth, answer = "r", self.chance, ""
        for stage in DEFAULT_PLAN:
            drawn = [worth + 0.5 * (self.draw.random() - 0.5) for _ in range(self.n)]
            shares = [min(8, max(0, round(8 * share))) / 8 for share in drawn]
            answers = [self._answer(share) for share in shares]
            last = stage.tag == "CONCLUSION"
            texts = [
                f"<{stage.tag}>{a if last else f'{stage.tag} {i}: {a}.'}</{stage.tag}>"
                for i, a in enumerate(answers)
            ]
            ids = self.recorder.grow(kept, stage.tag, texts)
            if last:
                shares = [self._score(a) for a in answers]
            facts = {}
            if stage.tag == "CAPTION":
                facts = {id: float(share > 0.5) for id, share in zip(ids, shares, strict=True)}
            kept = self._judge(ids, dict(zip(ids, shares, strict=True)), stage.tag, facts)
            worth, answer = shares[ids.index(kept)], answers[ids.index(kept)]
        return answer, kept

    def _judge(self, ids, worth: dict[str, float], stage: str, facts: dict[str, float]) -> str:
        """A knockout by a judge who sees worth dimly."""
        left, matches = list(ids), []
        dim = 1.5 if stage == "whole" else 0.6  # a whole response is right or not: no small margins
        while len(left) > 1:
            margin = worth[left[0]] - worth[left[1]] + self.draw.uniform(-dim, dim)
            tilt = self.draw.uniform(-0.2, 0.2)
            matches.append(match(left[0], left[1], margin + tilt, -margin + tilt))
            left = [*left[2:], matches[-1].winner]
        about = "whole" if stage == "whole" else "step"
        ranking = (left[0], *(id for id in ids if id != left[0]))
        self.recorder.select(ids, matches, about=about, ranking=ranking)
        known = worth if self.cell["rollouts"] or stage == "whole" else {}
        self.selections.append(SelectionRecord(stage, tuple(ids), (left[0],), dict(known), facts))
        return left[0]


def _response(number: int, answer: str) -> str:
    return (
        f"<SUMMARY>I look, way {number}.</SUMMARY><CAPTION>A red square.</CAPTION>"
        f"<REASONING>So it is {answer}.</REASONING><CONCLUSION>{answer}</CONCLUSION>"
    )


def put(store: Store, run: Run, label: str, problem: int, seed: int, correct: float | None = 1.0,
        spent: float = 100.0, judge: float = 0.0, **more) -> None:  # fmt: skip
    """Store one search whose numbers are given; `correct` None: it failed."""
    hash = next(hash for hash, (name, _) in run.cells.items() if name == label)
    key = Key(hash, seed, run.items[problem].digest)
    if correct is None:
        store.add(run, ResultRow(key, "failed", more.pop("error", "It failed."), **more))
        return
    usage = {"generate": Usage(1, 10, 5, 7, int(spent - judge), 1, 0.5)}
    if judge:
        usage["judge"] = Usage(0, 3, 2, 1, int(judge), 2, 0.25)
    row = ResultRow(key, "ok", answer="a", correct=correct, spent=spent, seconds=2.0, usage=usage)
    store.add(run, replace(row, **more))
