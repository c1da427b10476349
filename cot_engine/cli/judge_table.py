"""A report on judges as tables: drawn by rich on a terminal, plain columns elsewhere."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cot_engine.escape import terminal

if TYPE_CHECKING:
    from cot_engine.report.controls import Control, OverLikelihood
    from cot_engine.report.judge_report import JudgeReport
    from cot_engine.report.judging import JudgeCard
    from cot_engine.statistics import Interval

_SHOWN = {"seen": "", "blank": ", grey picture", "swap": ", other picture"}
_LEGEND = """\
right: prefers the better of two, a tie counting half; intervals 95 %, over problems.
strict: the same, a tie counting nothing. leans: by the margin of both orders, ties or not.
selected: the outcome of the candidate that wins (likelihood breaks ties); taken: its share of the
best one's lead over a random one. error: between the share right and the margin read as log-odds.
longer: decided for the longer text, beside how often that is the better one.
unread: verdicts that cannot be read. flips: both orders named the same place. first: how much more
often than half the first was named. cycles: A over B over C over A (a coin: 0.25).
Gflops: a match. x sample: its FLOPs over those of sampling one candidate."""


def show(found: JudgeReport) -> None:
    """Print the report on stdout."""
    for said in found.verdict:
        _say(terminal(said), bold=True)
    _say(terminal(_failures(found)))
    _say("")
    about = found.about
    sampling = ", ".join(f"{key} {value:g}" for key, value in about["sampling"].items())
    how = f"candidates by {' and '.join(about['strategies'])}, {sampling}, seed {about['seed']}"
    if about.get("labelled"):
        how = f"known: {about['labelled']}"
    _say(
        f"Judges on {found.done - found.failed:,} problems of {about['data']['name']}, model"
        f" {about['model']['name']}; {how}."
    )
    for stage in dict.fromkeys(card.stage for card in found.cards):
        here = [card for card in found.cards if card.stage == stage]
        _say("")
        _say(f"{stage}: {here[0].matches:,} matches", bold=True)
        _table(_HABITS, [_habits(card) for card in _once(here)])
        for measure in dict.fromkeys(card.measure for card in here):
            place = (stage, measure)
            cards = [card for card in here if card.measure == measure]
            _say("")
            _say(f"{stage}, by {_measure(measure, stage, about['rollouts'])}: {_base(cards)}")
            if any(card.pairs for card in cards):
                _table(_MERITS, [_merits(card) for card in cards])
            _over([o for o in found.over_likelihood if (o.stage, o.measure) == place])
            _controls([c for c in found.controls if (c.stage, c.measure) == place])
    _say("")
    if found.weight is not None:
        fit = found.weight
        _say(
            f"self+likelihood: weight {_interval(fit.weight)}, fitted on {fit.pairs:,} pairs of"
            f" {fit.problems:,} problems. Examine it on others."
        )
        _say("")
    if found.cards:
        _say(_LEGEND)
    for note in found.notes:
        _say(f"Note: {note}")


def _failures(found: JudgeReport) -> str:
    """What went wrong, counted; that nothing did is said too."""
    told = []
    if found.failed:
        why = ", ".join(f"{kind} {number:,}" for kind, number in found.errors.items())
        told.append(f"{found.failed:,} of {found.done:,} problems failed ({why})")
    told += [
        f"{each.unreadable:,} of {each.verdicts:,} verdicts of {each.judge} cannot be read"
        for each in found.unheard
        if each.unreadable
    ]
    told += [
        f"{each.judge} was not asked about {each.unasked:,} matches, for want of room or budget"
        for each in found.unheard
        if each.unasked
    ]
    if not told:
        return f"Nothing failed: {found.done:,} problems, and every verdict could be read."
    return f"Failures: {'; '.join(told)}."


def _measure(measure: str, stage: str, rollouts: int) -> str:
    if stage in ("pairs", "steps"):
        return "what people said"
    if measure == "facts":
        return "whether the text itself is right"
    if stage in ("whole", "CONCLUSION"):
        return "whether the answer is right"
    return f"how many of {rollouts} continuations end right" if rollouts != 1 else (
        "whether its likeliest continuation ends right"
    )  # fmt: skip


def _base(cards: Sequence[JudgeCard]) -> str:
    card = cards[0]
    text = f"{card.pairs:,} pairs with different outcomes, on {card.problems:,} problems"
    if card.gain is not None:
        g = card.gain
        text += (
            f"; of {g.n:.3g} candidates a random one scores {_number(g.random.estimate)},"
            f" the best {_number(g.oracle.estimate)}"
        )
    return text


def _once(cards: Sequence[JudgeCard]) -> list[JudgeCard]:
    """One card for each judge and picture: what does not depend on the measure."""
    return list({(card.judge, card.image): card for card in cards}.values())


_HABITS = ("judge", "ties", "unread", "flips", "first", "cycles", "Gflops", "x sample")
_MERITS = ("judge", "right", "strict", "leans", "error", "longer", "selected", "taken")


def _habits(card: JudgeCard) -> list[str]:
    return [
        _name(card),
        _number(card.ties),
        _number(card.unreadable),
        _number(card.flips),
        _signed(card.first.estimate),
        _number(card.cycles),
        f"{card.cost.flops / 1e9:.3g}",
        "-" if card.relative is None else f"{card.relative:.2g}",
    ]


def _merits(card: JudgeCard) -> list[str]:
    longer = f"{_number(card.longer)} / {_number(card.longer_right)}"
    return [
        _name(card),
        _interval(card.right),
        _number(card.strict.estimate),
        _interval(card.leaning),
        _number(card.calibration_error),
        "-" if card.longer is None else longer,
        "-" if card.gain is None else _number(card.gain.selected.estimate),
        "-" if card.gain is None or card.gain.taken is None else _signed(card.gain.taken),
    ]


def _over(found: Sequence[OverLikelihood]) -> None:
    for o in found:
        _say(f"{_leans(o)} than likelihood does, on the same pairs.")


def _controls(controls: Sequence[Control]) -> None:
    for c in controls:
        other = "a grey one" if c.image == "blank" else "another one"
        _say(f"{_leans(c)} with the picture than with {other}.")


def _leans(found: Control | OverLikelihood) -> str:
    d = found.difference.difference
    return (
        f"{terminal(found.judge)} leans to the better one {_signed(d.estimate)}"
        f" ({_signed(d.low)} to {_signed(d.high)}) more often"
    )


def _name(card: JudgeCard) -> str:
    return terminal(card.judge) + _SHOWN[card.image]


def _interval(value: Interval) -> str:
    if math.isnan(value.estimate):
        return "-"
    return f"{value.estimate:.3f} ({value.low:.3f} to {value.high:.3f})"


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:+.3f}"


# --- printing ------------------------------------------------------------------------------------


def _say(text: str, bold: bool = False) -> None:
    if sys.stdout.isatty():
        from rich.console import Console

        Console(highlight=False).print(text, style="bold" if bold else None, markup=False)
    else:
        print(text)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="dim")
        for k, name in enumerate(head):
            table.add_column(name, justify="right" if k else "left", overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))
        Console(highlight=False).print(table)
        return
    widths = [max(len(row[k]) for row in [head, *rows]) for k in range(len(head))]
    for row in [head, *rows]:
        cells = [f"{row[0]:<{widths[0]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip())
