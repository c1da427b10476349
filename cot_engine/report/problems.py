"""Every problem's outcome by strategy, and the searches behind them: the report's last part.

Problems on which strategies differ come first, one row each. The searches of some of them are in
the page, folded; for the others it says the command that draws them.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from cot_engine.ablation.records import Key
from cot_engine.ablation.store import Store
from cot_engine.core.trace import Trace
from cot_engine.core.usage import Usage
from cot_engine.errors import CotEngineError
from cot_engine.escape import html as esc
from cot_engine.report.findings import Findings, Outcome
from cot_engine.report.tables import box, fold
from cot_engine.show import captions, words
from cot_engine.show import figure as fig
from cot_engine.show.figure import Card, Column, Figure

ROOM = 1_400_000  # bytes of searches in a page, so that it opens fast on a phone
_QUESTION = 180  # characters of a question in the matrix
_TEXT, _OTHER = 400, 140  # characters of a candidate on the answer's path, and of any other
_CARDS = 8  # candidates of a stage


def problems(findings: Findings, store: Store, traces: int) -> str:
    """The matrix, the problems on which all agree, and the searches of at most `traces` others."""
    labels = [label for label, _ in findings.run.cells.values()]
    differing: list[Outcome] = []
    right: list[Outcome] = []
    wrong: list[Outcome] = []
    for outcome in findings.outcomes:
        known = {v for label in labels if (v := outcome.correct.get(label)) is not None}
        if known == {1.0}:
            right.append(outcome)
        elif known == {0.0}:
            wrong.append(outcome)
        elif known:
            differing.append(outcome)
    if not (differing or right or wrong):
        return "<p>No search has finished yet.</p>"
    shown, searches = _searches(findings, store, differing[: max(traces, 0)], labels)
    parts = [f"<p>{_counts(differing, right, wrong)}</p>"]
    if differing:
        parts.append(_matrix(findings, store, differing, labels, shown))
    for title, agreed in (("All wrong", wrong), ("All right", right)):
        if agreed:
            said = f"{title}: {words.plural(len(agreed), 'problem')}"
            parts.append(fold(said, _list(agreed), "open" if agreed is wrong else ""))
    return "\n".join([*parts, _how(findings, store), searches])


def _counts(*groups: Sequence[Outcome]) -> str:
    differing, right, wrong = (f"<b>{len(group):,}</b>" for group in groups)
    return (
        f"On {differing} of {sum(map(len, groups)):,} problems strategies or seeds differ; on"
        f" {right} every search is right, on {wrong} every search is wrong."
    )


def _how(findings: Findings, store: Store) -> str:
    command = esc(_command(findings, store, "PROBLEM", "STRATEGY"))
    return f'<p class="note">Any search can be drawn: <code>{command}</code></p>'


def _command(findings: Findings, store: Store, problem: str, label: str) -> str:
    """What draws one search, of the run's first seed."""
    search = f"{problem}/{label}/{findings.run.seeds[0] if findings.run.seeds else 0}"
    read = ["cot-engine", "report", str(store.path), "--run", findings.run.id, "--trace", search]
    return f"{shlex.join(read)} | cot-engine trace -"


# --- the matrix ----------------------------------------------------------------------------------


def _matrix(
    findings: Findings,
    store: Store,
    outcomes: Sequence[Outcome],
    labels: Sequence[str],
    shown: set[tuple[str, str]],
) -> str:
    heads = "".join(f'<th scope="col"><span>{esc(label)}</span></th>' for label in labels)
    rows = []
    for number, outcome in enumerate(outcomes):
        cells = []
        away = ""  # the first strategy whose search is not in the page
        for at, label in enumerate(labels):
            if not outcome.keys.get(label):
                cells.append('<td class="o"></td>')
                continue
            here = (outcome.item, label) in shown
            away = away or ("" if here else label)
            kind, mark = _mark(outcome.correct.get(label))
            cells.append(
                f'<td class="{kind}"><a href="#t{number}-{at}">{mark}</a></td>'
                if here
                else f'<td class="{kind}"><a href="#p{number}">{mark}</a></td>'
            )
        how = ""
        if away:
            command = esc(_command(findings, store, outcome.problem, away))
            how = f'<details><summary>draw</summary><code id="p{number}">{command}</code></details>'
        rows.append(f'<tr><th scope="row">{_asked(outcome)}{how}</th>{"".join(cells)}</tr>')
    caption = (
        "✓ right, ✗ wrong, a number: the mean over seeds, – none finished. A mark leads to its"
        " search, or to the command that draws it (put the strategy in it that you want)."
    )
    head = f'<tr><th scope="col">problem</th>{heads}</tr>'
    return box("Outcomes by problem and strategy", caption, head, "\n".join(rows), "matrix")


def _mark(score: float | None) -> tuple[str, str]:
    """A cell's class and what it shows."""
    if score is None:
        return "o", "–"
    if score in (0.0, 1.0):
        return ("y", "✓") if score else ("n", "✗")
    return "h", f"{score:.2f}".removeprefix("0")


def _asked(outcome: Outcome) -> str:
    """A problem in a line or two: its id and type, its question, what was expected."""
    kind = f" · {esc(outcome.type)}" if outcome.type else ""
    return (
        f"<small>{esc(outcome.problem)}{kind}</small>"
        f'<span class="q" dir="auto">{esc(_short(outcome.question, _QUESTION))}</span>'
        f'<span class="a" dir="auto">{esc(_short(outcome.expected, 60))}</span>'
    )


def _list(outcomes: Sequence[Outcome]) -> str:
    items = "".join(f"<li>{_asked(outcome)}</li>\n" for outcome in outcomes)
    return f'<ol class="agreed">\n{items}</ol>'


def _short(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


# --- searches ------------------------------------------------------------------------------------


def _searches(
    findings: Findings, store: Store, outcomes: Sequence[Outcome], labels: Sequence[str]
) -> tuple[set[tuple[str, str]], str]:
    """Which searches (item, label) are in the page, and the part of it that has them."""
    shown: set[tuple[str, str]] = set()
    parts: list[str] = []
    room = ROOM
    for number, outcome in enumerate(outcomes):
        drawn = {}
        for at, label in enumerate(labels):
            if key := _key(findings, outcome, label):
                try:
                    trace = store.trace(findings.run, key)
                except CotEngineError:  # a search that failed, or was stored without its trace
                    continue
                drawn[label] = _search(outcome, label, trace, f"t{number}-{at}")
        room -= sum(len(text.encode("utf-8", "replace")) for text in drawn.values())
        if room < 0:
            break
        if drawn:
            shown |= {(outcome.item, label) for label in drawn}
            parts.append(fold(_asked(outcome), "\n".join(drawn.values()), "problem"))
    if not parts:
        return shown, ""
    seed = findings.run.seeds[0] if findings.run.seeds else 0
    said = (
        f"The searches (seed {seed}) of {words.plural(len(parts), 'problem')} are below, texts"
        " shortened; numbers are mean log-probabilities per token, and of matches the margins in"
        " both orders."
    )
    title = "<h3>Searches</h3>"
    inside = "\n".join(parts)
    return shown, f'<div class="searches">\n{title}\n<p class="note">{said}</p>\n{inside}\n</div>'


def _key(findings: Findings, outcome: Outcome, label: str) -> Key | None:
    """The search of the run's first seed."""
    first = findings.run.seeds[0] if findings.run.seeds else 0
    return next((key for key in outcome.keys.get(label, ()) if key.seed == first), None)


def _search(outcome: Outcome, label: str, trace: Trace, id: str) -> str:
    """One search: what it answered at what cost; folded, its stages."""
    try:
        figure = fig.read(trace)
    except CotEngineError as error:
        return fold(f"{esc(label)} {esc(str(error))}", f'<div id="{id}"></div>')
    kind, mark = _mark(outcome.correct.get(label))
    answer = figure.answer if figure.answer is not None else figure.ending
    total = sum(figure.usage.values(), Usage())
    cost = f"{words.number(total.flops)}flops" if total.flops else f"{total.tokens:,} tokens"
    cost = cost if " " in cost else cost.replace("flops", " flops")
    summary = (
        f'<b>{esc(label)}</b> <span class="{kind}">{mark}</span>'
        f' <span dir="auto">{esc(_short(answer, 80))}</span> <small>{cost}</small>'
    )
    stages = "\n".join(part for column in figure.columns for part in _stage(figure, column))
    remarks = "".join(f"<p>{esc(text)}</p>" for text in figure.remarks)
    return fold(summary, f'<div id="{id}" class="search">{remarks}\n{stages}</div>')


def _stage(figure: Figure, column: Column) -> Iterator[str]:
    yield f"<h4>{esc(column.title)} <small>{esc(captions.column_text(column))}</small></h4>"
    chosen = [card for card in column.cards if card.on_path]
    others = [card for card in column.cards if not card.on_path]
    cards = [*chosen, *others][:_CARDS]
    items = "".join(_candidate(figure, column, card) for card in cards)
    if more := len(column.cards) - len(cards):
        items += f"<li>and {more:,} more</li>"
    yield f"<ol>{items}</ol>"
    if column.matches:
        yield f'<p class="matches">{esc(_matches(column))}</p>'
    for remark in column.remarks:
        yield f"<p>{esc(remark)}</p>"


def _candidate(figure: Figure, column: Column, card: Card) -> str:
    parts = words.pieces(card.step.text, figure.started.plan)
    if len(parts) > 1 or (parts and column.unit in ("end", "sentence")):
        text = " ".join(f"{stage}: {said}" if stage else said for stage, said in parts)
    else:
        text = " ".join(said for _, said in parts)
    if not card.on_path and column.unit == "end" and parts:
        text = f"… {parts[-1][0]}: {parts[-1][1]}"
    said = esc(_short(text, _TEXT if card.on_path else _OTHER)) or "<i>nothing</i>"
    count = f" ×{card.count}" if card.count > 1 else ""
    faults = "".join(f" <em>{esc(words.fault_text(fault))}</em>" for fault in card.step.faults)
    likely = words.logprob_text(card.chain.likelihood(1))
    kind = ' class="w"' if card.on_path else ""
    return (
        f"<li{kind}><b>{card.label}{count}</b> <small>{likely}</small>"
        f' <span dir="auto">{said}</span>{faults}</li>'
    )


def _matches(column: Column) -> str:
    """ "A beat B +0.40 −0.60; ..."."""
    said = []
    for match in column.matches[: 2 * _CARDS]:
        names = [card.label if (card := column.card(id)) else id for id in fig.ordered(match)]
        tie = words.tie_text(match)
        margins = " ".join(words.margins(match))
        said.append(" ".join(filter(None, (" beat ".join(names), margins, tie and f"({tie})"))))
    if more := len(column.matches) - len(said):
        said.append(f"and {more:,} more")
    return "; ".join(said)
