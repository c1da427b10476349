"""The problems that searching turned right and wrong, each with its picture and its answers.

One strategy's are shown at a time; which, a reader chooses (the page has no script: its style
sheet hides the others). A problem counts as turned where its score moved by a half or more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cot_engine.ablation.store import Store
from cot_engine.report.changes import TURN
from cot_engine.report.findings import Findings, ItemOutcome
from cot_engine.report.pictures import Pictures
from cot_engine.report.problems import asked, mark, short
from cot_engine.report.telling import focus
from cot_engine.show import words

MOST = 12  # problems of one strategy, each way
_ALL = 96  # problems of all strategies, about: with more of them, fewer each
_ANSWER = 60  # characters of an answer


@dataclass(frozen=True, slots=True)
class Turned:
    """The problems to be shown: of each strategy (label) those turned right and those turned
    wrong, the surest first. `first` is the strategy that is shown before one is chosen."""

    first: str
    right: dict[str, list[ItemOutcome]]
    wrong: dict[str, list[ItemOutcome]]

    def items(self) -> list[str]:
        """Their digests, the first strategy's before the others'."""
        labels = [self.first, *(label for label in self.right if label != self.first)]
        chosen = [o.item for label in labels for part in self._both(label) for o in part]
        return list(dict.fromkeys(chosen))

    def _both(self, label: str) -> tuple[list[ItemOutcome], list[ItemOutcome]]:
        return self.right.get(label, []), self.wrong.get(label, [])


def turned(findings: Findings) -> Turned | None:
    """Which problems those are; None where nothing searched, or there is nothing it could be
    held against."""
    whole = {c.label: c for c in findings.changes if c.type is None}
    if not whole:
        return None
    of = focus(findings.run, findings.standings, findings.comparisons)
    first = of.label if of and of.label in whole else next(iter(whole))
    few = max(3, min(MOST, _ALL // (2 * len(whole))))
    right, wrong = {}, {}
    for label, change in whole.items():
        moved = []
        for outcome in findings.outcomes:
            before = outcome.correct.get(change.baseline)
            after = outcome.correct.get(label)
            if before is not None and after is not None and abs(after - before) >= TURN:
                moved.append((after - before, outcome))
        most = MOST if label == first else few
        ups = sorted((m for m in moved if m[0] > 0), key=lambda m: -m[0])
        downs = sorted((m for m in moved if m[0] < 0), key=lambda m: m[0])
        right[label] = _spread([outcome for _, outcome in ups], most)
        wrong[label] = _spread([outcome for _, outcome in downs], most)
    return Turned(first, right, wrong)


def _spread(outcomes: Sequence[ItemOutcome], most: int) -> list[ItemOutcome]:
    """As many of them, each type of question in its turn, so that one does not fill the page."""
    by_type: dict[str, list[ItemOutcome]] = {}
    for outcome in outcomes:
        by_type.setdefault(outcome.type, []).append(outcome)
    taken: list[ItemOutcome] = []
    turn = 0
    while len(taken) < min(most, len(outcomes)):
        taken += [own[turn] for own in by_type.values() if turn < len(own)]
        turn += 1
    return taken[:most]


def gallery(
    findings: Findings,
    store: Store,
    found: Turned | None,
    targets: Mapping[tuple[str, str], str],
    pictures: Pictures,
) -> dict[str, Any]:
    """What the template prints. `targets`: where each search (item, label) is in the page."""
    if found is None:
        return {"choices": []}
    whole = {c.label: c for c in findings.changes if c.type is None}
    labels = list(whole)
    seen = {o.item: o for part in (found.right, found.wrong) for os in part.values() for o in os}
    shown = {item: pictures.of(item, seen[item].problem) for item in found.items()}
    baselines = list(dict.fromkeys(c.baseline for c in whole.values()))
    columns = [*baselines, *(label for label in labels if label not in baselines)]
    place = dict.fromkeys(baselines, -1) | {label: at for at, label in enumerate(labels)}

    def cards(part: dict[str, list[ItemOutcome]], kind: str) -> list[dict[str, Any]]:
        of: dict[str, list[int]] = {}
        for at, label in enumerate(labels):
            for outcome in part[label]:
                of.setdefault(outcome.item, []).append(at)
        return [
            {
                "id": f"{kind}{number}",
                "classes": " ".join(f"of-{at}" for at in of[item]),
                "asked": asked(seen[item]),
                "picture": shown[item],
                "answers": [
                    _answer(seen[item], label, targets) | {"at": place[label]}
                    for label in columns
                    if seen[item].keys.get(label)
                ],
            }
            for number, item in enumerate(item for item in found.items() if item in of)
        ]

    return {
        "choices": [
            {
                "at": at,
                "label": label,
                "checked": label == found.first,
                "right": whole[label].right,
                "wrong": whole[label].wrong,
                "baseline": whole[label].baseline,
                "right_said": _said(whole[label].right, len(found.right[label])),
                "wrong_said": _said(whole[label].wrong, len(found.wrong[label])),
            }
            for at, label in enumerate(labels)
        ],
        "rights": cards(found.right, "right"),
        "wrongs": cards(found.wrong, "wrong"),
        "seeds": len(findings.run.seeds),
        "notes": _notes(pictures),
    }


def _said(turned: int, shown: int) -> str:
    if turned == shown:
        return words.plural(turned, "problem")
    return (
        f"{words.plural(turned, 'problem')}, of which {shown} are here and all in the table below"
    )


def _answer(
    outcome: ItemOutcome, label: str, targets: Mapping[tuple[str, str], str]
) -> dict[str, Any]:
    kind, shown = mark(outcome.correct.get(label))
    given = [answer for answer in outcome.answers.get(label, ()) if answer is not None]
    distinct = list(dict.fromkeys(short(answer, _ANSWER) for answer in given))
    return {
        "label": label,
        "kind": kind,
        "mark": shown,
        "answers": distinct[:3],
        "more": len(distinct) - 3 if len(distinct) > 3 else 0,
        "target": targets.get((outcome.item, label), ""),
    }


_WHY = {
    "not kept": (
        "The store keeps no picture of {}: it was made by a version that kept none. A run of the"
        " grid into a new store keeps them."
    ),
    "not readable": "What the store keeps as the picture of {} is none that can be shown.",
    "left out": "The pictures of {} are left out, so that the page stays small.",
}


def _notes(pictures: Pictures) -> list[str]:
    return [
        said.format(words.plural(pictures.why[why], "problem"))
        for why, said in _WHY.items()
        if pictures.why[why]
    ]
