"""One self-contained HTML page of a recorded search: no script, nothing fetched, prints well.

Here is what it shows; where that stands, and its markup, is in `search.html.jinja`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from cot_engine.core.events import ImageRecord
from cot_engine.core.trace import Trace
from cot_engine.core.usage import Usage
from cot_engine.show import captions, words
from cot_engine.show import figure as fig
from cot_engine.show.figure import Card, Column, Figure
from cot_engine.show.templates import render

_PREVIEW = 260  # characters of a text that are shown before "more"
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")


def render_html(trace: Trace) -> str:
    """The page, as text. Raises TraceError if the trace has no beginning."""
    figure = fig.read(trace)
    return render(
        "show/search.html.jinja",
        title=" ".join(figure.started.question.split())[:80],
        images=[_image(image, i) for i, image in enumerate(figure.started.images, 1)],
        **values(figure),
    )


def values(figure: Figure) -> dict[str, Any]:
    """What the templates print of a figure, but its images."""
    return {
        "figure": figure,
        "strategy": captions.strategy_text(figure),
        "tally": captions.tally(figure),
        "columns": [_column(figure, i) for i in range(len(figure.columns))],
        "legend": _legend(figure),
        "cost": _cost(figure),
        "budget": captions.budget_text(figure),
        "settings": _settings(figure),
        "command": captions.command(figure),
    }


def _image(image: ImageRecord, number: int) -> dict[str, Any]:
    width, height = image.size
    png = image.png()
    return {
        "png": png if _BASE64.fullmatch(png) else "",
        "alt": f"image {number}, {width} × {height} pixels",
        "small": max(width, height) <= 128,
        "said": " · ".join(
            [image.source, f"{width}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}{height}", *image.notes]
        ),
    }


def _legend(figure: Figure) -> str:
    said = ["Each card is a candidate, with its mean log-probability per token (nats) at the right"]
    if any(card.score for column in figure.columns for card in column.cards):
        said[0] += ", and before it the number that a scorer gave it"
    if any(card.count > 1 for column in figure.columns for card in column.cards):
        said.append("×n says that n candidates wrote the same text")
    text = "; ".join(said) + ". "
    if any(card.on_path for column in figure.columns for card in column.cards):
        text += "The answer's path is drawn strong. "
    brackets = [bout for column in figure.columns for bout in fig.bracket(column) or ()]
    if brackets:
        text += "Two lines meet where two candidates were judged, and the winner's goes on. "
        number = ("number", "is its margin")
        if any(len(bout.match.verdicts) == 2 for bout in brackets):
            number = (
                "numbers",
                "are its margins, above when it was shown first, below when second; a minus marks"
                " an order that preferred the loser, ? a reply that could not be read",
            )
        text += f"The {number[0]} (on a narrow screen: under “matches”) {number[1]}. "
        if any(bout.match.outcome == "tie" for bout in brackets):
            text += "A dashed line is a tie, broken by rule. "
    if any(column.matches and not fig.bracket(column) for column in figure.columns):
        text += (
            "In a table, row A and column B hold A's margin over B when A was shown first; shaded"
            " where A won the match of both orders."
        )
    return text.strip()


# --- one stage -----------------------------------------------------------------------------------


def _column(figure: Figure, index: int) -> dict[str, Any]:
    """A stage: its candidates in rows, the lines of the bracket between them, the matches."""
    column = figure.columns[index]
    first, last = index == 0, index == len(figure.columns) - 1
    later = figure.columns[index + 1 :]
    following = any(card.on_path for column in later for card in column.cards)
    bouts = fig.bracket(column) or []
    path = column.passed or any(card.on_path for card in column.cards)
    matches = _matches(column)
    return {
        "column": column,
        "kind": "column" + " path" * path + " whole" * (column.unit == "end"),
        "lanes": max((bout.lane + 1 for bout in bouts), default=0),
        "said": captions.column_text(column),
        "votes": _votes(figure) if last and not figure.live else [],
        "cards": [
            _card(figure, column, card, row)
            | {"lines": _lines(card, row, bouts, first=first, following=following)}
            for row, card in enumerate(column.cards, 1)
        ],
        "bouts": [_bout(column, bout) for bout in bouts],
        "drafts": [
            draft_view(figure, column, card, row, card.step.text)
            for row, card in enumerate(column.drafts, len(column.cards) + 1)
        ],
        "cross": _cross(column) if column.matches and not bouts else None,
        "matches": matches,
        "held": words.plural(len(matches), "match", "matches"),
    }


def _lines(
    card: Card, row: int, bouts: list[fig.Bout], *, first: bool, following: bool
) -> list[tuple[str, object, int]]:
    """The lines at a card: class, rows, and for a wire where it ends (0 for others)."""
    lines: list[tuple[str, object, int]] = []
    if card.on_path:
        lines.append(("in" + " first" * first, row, 0))
        if row > 1 and not first:  # lines meet between columns at the height of the first row
            lines.append(("rise", f"1/{row}", 0))
    ends = [bout.lane for bout in bouts if fig.loser(bout.match) == card.id]
    reach = [bout.lane for bout in bouts if bout.match.winner == card.id]
    if ends:
        lines.append(("wire", row, ends[0] + 4))
    elif reach:
        strong = " strong" * (card.on_path and not following)
        lines.append((f"wire won{strong}", row, max(reach) + 4))
    if card.on_path and following:
        lines.append(("out", row, 0))
        if row > 1:
            lines.append(("rise end", f"1/{row}", 0))
    return lines


def _card(figure: Figure, column: Column, card: Card, row: int) -> dict[str, Any]:
    step = card.step
    facts: list[tuple[str, object]] = [("id", ", ".join([card.id, *card.folded]))]
    facts += [("log-probability", words.logprob_text(step.logprob)), ("ended by", step.finish)]
    facts += [(f"score ({name})", f"{value:.4g}") for name, value in card.scores.items()]
    return {
        "card": card,
        "anchor": figure.anchor + card.id,
        "row": row,
        "kind": "card" + " won" * card.on_path + " aside" * bool(card.unjudged),
        "likely": " · ".join(
            filter(None, (card.score, words.logprob_text(card.chain.likelihood(1))))
        ),
        "faults": [words.fault_text(fault) for fault in step.faults]
        + ["not judged for that"] * bool(card.unjudged),
        "tokens": words.plural(step.tokens, "token"),
        "facts": facts,
    } | _written(figure, column, step.text, _preview)


def _written(
    figure: Figure, column: Column, text: str, preview: Callable[[str], str]
) -> dict[str, Any]:
    """A text by its stages: tags become small headings where they say something new."""
    parts = words.pieces(text, figure.started.plan)
    return {
        "named": any(stage and (stage != column.unit or len(parts) > 1) for stage, _ in parts),
        "parts": [(stage, text, preview(text)) for stage, text in parts],
    }


def draft_view(figure: Figure, column: Column, card: Card, row: int, text: str) -> dict[str, Any]:
    """A candidate that is being written, and what it reads by now."""
    view = {"card": card, "anchor": figure.anchor + card.id, "row": row}
    return view | _written(figure, column, words.so_far(text), lambda _: "")


def _preview(text: str) -> str:
    """The beginning of a long text; "" of one that is shown whole."""
    return text[:_PREVIEW].rsplit(None, 1)[0] if len(text) > _PREVIEW + 60 else ""


def _bout(column: Column, bout: fig.Bout) -> dict[str, Any]:
    match = bout.match
    winner = column.card(match.winner)
    won = winner is not None and winner.on_path
    return {
        "kind": "bout" + " tie" * (match.outcome == "tie") + " won" * won,
        "place": f"grid-row:{bout.top + 1}/{bout.bottom + 1};grid-column:{bout.lane + 3}",
        "pair": column.pair(match),
        "margins": [
            ("against" if text[0] in "−?=" else "for", text) for text in words.margins(match)
        ],
    }


def _matches(column: Column) -> list[dict[str, Any]]:
    """Every match in the order it was held, for those who want the words."""
    return [
        {
            "pair": column.pair(match),
            "margins": " ".join(words.margins(match)),
            "why": ", ".join(filter(None, (words.tie_text(match), "held before" * cached))),
            "texts": [
                (f"{column.label(id)} shown first", verdict.text)
                for verdict, id in zip(match.verdicts, (match.first, match.second), strict=False)
                if verdict.text
            ],
        }
        for contest in column.contests
        for match, cached in zip(contest.matches, contest.cached, strict=True)
    ]


def _cross(column: Column) -> tuple[list[str], list[tuple[str, list[tuple[str, str]]]]]:
    """Everyone against everyone: the labels, and each one's row of (class, margin)."""
    cells: dict[tuple[str, str], tuple[str, str]] = {}
    for match in column.matches:
        orders = ((match.first, match.second), (match.second, match.first))
        for verdict, pair in zip(match.verdicts, orders, strict=False):
            text = words.margin_text(verdict, verdict.margin, verdict.outcome == "first")
            cells[pair] = ("w" if match.winner == pair[0] else "l", text)
        if len(match.verdicts) == 1:
            cells[orders[1]] = ("l" if match.winner == match.first else "w", "·")
    entrants = [card for card in column.cards if any(card.id in pair for pair in cells)]
    rows = [
        (a.label, [("self", "") if a is b else cells.get((a.id, b.id), ("", "")) for b in entrants])
        for a in entrants
    ]
    return [card.label for card in entrants], rows


def _votes(figure: Figure) -> list[dict[str, Any]]:
    groups = fig.votes(figure)
    total = sum(len(cards) for _, cards in groups)
    return [
        {
            "answer": answer,
            "count": len(cards),
            "by": " ".join(card.label for card in cards),
            "share": f"{100 * len(cards) / total:.1f}",
        }
        for answer, cards in groups
    ]


# --- what it cost, how it was run ----------------------------------------------------------------


def _cost(figure: Figure) -> dict[str, Any]:
    """The table of costs: each row's role, cells, and share of the whole (None for all)."""
    total = sum(figure.usage.values(), Usage())
    whole, unit = (total.flops, "FLOPs") if total.flops else (total.tokens, "tokens")
    rows: list[tuple[str, list[str], float | None]] = []
    for role, usage in figure.usage.items():
        share = (usage.flops if total.flops else usage.tokens) / whole if whole else 0
        rows.append((role, words.usage_cells(usage), share))
    rows.append(("all", words.usage_cells(total), None))
    return {"heads": words.USAGE_HEADS, "unit": unit, "rows": rows}


def _settings(figure: Figure) -> list[tuple[str, str]]:
    s = figure.started
    model = s.backend
    sampling = f"temperature {s.sampling.temperature}, top-p {s.sampling.top_p}"
    sampling += f", top-k {s.sampling.top_k}"
    plan = " → ".join(f"{stage.tag} ({stage.length})" for stage in s.plan)
    asked = {len(match.verdicts) for column in figure.columns for match in column.matches}
    orders = "one order" if asked == {1} else f"{s.orders} order{'s' * (s.orders == 'both')}"
    judged = f"{s.judge}, {orders}, image {s.judge_image}"
    versions = ", ".join(f"{name} {version}" for name, version in s.versions.items())
    faults = figure.finished.faults if figure.finished else {}
    rows = [
        ("model", f"{model.model} ({model.architecture})"),
        ("weights", model.digest),
        ("run by", f"{model.name} on {model.device}, {model.dtype}"),
        ("stages", f"{plan}; {s.mode}, detail {s.detail}"),
        ("strategy", captions.strategy_text(figure).partition(" · ")[0]),
        ("judge", f"{judged}; tournament {s.tournament}"),
        ("sampling", f"{sampling}; seed {s.seed}"),
        ("problem", s.problem),
        ("images", ", ".join(image.digest for image in s.images)),
        ("faults", ", ".join(f"{n} × {name}" for name, n in faults.items())),
        ("notes", " ".join(model.notes)),
        ("versions", f"{versions}; trace schema {s.schema}"),
    ]
    return [(name, value) for name, value in rows if value]
