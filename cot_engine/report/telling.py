"""Findings in words: the headline for the impatient, and the notes that nobody may miss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

from cot_engine.ablation.records import Key, ResultRow, Run
from cot_engine.ablation.worth import WHOLE
from cot_engine.core.usage import Role
from cot_engine.report.amounts import amount, interval, share
from cot_engine.report.findings import Comparison, Headroom, Standing

_SOME = 0.05  # a share of a cell's searches that is worth a note
_MOST = 10  # labels named one by one in the notes of one kind


def headline(
    run: Run,
    standings: Sequence[Standing],
    comparisons: Sequence[Comparison],
    headrooms: Sequence[Headroom],
    unit: str,
) -> tuple[str, ...]:
    """How the cells that the grid names do, what baselines give, what selection and sampling
    lose, what judging costs: a sentence each, as far as the run tells."""
    by_label = {standing.label: standing for standing in standings if standing.problems}
    searched = [s for s in by_label.values() if s.kind == "search"]
    own = _own(run, searched)
    main = _main(comparisons, by_label, own)
    of = focus(run, standings, comparisons)
    told = [_compared(main, own, of), _baselines(searched, of)] if of else []
    told += [_lost(run, headrooms, of), _sampled(by_label), _judging(of, unit)] if of else []
    return tuple(filter(None, told))


def focus(
    run: Run, standings: Sequence[Standing], comparisons: Sequence[Comparison]
) -> Standing | None:
    """The cell that a report is about before all others: the first of its main comparison, else
    the best of the grid's own; None where no search has finished."""
    by_label = {standing.label: standing for standing in standings if standing.problems}
    own = _own(run, [s for s in by_label.values() if s.kind == "search"])
    main = _main(comparisons, by_label, own)
    if main is not None:
        return by_label[main.first]
    return max(own, key=lambda s: s.accuracy.estimate, default=None)


def _own(run: Run, searched: Sequence[Standing]) -> list[Standing]:
    """The cells that the grid names, not the baselines that every grid gets; all of them where
    none of its own has a finished search. A run of before this was recorded names none that is
    greedy or one sample."""
    added = run.about.get("added")
    if added is None:
        own = [s for s in searched if s.strategy != "greedy" and not is_one_sample(s)]
    else:
        own = [s for s in searched if s.cell not in added]
    return own or list(searched)


def _main(
    comparisons: Sequence[Comparison], by_label: dict[str, Standing], own: Sequence[Standing]
) -> Comparison | None:
    """At equal compute, the one with the strongest rival, one that the grid names if there is one;
    else that of the best of the grid's cells."""
    labels = {standing.label for standing in own}
    ours = [c for c in comparisons if c.first in labels]
    equal = [c for c in ours if c.matched and by_label[c.second].matching == "matched"]
    if equal:
        rivals = [c for c in equal if c.second in labels] or equal
        return max(rivals, key=lambda c: by_label[c.second].accuracy.estimate)

    def strength(c: Comparison) -> tuple[float, bool, float]:
        first, second = (by_label[label].accuracy.estimate for label in (c.first, c.second))
        return first, c.second in labels, second

    return max(ours, key=strength, default=None)


def _compared(main: Comparison | None, own: Sequence[Standing], of: Standing) -> str:
    """Which of the grid's cells is the best, and how it compares."""
    told = []
    equal = main is not None and main.matched
    rival = main is not None and equal and main.second in {s.label for s in own}
    others = [s.accuracy.estimate for s in own if s is not of]
    if others and not rival and of.accuracy.estimate >= max(others):
        ahead = of.accuracy.estimate > max(others)
        said = f"{of.label} scores best" if ahead else f"none scores better than {of.label}"
        told.append(f"Of the grid's {len(own)} cells {said}.")
    if main is not None:
        told.append(f"At equal compute: {main.sentence}" if equal else main.sentence)
    return " ".join(told)


def _baselines(searched: Sequence[Standing], of: Standing) -> str:
    """What greedy decoding and one sample score, and for how much less."""
    greedy = next((s for s in searched if s.strategy == "greedy"), None)
    sample = next((s for s in searched if is_one_sample(s)), None)
    said = []
    for name, standing in (("greedy decoding", greedy), ("one sample", sample)):
        if standing is not None and standing is not of:
            part = f" for {_percent(standing.spent / of.spent)} of the cost" if of.spent else ""
            said.append(f"{name} scores {interval(standing.accuracy)}{part}")
    text = ", ".join(said)
    own = f"{of.label} scores {interval(of.accuracy)}"
    return f"{own}; {text}." if text else f"{own}."


def is_one_sample(standing: Standing) -> bool:
    return standing.strategy == "best-of-n" and standing.n == 1 and standing.matching == ""


def _lost(run: Run, headrooms: Sequence[Headroom], of: Standing) -> str:
    """Where the judge of this cell, else of any, gives most away."""
    known = [h for h in headrooms if h.measure == "worth"] or list(headrooms)
    known = [h for h in known if h.label == of.label] or known
    if not known:
        return ""
    h = max(known, key=lambda h: h.oracle.estimate - h.selected.estimate)
    if h.stage != WHOLE and not run.cells[h.cell][1]["rollouts"]:
        return (
            f"Where selection loses at the stages of {h.label} is not known: its unfinished"
            " candidates were not continued (rollouts = 1 in the grid does that)."
        )
    where = f"whole responses of {h.label}" if h.stage == WHOLE else f"{h.stage} of {h.label}"
    away = 100 * (h.oracle.estimate - h.selected.estimate)
    if away < 0.05:
        return f"No selection of {h.label} gives anything away: none has a better candidate."
    never = 100 * (1 - h.oracle.estimate)
    took = "" if h.taken is None else f"; the judge took {_percent(h.taken)} of what was to take"
    return (
        f"Selection loses most at {where}: {away:.1f} points judged away (the best candidate"
        f" {share(h.oracle.estimate)}, the selected one {share(h.selected.estimate)}, a random one"
        f" {share(h.random.estimate)}), {never:.1f} points never generated{took}."
    )


def _sampled(by_label: dict[str, Standing]) -> str:
    """What was among whole responses, whoever picks."""
    oracles = [s for s in by_label.values() if s.kind == "oracle"]
    if not oracles:
        return ""
    # Of equal ones that of best-of-n, say, which has a majority of its own to compare it with.
    oracle = max(oracles, key=lambda s: (s.accuracy.estimate, s.strategy != "majority"))
    cell = oracle.label.removeprefix("oracle of ")
    vote = cell if oracle.strategy == "majority" else f"majority of {cell}"
    others = [
        f"{name} {share(by_label[label].accuracy.estimate)}"
        for label, name in (
            (vote, "a majority vote over them"),
            (f"random of {cell}", "a random one"),
        )
        if label in by_label
    ]
    said = f" ({', '.join(others)})" if others else ""
    best = interval(oracle.accuracy)
    return f"Of the whole responses that {cell} sampled, the best scores {best}{said}."


def _judging(of: Standing, unit: str) -> str:
    told = []
    roles: tuple[tuple[str, Role], ...] = (("Judging", "judge"), ("Verifying", "verify"))
    for name, role in roles:
        spent = of.by_role.get(role, 0.0)
        if spent and of.spent:
            each = f"{amount(spent, unit)} of {amount(of.spent, unit)}"
            part = _percent(spent / of.spent)
            told.append(f"{name} is {part} of what {of.label} spends ({each} a search).")
    return " ".join(told) or f"Judging costs {of.label} nothing."


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.0f} %"


# --- notes ---------------------------------------------------------------------------------------


def notes(
    run: Run,
    rows: Sequence[ResultRow],
    missing: Collection[Key],
    failed: Collection[Key],
    standings: Sequence[Standing],
    where: str | None,
) -> tuple[str, ...]:
    """What a reader must know. `missing` keys of the run have no row; `failed` ones have one that
    says so, whatever `where` chose."""
    total = len(run.cells) * len(run.items) * len(run.seeds)
    told = []
    if where:
        told.append(f"Only searches with {where}: {len(rows):,} of {total:,}.")
    blocked = _blocked(run, missing, failed)
    if waiting := len(missing) - blocked:
        told.append(f"Preliminary: {waiting:,} of {total:,} searches are still missing.")
    if blocked:
        told.append(
            f"{_searches(blocked)} could not be matched, since the reference, whose spending is"
            " their budget, failed there."
        )
    told += _failures(run, rows)
    told += _cut_answers(run, rows)
    told += _spendings(standings)
    told += _broken(run, rows)
    if any(s.kind != "search" for s in standings):
        told.append(
            "Majority, random and oracle of a cell are worked out from the whole responses that it"
            " sampled; they are charged for generating them and for no judge."
        )
    continued = sorted({plain["rollouts"] for _, plain in run.cells.values()} - {0})
    if continued and any(row.selections for row in rows):
        number = " or ".join(map(str, continued))
        by = f"the share of its {number} continuations that end right; they are"
        if continued == [1]:
            by = "whether its likeliest continuation ends right; that is"
        told.append(f"What an unfinished candidate was worth is {by} charged to nobody.")
    return tuple(told)


def _blocked(run: Run, missing: Collection[Key], failed: Collection[Key]) -> int:
    """How many are missing for good: what they depend on failed."""
    goals = {hash: plain["match"] for hash, (_, plain) in run.cells.items()}
    return sum(
        goals[key.cell] is not None and key._replace(cell=goals[key.cell]["reference"]) in failed
        for key in missing
    )


def _failures(run: Run, rows: Sequence[ResultRow]) -> list[str]:
    failed = _by_cell(run, rows, lambda row: row.error if row.status == "failed" else None)
    return _first(
        [
            f"{len(lost):,} of {_searches(made)} of {label} failed and"
            f" count{'s' if len(lost) == 1 else ''} nowhere; the first: {lost[0]}"
            for label, lost, made in failed
        ],
        "Searches of {} more cells failed.",
    )


def _cut_answers(run: Run, rows: Sequence[ResultRow]) -> list[str]:
    cut = _by_cell(run, rows, lambda row: row.incomplete or None)
    return _first(
        [
            f"{len(why):,} of {_searches(made)} of {label} gave an answer that is not whole and is"
            f" graded as it stands; the first: {why[0]}"
            for label, why, made in cut
        ],
        "The same holds for {} more cells.",
    )


def _first(told: list[str], more: str) -> list[str]:
    """As many as are read, and `more` on the number of the others."""
    left = len(told) - _MOST
    return [*told[:_MOST], more.format(left)] if left > 0 else told


def _by_cell(
    run: Run, rows: Sequence[ResultRow], why: Callable[[ResultRow], str | None]
) -> list[tuple[str, list[str], int]]:
    """The cells of which `why` has something to say: the label, what it says, and how many rows
    there are."""
    found: dict[str, list[str]] = {}
    made: Counter[str] = Counter()
    for row in rows:
        label = run.cells[row.key.cell][0]
        made[label] += 1
        if (said := why(row)) is not None:
            found.setdefault(label, []).append(said)
    return [(label, said, made[label]) for label, said in found.items()]


def _spendings(standings: Sequence[Standing]) -> list[str]:
    told = []
    for s in standings:
        if s.kind == "search" and not s.problems:
            told.append(f"{s.label} has no finished search.")
        elif s.matching == "unmatched" and s.allotted:
            told.append(
                f"{s.label} is not at equal compute: it spent {_percent(s.spent / s.allotted)} of"
                " what it was allotted."
            )
    return _first(told, "The same holds for {} more cells.")


def _broken(run: Run, rows: Sequence[ResultRow]) -> list[str]:
    """Cells whose budget often did not pay for what they sampled at once: then they lose for that,
    not for how they choose."""
    sampled: dict[str, list[bool]] = {}
    for row in rows:
        label, plain = run.cells[row.key.cell]
        if plain["match"] is not None and row.candidates:
            cut = all(candidate.cut for candidate in row.candidates)
            sampled.setdefault(label, []).append(cut)
    return [
        f"In {sum(broken):,} of {_searches(len(broken))} of {label} the budget cut every response"
        " off. With a smaller n fewer are sampled at once."
        for label, broken in sampled.items()
        if sum(broken) > _SOME * len(broken)
    ]


def _searches(number: int) -> str:
    return f"{number:,} search{'es' if number != 1 else ''}"
