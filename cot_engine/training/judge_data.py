"""From pairs of candidates to what a judge learns: problems, sequences, labels, steps.

A pair is two sequences, one for each order: the very ids that the backend would send to ask for the
verdict, and behind them the token of the right one, the only one whose cross-entropy counts. Kept
answers are sequences as `examples` makes them.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch

from cot_engine import scenes
from cot_engine.ablation.worth import WHOLE
from cot_engine.core.problem import Problem
from cot_engine.core.stages import DEFAULT_PLAN, Plan
from cot_engine.errors import CotEngineError, InputError
from cot_engine.judging.prompts import VERDICTS, Form
from cot_engine.questions.data import Item, load_data, scene_item
from cot_engine.scenes import guesses
from cot_engine.scenes.corruption import About, corrupt
from cot_engine.training.examples import Encoder, Example
from cot_engine.training.judge_config import (
    SCENE_PROBLEMS,
    SCENES_HELD_OUT,
    TRAIN_SCENES,
    JudgeConfig,
    PairsTable,
)
from cot_engine.training.pairs import Candidate, Done, Pair
from cot_engine.training.sampling import scene_marks
from cot_engine.training.stream import POOL, Steps, load_corpus

# --- problems ------------------------------------------------------------------------------------


class SceneItems(Sequence[Item]):
    """Items of the bundled world, drawn when they are asked for."""

    def __init__(self, split: str, seed: int, n: int) -> None:
        self.split, self.seed, self.n = split, seed, n
        self.name = f"{scenes.VERSION}/{split}/{seed}"

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Item:  # type: ignore[override]  # nobody asks for slices
        return scene_item(scenes.sample(self.seed, index, self.split))


@dataclass(frozen=True, slots=True)
class Problems:
    """What is sampled from to train on, to measure on and to calibrate on: places in `train` and in
    `held_out`. `names` say in a pairs file what they are."""

    train: Sequence[Item]
    held_out: Sequence[Item]
    training: Sequence[int]
    measuring: Sequence[int]
    calibrating: Sequence[int]
    names: tuple[str, str]


def load_problems(config: JudgeConfig) -> Problems:
    """Read the questions. Raises InputError, ConfigError or ImageError."""
    table, given = config.pairs, config.pairs.held_out
    if table.data == TRAIN_SCENES:
        train: Any = SceneItems("train", table.seed, table.problems or SCENE_PROBLEMS)
        name = train.name
        training: Sequence[int] = range(len(train))
        own = not isinstance(given, str)
        held: Any = SceneItems("val", table.seed, int(given or SCENES_HELD_OUT)) if own else None
    else:
        data = load_data(table.data, n=table.problems, folder=config.folder, rule=table.rule)
        train, name, training, held = data.items, data.digest, range(len(data.items)), None
    if isinstance(given, str):
        data = load_data(given, folder=config.folder, rule=_rule(given, table))
        held = data.items
        held_name, places = data.digest, list(range(len(held)))
    elif held is not None:
        held_name, places = held.name, list(range(len(held)))
    else:
        held, held_name = train, f"{name}/held out {given}"
        places = _drawn(train, 0.1 if given is None else given, table.data)
        apart = set(places)
        training = [index for index in training if index not in apart]
        name = held_name.replace("held out", "without")
    count = round(table.calibration * len(places))
    order = sorted(places, key=lambda index: _lot(str(index), "calibration"))
    return Problems(
        train, held, training, sorted(order[count:]), sorted(order[:count]), (name, held_name)
    )


def _rule(source: str, table: PairsTable) -> str | None:
    return None if source.startswith("scenes") else table.rule


def _drawn(items: Sequence[Item], wanted: float, name: str) -> list[int]:
    """Places held out: by lot of the problem, so that a file that grows keeps those it had."""
    count = round(wanted) if wanted >= 1 else max(1, round(wanted * len(items)))
    if count >= len(items):
        raise InputError(
            f"pairs.held_out is {wanted:g}, but {name} has {len(items):,} questions.",
            "Leave some to train on.",
        )
    return sorted(
        sorted(range(len(items)), key=lambda i: _lot(items[i].digest, "held out"))[:count]
    )


def _lot(name: str, purpose: str) -> str:
    return hashlib.sha256(f"{purpose}|{name}".encode()).hexdigest()


# --- sequences -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """A pair of a problem, ready to be encoded. `plan` is fitted to the problem."""

    item: Item
    pair: Pair
    plan: Plan

    @property
    def length(self) -> int:
        """Characters that its turn is made of, about."""
        pair = self.pair
        texts = (self.item.question, pair.shared, pair.first.text, pair.second.text)
        return sum(map(len, texts))


@dataclass(frozen=True, slots=True)
class PairRow:
    """A sequence, and what is marked in it: (token, weight), the weight above 0 for what is true
    and below for what is not."""

    example: Example
    marks: tuple[tuple[int, float], ...] = ()


class JudgeEncoder:
    """Sequences of verdicts in an encoder's chat format. Raises InputError if the model does not
    tell the verdicts apart by their first token."""

    def __init__(self, encoder: Encoder, form: Form, false_weight: float) -> None:
        self.encoder, self.form, self.false_weight = encoder, form, false_weight
        self.text = encoder.text
        one, two = (self.text.continuation(choice)[0] for choice in VERDICTS)
        self.choices = one, two
        if self.choices[0] == self.choices[1]:
            raise InputError(f"This model's tokenizer begins {' and '.join(VERDICTS)} alike.")

    def rows(self, judged: JudgedPair) -> tuple[PairRow, PairRow]:
        """Both orders of a pair: first the pair's own."""
        problem = judged.item.problem()
        adapter, together = self.encoder.adapter, len(problem.images)
        images = tuple(
            adapter.prepare(image.pixels, image.digest, together) for image in problem.images
        )
        found = [
            self._row(problem, pair, judged.plan, images)
            for pair in (judged.pair, judged.pair.swapped())
        ]
        return found[0], found[1]

    def turn_ids(
        self, pair: Pair, problem: Problem, plan: Plan, images: Sequence[Any]
    ) -> list[int]:
        """What the backend is sent to ask for this order's verdict."""
        prompt, tail = pair.turn(problem, plan, self.form)
        return self.text.turn(prompt.text + tail, tuple(image.text for image in images))

    def _row(self, problem: Problem, pair: Pair, plan: Plan, images: tuple[Any, ...]) -> PairRow:
        prompt, tail = pair.turn(problem, plan, self.form)
        expanded = tuple(image.text for image in images)
        text = prompt.text + tail
        ids = self.text.turn(text, expanded)
        example = Example([*ids, self.choices[pair.better]], len(ids), images)
        places = self.text.places(text, expanded)
        if places is None:  # without marks rather than with wrong ones
            return PairRow(example)
        return PairRow(example, tuple(self._marks(pair, text, len(prompt.text), places)))

    def _marks(self, pair: Pair, text: str, start: int, places: list[tuple[int, int]]) -> Any:
        at = start
        for candidate in (pair.first, pair.second):
            pieces = list(_pieces(candidate.text))
            shifts = []
            for begin, content in pieces:
                found = _found(text, content, at)
                if found is None:
                    return
                shifts.append((begin, begin + len(content), found - begin))
                at = found + len(content)
            yield from self._of(candidate, shifts, places)

    def _of(self, candidate: Candidate, shifts: list[tuple[int, int, int]], places: Any) -> Any:
        if candidate.marks is None:
            value = 1.0 if candidate.label > 0.5 else -1.0
            for begin, end, shift in shifts:
                for token in _within(places, begin + shift, end + shift):
                    yield token, value
            return
        for begin, end, true in candidate.marks:
            moved = next((s for b, e, s in shifts if b <= begin < e), None)
            if moved is None:
                continue
            end = len(candidate.text[:end].rstrip())
            tokens = _within(places, begin + moved, end + moved)
            # What is wrong with a claim is known once it is all there.
            for token in tokens if true else tokens[-2:]:
                yield token, (1.0 if true else -self.false_weight)

    def batch(self, rows: Sequence[PairRow], judged: int) -> dict[str, Any]:
        """What the network's forward takes: `Encoder.batch` of all rows, of which the first
        `judged` are verdicts, both orders of a pair beside each other; `marks` [rows, longest]."""
        found: dict[str, Any] = self.encoder.batch([row.example for row in rows])
        marks = torch.zeros(found["input_ids"].shape)
        for k, row in enumerate(rows):
            for token, value in row.marks:
                marks[k, token] = value
        return found | {"judged": judged, "marks": marks}


_STAGE = re.compile(r"<([A-Z][A-Z0-9_]*)>(.*?)(?:</\1>|\Z)", re.DOTALL)


def _pieces(text: str) -> Any:
    """(start, content) of every stage in what a model wrote; all of it where there is no stage."""
    stages = [(m.start(2), m.group(2)) for m in _STAGE.finditer(text)] or [(0, text)]
    for start, content in stages:
        if stripped := content.strip():
            yield start + len(content) - len(content.lstrip()), stripped


def _found(text: str, content: str, at: int) -> int | None:
    """Where a candidate's content stands in a judge's turn: behind a label or a tag, so that a
    content of "2" is not found in the label "2:"."""
    while (place := text.find(content, at)) >= 0:
        if text[:place].endswith((": ", ":\n", ">")):
            return place
        at = place + 1
    return None


def _within(places: list[tuple[int, int]], start: int, end: int) -> list[int]:
    """The tokens that end in characters `start` to `end`."""
    return [k for k, (a, b) in enumerate(places) if a < b and start < b <= end]


# --- steps ---------------------------------------------------------------------------------------

_GUESSABLE = 0.6
"""Of the corrupted reasonings, how many are of the questions that a model answers by guessing: that
is where its own mistakes are, once it has learnt the rest."""
_GUESS_WEIGHTS = {"twins": 6, "above": 6, "shared": 8, "rank": 6}
"""How often each of these comes, the others counting 1. Sums are learnt soon: a number is asked
for, and it is in the text or not. What must be held against all the others is learnt last."""


class JudgeSteps(torch.utils.data.Dataset):
    """Step i as its micro-batches for one process of `world`: pairs, and behind them kept answers.

    Everything follows from configuration, pairs and i. Stages take turns, a stage's pairs come in
    another order each time round.
    """

    def __init__(
        self,
        config: JudgeConfig,
        encoder: JudgeEncoder,
        plan: Plan,
        items: Sequence[Item],
        done: Sequence[Done],
        *,
        micro: int,
        limit: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.config, self.encoder, self.plan, self.items = config, encoder, plan, items
        self.micro, self.limit, self.rank, self.world = micro, limit, rank, world
        self.seed, self.kept = config.sft.train.seed, config.kept
        self.pairs = config.sft.train.batch - self.kept
        self.corrupted = round(config.judge.corruptions * self.pairs)
        self.by_stage: dict[str, list[tuple[int, Pair]]] = {}
        for each in sorted(done, key=lambda d: d.index):
            for pair in each.pairs:
                if config.judge.sound and _lucky(pair):
                    continue
                self.by_stage.setdefault(pair.stage, []).append((each.index, pair))
        self.stages = sorted(self.by_stage, key=config.pairs.stages.index)
        self.answers: Steps | None = None
        if self.kept:
            corpus = load_corpus(config.sft, encoder.encoder, limit)
            self.answers = Steps(
                corpus.train, encoder.encoder, config.sft, micro=micro, limit=limit
            )
        self._pools = lru_cache(maxsize=2)(self._pool)
        self._order = lru_cache(maxsize=16)(self._drawn)

    def __getitem__(self, step: int) -> list[dict[str, Any]] | CotEngineError:
        try:
            return self.micro_batches(step)
        except CotEngineError as error:  # a worker process that raised would bury it
            return error

    def micro_batches(self, step: int) -> list[dict[str, Any]]:
        judged, answers = self._pools(step // POOL)[step % POOL]
        units: list[Any] = [*judged, *answers]
        parts = [units[at : at + self.micro] for at in range(0, len(units), self.micro)]
        rows = [self._rows(part) for part in parts]
        # Shares of a step's loss: every process must know the whole step.
        marked = sum(abs(w) for part, _ in rows for row in part for _, w in row.marks)
        learnt = sum(r.example.learnt for part, n in rows for r in part[n:])
        totals = torch.tensor([2.0 * len(judged), max(marked, 1.0), max(learnt, 1)])
        return [
            self.encoder.batch(part, n) | {"totals": totals}
            for part, n in rows[self.rank :: self.world]
        ]

    def _rows(self, units: Sequence[Any]) -> tuple[list[PairRow], int]:
        """Sequences of pairs and answers, and how many of them are the pairs'."""
        pairs = [row for unit in units if isinstance(unit, JudgedPair) for row in self.encode(unit)]
        if self.answers is None:  # nothing but pairs is trained on
            return pairs, len(pairs)
        answers = [unit for unit in units if not isinstance(unit, JudgedPair)]
        return [*pairs, *(PairRow(self.answers.encoded(item)) for item in answers)], len(pairs)

    def encode(self, judged: JudgedPair) -> tuple[PairRow, PairRow]:
        """Raises InputError if the pair is longer than the model takes."""
        rows = self.encoder.rows(judged)
        longest = max(len(row.example.ids) for row in rows)
        if longest > self.limit:
            raise InputError(
                f"{judged.item.id}: a pair takes {longest:,} tokens; the limit is {self.limit:,}.",
                "Raise data.max_tokens, or sample shorter candidates (pairs.plan).",
            )
        return rows

    def collate(self, judged: Sequence[JudgedPair]) -> dict[str, Any]:
        rows = [row for each in judged for row in self.encode(each)]
        return self.encoder.batch(rows, len(rows))

    def judged(self, index: int, pair: Pair, items: Sequence[Item] | None = None) -> JudgedPair:
        item = (self.items if items is None else items)[index]
        return JudgedPair(item, pair, self.plan.fit(len(item.pictures)))

    # --- the order ---

    def _pool(self, pool: int) -> list[tuple[list[JudgedPair], list[Any]]]:
        """Several steps' units, sorted by length so that little is padded, the steps shuffled."""
        steps = range(pool * POOL, (pool + 1) * POOL)
        judged = sorted((j for s in steps for j in self._of_step(s)), key=lambda j: j.length)
        answers: list[Any] = []
        if self.answers is not None:
            first = pool * POOL * self.kept
            answers = [self.answers.source[first + k] for k in range(POOL * self.kept)]
            answers.sort(key=self.answers._length)
        n, m = self.pairs, self.kept
        made = [
            (judged[k * n : (k + 1) * n], answers[k * m : (k + 1) * m]) for k in range(len(steps))
        ]
        random.Random(f"{self.seed} pool {pool}").shuffle(made)
        return made

    def _of_step(self, step: int) -> list[JudgedPair]:
        rng = random.Random(f"{self.seed} step {step}")
        before = step - self.config.judge.captions_first
        if before < 0:
            return [self._corrupt(rng, "CAPTION") for _ in range(self.pairs)]
        stages = cast(tuple[About, ...], self.config.pairs.stages)  # judge_config sees to that
        found = [self._corrupt(rng, rng.choice(stages)) for _ in range(self.corrupted)]
        own = self.pairs - self.corrupted
        for slot in range(before * own, (before + 1) * own):
            turn, at = divmod(slot, len(self.stages))
            pairs = self.by_stage[self.stages[at]]
            epoch, place = divmod(turn, len(pairs))
            found.append(self.judged(*pairs[self._order(self.stages[at], epoch)[place]]))
        return found

    def _drawn(self, stage: str, epoch: int) -> list[int]:
        order = list(range(len(self.by_stage[stage])))
        random.Random(f"{self.seed} {stage} {epoch}").shuffle(order)
        return order

    def _corrupt(self, rng: random.Random, stage: About) -> JudgedPair:
        """A true text of a scene against a corrupted one; of other scenes than those sampled."""
        index = rng.randrange(10**9)
        if stage != "CAPTION" and rng.random() < _GUESSABLE:
            weights = [_GUESS_WEIGHTS.get(kind, 1) for kind in guesses.TYPES]
            [kind] = rng.choices(guesses.TYPES, weights)
            index += (scenes.TYPES.index(kind) - index) % len(scenes.TYPES)
        scene = scenes.sample(self.config.pairs.seed + 1, index, "train")
        made = corrupt(rng, scene, stage)
        better, worse = (
            Candidate(text, value, marks=tuple(scene_marks(text, scene)))
            for text, value in zip((made.better, made.worse), made.values, strict=True)
        )
        asked = "" if stage == WHOLE else stage
        pair = Pair(stage, made.shared, better, worse, asked)
        item = scene_item(scene)
        return JudgedPair(
            item, pair if rng.random() < 0.5 else pair.swapped(), self.plan.fit(len(item.pictures))
        )


def _lucky(pair: Pair) -> bool:
    """Whether the better text reasons by a false claim and comes to a right answer all the same."""
    if pair.stage == "CAPTION":
        return False
    better = (pair.first, pair.second)[pair.better]
    start = better.text.find("<REASONING>")  # a caption may be wrong in what does not matter
    return any(begin >= start and not true for begin, _, true in better.marks or ())


def plan_of(config: JudgeConfig) -> Plan:
    """The plan that candidates are sampled by, before it is fitted to a problem."""
    path = config.pairs.plan
    return DEFAULT_PLAN if path is None else Plan.from_toml(config.folder / path)
