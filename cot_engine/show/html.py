"""One self-contained HTML page of a recorded search: no script, nothing fetched, prints well."""

from __future__ import annotations

import importlib.resources
import re

from cot_engine.core.events import ImageRecord
from cot_engine.core.match import Match
from cot_engine.core.trace import Trace
from cot_engine.core.usage import Usage
from cot_engine.escape import html as esc
from cot_engine.show import captions, words
from cot_engine.show import figure as fig
from cot_engine.show.figure import Card, Column, Figure

_PREVIEW = 260  # characters of a text that are shown before "more"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")


def render_html(trace: Trace) -> str:
    """The page, as text. Raises TraceError if the trace has no beginning."""
    figure = fig.read(trace)
    body = f"""{_head(figure)}
{_remarks(figure.remarks)}{_search(figure)}
{_cost(figure)}
{_setup(figure)}"""
    css = importlib.resources.files(__package__).joinpath("page.css").read_text("utf-8")
    return document(" ".join(figure.started.question.split())[:80], css, body)


def document(title: str, css: str, body: str) -> str:
    """A page of its own: the body between the rules of all pages and of this one. Nothing in it
    may run, and nothing is fetched."""
    base = importlib.resources.files(__package__).joinpath("base.css").read_text("utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{esc(title)}</title>
<style>
{base}{css}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


# --- the question, the images, the answer --------------------------------------------------------


def _head(figure: Figure) -> str:
    started = figure.started
    long = ' class="long"' if len(started.question) > 140 else ""
    if figure.answer is None:
        answer = f'<p class="answer none"><span>No answer</span> {esc(figure.ending)}</p>'
    else:
        said = esc(figure.answer) or "<i>empty</i>"
        size = " long" * (len(figure.answer) > 140)
        answer = (
            f'<p class="answer{size}"><span>Answer</span> <strong dir="auto">{said}</strong></p>'
        )
        if figure.incomplete:
            answer += f"\n{_remarks([figure.incomplete]).rstrip()}"
    images = "".join(_image(image, i) for i, image in enumerate(started.images, 1))
    images = f'\n<div class="images">{images}</div>' if images else ""
    return f"""<header class="head">{images}
<div class="ask">
<p class="kicker">{esc(captions.strategy_text(figure))}</p>
<h1{long} dir="auto">{esc(started.question)}</h1>
{answer}
<p class="tally">{esc(captions.tally(figure))}</p>
</div>
</header>"""


def _image(image: ImageRecord, number: int) -> str:
    width, height = image.size
    alt = esc(f"image {number}, {width} × {height} pixels")
    said = esc(" · ".join([image.source, f"{width} × {height}", *image.notes]))
    if _BASE64.fullmatch(png := image.png()):
        big = "" if max(width, height) > 128 else ' class="small"'
        shown = f'<img src="data:image/png;base64,{png}" alt="{alt}"{big}>'
    else:
        shown = '<p class="absent">not kept in this trace</p>'
    return f"<figure>{shown}<figcaption>{said}</figcaption></figure>"


def _remarks(remarks: list[str]) -> str:
    if not remarks:
        return ""
    items = "".join(f"<li>{esc(text)}</li>" for text in remarks)
    return f'<ul class="remarks">{items}</ul>\n'


# --- the search ----------------------------------------------------------------------------------


def _search(figure: Figure) -> str:
    if not figure.columns:
        return f'<p class="ending">Nothing was sampled. {esc(figure.pending)}</p>'
    columns = "\n".join(_column(figure, column) for column in figure.columns)
    end = ""
    if figure.ending or figure.pending:
        said = " ".join(filter(None, (figure.ending, figure.pending)))
        end = f'\n<p class="ending">The search ended here. {esc(said)}</p>'
    return f"""<section class="search" tabindex="0" aria-label="The search, from left to right">
<ol class="columns">
{columns}
</ol>
</section>{end}
{_legend(figure)}"""


def _legend(figure: Figure) -> str:
    said = ["Each card is a candidate, with its mean log-probability per token (nats) at the right"]
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
    return f'<p class="legend">{esc(text.strip())}</p>'


def _column(figure: Figure, column: Column) -> str:
    bouts = fig.bracket(column) or []
    first = column is figure.columns[0]
    last = column is figure.columns[-1]
    after = figure.columns[figure.columns.index(column) + 1 :]
    following = after and any(card.on_path for card in after[0].cards)
    lanes = max((bout.lane + 1 for bout in bouts), default=0)
    kind = "column path" if any(card.on_path for card in column.cards) else "column"
    if column.unit == "end":
        kind += " whole"
    parts = []
    for row, card in enumerate(column.cards, 1):
        parts.append(_card(figure, column, card, row))
        ends = [bout.lane for bout in bouts if fig.loser(bout.match) == card.id]
        if card.on_path:
            parts.append(f'<i class="in{" first" * first}" style="grid-row:{row}"></i>')
            # Lines meet between columns at the height of the first row.
            if row > 1 and not first:
                parts.append(f'<i class="rise" style="grid-row:1/{row}"></i>')
        if ends:
            parts.append(f'<i class="wire" style="grid-row:{row};--end:{ends[0] + 4}"></i>')
        elif reach := [bout.lane for bout in bouts if bout.match.winner == card.id]:
            strong = " strong" * (card.on_path and not following)
            end = max(reach) + 4
            parts.append(f'<i class="wire won{strong}" style="grid-row:{row};--end:{end}"></i>')
        if card.on_path and following:
            parts.append(f'<i class="out" style="grid-row:{row}"></i>')
            if row > 1:
                parts.append(f'<i class="rise end" style="grid-row:1/{row}"></i>')
    parts += [_bout(column, bout) for bout in bouts]
    table = _table(column) if column.matches and not bouts else ""
    above = table if column.unit == "end" else ""  # one column, whose cards are long
    return f"""<li class="{kind}" style="--lanes:{lanes}">
<h2>{esc(column.title)}</h2>
<p class="sub">{esc(captions.column_text(column))}</p>
{above}{_votes(figure) if last else ""}<div class="grid{" bare" * (not lanes)}">
{chr(10).join(parts)}
</div>
{"" if above else table}{_matches(column)}{_remarks(column.remarks)}</li>"""


def _card(figure: Figure, column: Column, card: Card, row: int) -> str:
    kind = "card" + " won" * card.on_path + " aside" * bool(card.unjudged)
    marks = f"<b>{card.label}</b>"
    if card.count > 1:
        marks += f' <span class="count">×{card.count}</span>'
    if card.parent:
        marks += f' <span class="from">from {card.parent}</span>'
    if card.on_path:
        marks += ' <span class="sr">on the answer’s path</span>'
    elif card.kept:
        marks += ' <span class="from">kept</span>'
    logprob = words.logprob_text(card.chain.likelihood(1))
    faults = "".join(f"<li>{esc(words.fault_text(fault))}</li>" for fault in card.step.faults)
    if card.unjudged:
        faults += "<li>not judged for that</li>"
    faults = f'<ul class="faults">{faults}</ul>' if faults else ""
    return f"""<article class="{kind}" id="{esc(card.id)}" style="grid-row:{row}">
<header>{marks} <span class="logprob">{logprob}</span></header>
{_text(figure, column, card)}
{faults}{_details(card)}</article>"""


def _text(figure: Figure, column: Column, card: Card) -> str:
    """What was written, its tags turned into small headings where they say something new."""
    parts = words.pieces(card.step.text, figure.started.plan)
    if not parts:
        return '<p class="text empty">nothing</p>'
    named = any(stage and (stage != column.unit or len(parts) > 1) for stage, _ in parts)
    if not named:
        return "\n".join(_prose(text) for _, text in parts)
    shown = "\n".join(f"<h3>{esc(stage)}</h3><div>{_prose(text)}</div>" for stage, text in parts)
    return f'<div class="parts">\n{shown}\n</div>'


def _prose(text: str) -> str:
    if len(text) <= _PREVIEW + 60:
        return f'<p class="text" dir="auto">{esc(text)}</p>'
    head = text[:_PREVIEW].rsplit(None, 1)[0]
    return (
        f'<details class="long"><summary><span class="text preview" dir="auto">{esc(head)} …</span>'
        f'<span class="more"></span></summary><p class="text" dir="auto">{esc(text)}</p></details>'
    )


def _details(card: Card) -> str:
    """The reply as it was written, and what is known of it."""
    step = card.step
    facts = [card.id, *card.folded]
    rows = [("id", ", ".join(facts)), ("log-probability", words.logprob_text(step.logprob))]
    rows += [("ended by", step.finish)]
    rows += [(f"score ({name})", f"{value:.4g}") for name, value in card.scores.items()]
    listed = "".join(f"<dt>{esc(key)}</dt><dd>{esc(value)}</dd>" for key, value in rows)
    return (
        f"<details><summary>{words.plural(step.tokens, 'token')}</summary>"
        f'<pre dir="auto">{esc(step.text)}</pre><dl>{listed}</dl></details>'
    )


def _bout(column: Column, bout: fig.Bout) -> str:
    match = bout.match
    kind = "bout" + " tie" * (match.outcome == "tie")
    if (card := column.card(match.winner)) and card.on_path:
        kind += " won"
    numbers = "".join(
        f'<span class="{"against" if text[0] in "−?=" else "for"}">{text}</span>'
        for text in words.margins(match)
    )
    place = f"grid-row:{bout.top + 1}/{bout.bottom + 1};grid-column:{bout.lane + 3}"
    return f'<div class="{kind}" style="{place}" title="{_pair(column, match)}">{numbers}</div>'


def _pair(column: Column, match: Match) -> str:
    """ "A beat B"."""
    names = [card.label if (card := column.card(id)) else id for id in fig.ordered(match)]
    return esc(" beat ".join(names))


def _matches(column: Column) -> str:
    """Every match in the order it was held, for those who want the words."""
    items = []
    for contest in column.contests:
        for match, cached in zip(contest.matches, contest.cached, strict=True):
            tie = words.tie_text(match)
            said = ", ".join(filter(None, (tie, "held before" if cached else "")))
            numbers = " ".join(words.margins(match))
            note = f' <span class="why">{esc(said)}</span>' if said else ""
            texts = ""
            for verdict, first in zip(match.verdicts, (match.first, match.second), strict=False):
                if verdict.text:
                    card = column.card(first)
                    order = f"{card.label if card else first} shown first"
                    texts += f"<dt>{esc(order)}</dt><dd dir=auto>{esc(verdict.text)}</dd>"
            texts = f"<dl>{texts}</dl>" if texts else ""
            pair = _pair(column, match)
            items.append(f"<li>{pair} <span class=num>{numbers}</span>{note}{texts}</li>")
    if not items:
        return ""
    count = words.plural(len(items), "match", "matches")
    body = "".join(items)
    return f'<details class="matches"><summary>{count}</summary><ol>{body}</ol></details>\n'


def _table(column: Column) -> str:
    """Everyone against everyone: row by column, the row's margin when it was shown first."""
    cells: dict[tuple[str, str], str] = {}
    for match in column.matches:
        orders = ((match.first, match.second), (match.second, match.first))
        for verdict, pair in zip(match.verdicts, orders, strict=False):
            won = match.winner == pair[0]
            text = words.margin_text(verdict, verdict.margin, verdict.outcome == "first")
            cells[pair] = f'<td class="{"w" if won else "l"}">{text}</td>'
        if len(match.verdicts) == 1:
            lost = match.winner == match.first
            cells[orders[1]] = f'<td class="{"l" if lost else "w"}">·</td>'
    entrants = [card for card in column.cards if any(card.id in pair for pair in cells)]
    head = "".join(f'<th scope="col">{card.label}</th>' for card in entrants)
    rows = "".join(
        f'<tr><th scope="row">{a.label}</th>'
        + "".join(
            '<td class="self"></td>' if a is b else cells.get((a.id, b.id), "<td></td>")
            for b in entrants
        )
        + "</tr>"
        for a in entrants
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Matches">'
        f'<table class="cross"><tr><td></td>{head}</tr>{rows}</table></div>\n'
    )


def _votes(figure: Figure) -> str:
    groups = fig.votes(figure)
    if not groups:
        return ""
    total = sum(len(cards) for _, cards in groups)
    rows = "".join(
        f'<tr><th scope="row" dir="auto">{esc(answer) or "—"}</th><td class="num">{len(cards)}</td>'
        f'<td class="by">{" ".join(card.label for card in cards)}</td>'
        f'<td><i class="bar" style="width:{100 * len(cards) / total:.1f}%"></i></td></tr>'
        for answer, cards in groups
    )
    return f'<table class="votes"><caption>Votes</caption>{rows}</table>\n'


# --- what it cost, how it was run ----------------------------------------------------------------


def _cost(figure: Figure) -> str:
    total = sum(figure.usage.values(), Usage())
    whole, unit = (total.flops, "FLOPs") if total.flops else (total.tokens, "tokens")
    rows = []
    for role, usage in [*figure.usage.items(), ("all", total)]:
        cells = "".join(f"<td>{text}</td>" for text in words.usage_cells(usage))
        share = (usage.flops if total.flops else usage.tokens) / whole if whole else 0
        bar = f'<i class="bar" style="width:{100 * share:.1f}%"></i> {share:.0%}'
        end = f'<td class="share">{bar if role != "all" else ""}</td>'
        rows.append(f'<tr><th scope="row">{esc(role)}</th>{cells}{end}</tr>')
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("", *words.USAGE_HEADS))
    budget = captions.budget_text(figure)
    return f"""<section class="cost">
<h2>Cost</h2>
<div class="scroll" tabindex="0" role="region" aria-label="Cost by role and kind"><table>
<tr>{heads}<th scope="col" class="share">share of {unit}</th></tr>
{chr(10).join(rows)}
</table></div><p class="sub">Budget: {esc(budget)}.</p>
</section>"""


def _setup(figure: Figure) -> str:
    s = figure.started
    model = s.backend
    sampling = f"temperature {s.sampling.temperature}, top-p {s.sampling.top_p}"
    sampling += f", top-k {s.sampling.top_k}"
    plan = " → ".join(f"{stage.tag} ({stage.length})" for stage in s.plan)
    asked = {len(match.verdicts) for column in figure.columns for match in column.matches}
    orders = "one order" if asked == {1} else f"{s.orders} order{'s' * (s.orders == 'both')}"
    judged = f"{s.judge}, {orders}, image {s.judge_image}"
    versions = ", ".join(f"{name} {version}" for name, version in s.versions.items())
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
        ("faults", ", ".join(f"{n} × {name}" for name, n in _faults(figure).items())),
        ("notes", " ".join(model.notes)),
        ("versions", f"{versions}; trace schema {s.schema}"),
    ]
    listed = "".join(
        f"<dt>{name}</dt><dd>{esc(str(value))}</dd>\n" for name, value in rows if value
    )
    command = f'<pre dir="auto">{esc(captions.command(figure))}</pre>'
    return f'<section class="setup">\n<h2>Settings</h2>\n<dl>\n{listed}</dl>\n{command}\n</section>'


def _faults(figure: Figure) -> dict[str, int]:
    return figure.finished.faults if figure.finished else {}
