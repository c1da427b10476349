"""The report of an ablation as one self-contained HTML file: no script, nothing fetched.

What it says is in `Findings`; the searches it shows are read from the store.
"""

from __future__ import annotations

import importlib.resources
import json
import math
from collections.abc import Iterator
from typing import Any

from cot_engine.ablation.store import Store
from cot_engine.escape import html as esc
from cot_engine.report import plots
from cot_engine.report.amounts import amount, axis, bounds, figures, percent, probability, share
from cot_engine.report.findings import Findings, Standing
from cot_engine.report.judging import Card
from cot_engine.report.panels import Plot
from cot_engine.report.problems import problems
from cot_engine.report.rowplots import ROLES
from cot_engine.report.tables import bar, fold, line, plot, section, table, text_cell
from cot_engine.show import words
from cot_engine.statistics import Interval

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"


def page(findings: Findings, store: Store, *, traces: int = 60) -> str:
    """The page, as text. `traces`: the most problems whose searches are shown in it.

    Raises CotEngineError without matplotlib, StoreError for a store that cannot be read.
    """
    drawn = plots.draw(findings)
    sections = [
        ("accuracy", "Accuracy and compute", _accuracy(findings, drawn)),
        ("comparisons", "Comparisons", _comparisons(findings, drawn)),
        ("headroom", "Headroom", _headroom(findings, drawn)),
        ("types", "By question type", _types(findings)),
        ("judges", "Judges", _judges(findings, drawn)),
        ("problems", "Problems", problems(findings, store, traces)),
        ("run", "What was run", _run(findings)),
    ]
    links = "".join(f'<li><a href="#{id}">{title}</a></li>' for id, title, _ in sections)
    body = f"{_head(findings)}\n<nav><ul>{links}</ul></nav>\n"
    body += "\n".join(section(id, title, content) for id, title, content in sections)
    css = importlib.resources.files(__package__).joinpath("page.css").read_text("utf-8")
    return document(f"Ablation {findings.run.name}"[:80], css, body)


def document(title: str, css: str, body: str) -> str:
    """A page of its own: the body between the rules of all pages and of this one. Nothing in it
    may run, and nothing is fetched."""
    base = importlib.resources.files("cot_engine.show").joinpath("base.css").read_text("utf-8")
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


def _head(findings: Findings) -> str:
    run = findings.run
    data = _about(findings, "data").get("name") or "its data"
    sizes = [
        words.plural(len(run.items), "problem"),
        words.plural(len(run.seeds), "seed"),
        words.plural(len(run.cells), "configuration"),
        words.plural(findings.searches, "search", "searches"),
    ]
    if findings.where:
        sizes.append(f"only where {findings.where}")
    said = "".join(f"<p>{esc(text)}</p>" for text in findings.headline)
    notes = "".join(f"<li>{esc(text)}</li>" for text in findings.notes)
    notes = f'\n<ul class="remarks">{notes}</ul>' if notes else ""
    return f"""<header>
<p class="kicker">Ablation · {esc(run.started[:10])}</p>
<h1>{esc(run.name)} <span>on {esc(str(data))}</span></h1>
<p class="sub">{esc(" · ".join(sizes))}</p>
<div class="headline">{said}</div>{notes}
</header>"""


# --- accuracy and cost ---------------------------------------------------------------------------

_MARKS = {
    "reference": "sets the budget",
    "matched": "matched",
    "unmatched": "not matched",
    "": "",
}


def _accuracy(findings: Findings, drawn: dict[str, Plot]) -> str:
    standings = findings.standings
    if not standings:
        return "<p>No search has been done yet.</p>"
    known = [s.accuracy for s in standings if not math.isnan(s.accuracy.estimate)]
    low = math.floor(10 * min((i.low for i in known), default=0)) / 10
    high = math.ceil(10 * max((i.high for i in known), default=1)) / 10
    most = [s.spent for s in standings] + [s.allotted or 0 for s in standings]
    factor, unit = axis([v for v in most if not math.isnan(v)], findings.unit)
    roles = [role for role in ROLES if any(s.by_role.get(role) for s in standings)]
    budgets = any(s.allotted is not None for s in standings)
    failures = any(s.failed for s in standings)
    heads = ["<th></th>", '<th scope="col" class="text">strategy</th>', "problems", "accuracy"]
    heads += ["95 % interval", _scale(low, high), "spent", *roles]
    heads += ["allotted", "left", '<th scope="col" class="text"></th>'] * budgets
    heads += ["seconds"] + ["failed"] * failures

    def cells(number: int, s: Standing) -> list[str]:
        def in_unit(value: float | None) -> str:
            return "–" if value is None or math.isnan(value) else figures(value / factor)

        row = [f'<td class="number">{number}</td>', f'<th scope="row">{esc(s.label)}</th>']
        row += [f"{s.problems:,}", f"<b>{share(s.accuracy.estimate)}</b>", bounds(s.accuracy)]
        row += [bar(s.accuracy, low, high), in_unit(s.spent)]
        row += [in_unit(s.by_role[r]) if s.by_role.get(r) else "" for r in roles]  # type: ignore[index]
        if budgets:
            row += ["" if s.allotted is None else in_unit(s.allotted)]
            row += ["" if s.left is None else in_unit(s.left), text_cell(_mark(s))]
        row.append("–" if math.isnan(s.seconds) else f"{s.seconds:,.2f}")
        return row + [f"{s.failed:,}" if s.failed else ""] * failures

    def lines() -> Iterator[str]:
        told = ""
        for number, s in enumerate(standings, 1):
            if s.kind != "search" and not told:
                told = "Worked out from the responses of a row above, at the cost of sampling them"
                yield f'<tr class="group"><td></td><th colspan="{len(heads) - 1}">{told}</th></tr>'
            yield line(cells(number, s), "faint" if s.kind != "search" else s.matching)

    caption = (
        "Accuracy is the mean score over problems, each counting once. Costs are means per search,"
        f" in {unit}."
    )
    made = table("Accuracy and cost", caption, heads, lines(), kind="standings")
    parts = [made, _matching(findings), plot(drawn["accuracy"]), plot(drawn["scaling"])]
    return "\n".join([*parts, plot(drawn["cost"])])


def _scale(low: float, high: float) -> str:
    ends = f"<span>{low:.1f}</span><span>{high:.1f}</span>"
    return f'<th scope="col" class="bar"><span class="ends">{ends}</span></th>'


def _mark(s: Standing) -> str:
    said = _MARKS[s.matching]
    if s.matching in ("matched", "unmatched") and s.allotted:
        said += f" (×{s.spent / s.allotted:.2f})"
    return said


def _matching(findings: Findings) -> str:
    """What "matched" means here."""
    if not any(s.allotted is not None for s in findings.standings):
        if len(findings.run.cells) < 2:
            return ""
        return (
            '<p class="note">Nothing is matched in this grid: each strategy ran with its own'
            " settings, whatever that costs. Read accuracies beside their costs.</p>"
        )
    name = next((s.label for s in findings.standings if s.matching == "reference"), "")
    goal = f"what <b>{esc(name)}</b> spent on it" if name else "the same amount"
    return (
        f'<p class="note">A row with a budget may spend, on each problem and seed, {goal}'
        f" ({esc(findings.unit)}, judging counted). It is <i>matched</i> if on average it spent"
        " that to within 5 %; a comparison with one that is not compares different amounts of"
        " compute. All other rows ran with their own n, whatever it costs.</p>"
    )


# --- comparisons, headroom, types ----------------------------------------------------------------


def _comparisons(findings: Findings, drawn: dict[str, Plot]) -> str:
    found = findings.comparisons
    if not found:
        return plot(drawn["forest"])
    heads = ["difference of accuracies", "estimate", "95 % interval", "p", "adjusted p"]
    heads += ["only first right", "only second right", "problems", "compute, first / second"]
    rows = [
        [
            esc(f"{c.first} − {c.second}"),
            f"<b>{share(c.paired.difference.estimate, sign=True)}</b>",
            bounds(c.paired.difference, sign=True),
            probability(c.paired.p),
            probability(c.p),
            percent(c.paired.only_first),
            percent(c.paired.only_second),
            f"{c.paired.problems:,}",
            f"{c.ratio:.2f}" + (" (matched)" if c.matched else ""),
        ]
        for c in found
    ]
    caption = (
        f"Paired by problem; p of the exact randomisation test, adjusted for {found[0].family}"
        " comparisons (Holm)."
    )
    said = "".join(f"<li>{esc(c.sentence)}</li>" for c in found)
    numbers = fold("The numbers", table("Comparisons", caption, heads, rows), "open")
    return f'{plot(drawn["forest"])}\n<ul class="sentences">{said}</ul>\n{numbers}'


def _headroom(findings: Findings, drawn: dict[str, Plot]) -> str:
    if not findings.headrooms:
        return plot(drawn["headroom"])
    rows = []
    for h in findings.headrooms:
        never, lost = 1 - h.oracle.estimate, h.oracle.estimate - h.selected.estimate
        rows.append(
            [
                esc(h.label),
                text_cell(esc(h.stage)),
                text_cell(h.measure),
                f"{h.n:.1f}",
                f"{h.problems:,}",
                *(_stacked(i) for i in (h.random, h.selected, h.oracle)),
                percent(h.taken),
                f"<b>{share(lost)}</b>",
                f"<b>{share(never)}</b>",
            ]
        )
    heads = ["strategy", '<th scope="col" class="text">stage</th>']
    heads += ['<th scope="col" class="text">by</th>', "n", "problems", "random", "selected"]
    heads += ["oracle", "taken", "judged away", "never generated"]
    caption = (
        "“Judged away” (oracle − selected): the better candidate was there and another was taken."
        " “Never generated” (1 − oracle): no candidate would have done. “Taken”: (selected −"
        " random) / (oracle − random). By <i>worth</i>: the share of a candidate’s continuations"
        " that end right; by <i>facts</i>: whether its own text is right."
    )
    made = table("Headroom by stage", caption, heads, rows, kind="stacked")
    return f"{plot(drawn['headroom'])}\n{made}"


def _types(findings: Findings) -> str:
    if not findings.types:
        return "<p>The data has one type of question only.</p>"
    labels = list(dict.fromkeys(label for row in findings.types for label in row.accuracy))

    def cells(label: str) -> Iterator[str]:
        yield esc(label)
        for row in findings.types:
            found = row.accuracy.get(label)
            yield "–" if found is None else _stacked(found)

    heads = ["strategy"]
    heads += [
        f"{esc(t.type)} <small>{words.plural(t.problems, 'problem')}</small>"
        for t in findings.types
    ]
    caption = "Accuracy by question type, with 95 % intervals; not corrected for their number."
    rows = [list(cells(label)) for label in labels]
    return table("Accuracy by question type", caption, heads, rows, kind="stacked")


def _stacked(found: Interval, *, sign: bool = False, strong: bool = False) -> str:
    """An estimate above its interval."""
    if math.isnan(found.estimate):
        return "–"
    said = share(found.estimate, sign=sign)
    said = f"<b>{said}</b>" if strong else said
    return f"{said} <small>{bounds(found, sign=sign)}</small>"


# --- judges --------------------------------------------------------------------------------------


def _judges(findings: Findings, drawn: dict[str, Plot]) -> str:
    if not findings.cards:
        return (
            "<p>No judge’s choices were between candidates of known outcome: give cells"
            " <code>rollouts</code>, or a data set that knows what a stage should say.</p>"
        )
    heads = ["judge", *(f'<th scope="col" class="text">{h}</th>' for h in ("stage", "by"))]
    heads += ["problems", "pairs", "right", "right, ties wrong", "leaning right", "gain taken"]
    heads += ["cost of a match", "to a candidate’s", "ties", "flips", "unreadable"]
    heads += ["for the first", "longer taken", "longer better", "circles", "calibration error"]
    terms = (
        ("right", "of pairs of which one is better, how often it was preferred; a tie is half"),
        ("leaning right", "by the sign of the margin over both orders, ties or not"),
        ("gain taken", "how much of the way from a random candidate to the best selection went"),
        ("to a candidate’s", "FLOPs of a match over those of sampling a candidate"),
        ("flips", "both orders named the same place"),
        ("for the first", "how much more often than half the one shown first was named"),
        ("longer taken", "how often the longer of two texts was preferred; and was the better one"),
        ("circles", "A over B over C over A, of triples; a coin makes 0.25"),
        ("calibration error", "mean distance to what margins say if they are log-odds"),
    )
    listed = "".join(f"<dt>{term}</dt><dd>{meaning}</dd>" for term, meaning in terms)
    caption = "Report card of each judge at each stage, 95 % intervals over problems."
    made = table("Judges", caption, heads, map(_card, findings.cards), kind="stacked")
    return f'{made}\n<dl class="terms">{listed}</dl>\n{plot(drawn["calibration"])}'


def _card(card: Card) -> list[str]:
    seen = {"blank": ", a grey picture", "swap": ", another picture"}.get(card.image, "")
    circles = "–" if card.cycles is None else share(card.cycles)
    circles += f" <small>of {card.triples:,}</small>" if card.triples else ""
    cost = f"{amount(card.cost.flops, 'flops')} <small>{card.cost.seconds:.2g} s</small>"
    return [
        esc(card.judge) + seen,
        text_cell(esc(card.stage)),
        text_cell(card.measure),
        f"{card.problems:,}",
        f"{card.pairs:,}",
        _stacked(card.right, strong=True),
        _stacked(card.strict),
        _stacked(card.leaning),
        percent(card.gain.taken) if card.gain else "–",
        cost,
        "–" if card.relative is None else f"×{figures(card.relative)}",
        percent(card.ties),
        percent(card.flips),
        percent(card.unreadable),
        _stacked(card.first, sign=True),
        share(card.longer),
        share(card.longer_right),
        circles,
        share(card.calibration_error),
    ]


# --- what was run --------------------------------------------------------------------------------


def _about(findings: Findings, key: str) -> dict[str, Any]:
    found = findings.run.about.get(key)
    return found if isinstance(found, dict) else {}


def _run(findings: Findings) -> str:
    run = findings.run
    rows: list[tuple[str, Any]] = [("run", run.id), ("started", run.started), ("code", run.code)]
    rows += [("model", run.model), ("data", run.data)]
    rows += [("seeds", ", ".join(map(str, run.seeds)))]
    written: list[tuple[str, str]] = []
    for key, value in run.about.items():
        if isinstance(value, dict):
            said = {name: part for name, part in value.items() if part not in (run.model, run.data)}
            rows += [(f"{key}, {name}", part) for name, part in said.items()]
        elif "\n" in str(value):
            written.append((key, str(value)))
        else:
            rows.append((key, value))
    done = f"{findings.searches:,}, of which {findings.failed:,} failed"
    rows.append(("searches", f"{done}; {findings.missing:,} missing"))
    listed = "".join(
        f"<dt>{esc(key)}</dt><dd>{esc(str(value))}</dd>\n" for key, value in rows if value != ""
    )
    commands = "\n".join(findings.commands)
    texts = "".join(
        fold(f"{esc(key.capitalize())}, as written", f"<pre>{esc(text)}</pre>", "open")
        for key, text in written
    )
    cells = "".join(
        f"<dt><b>{esc(label)}</b> <code>{esc(hash)}</code></dt>"
        f"<dd><pre>{esc(json.dumps(plain, ensure_ascii=False))}</pre></dd>\n"
        for hash, (label, plain) in run.cells.items()
    )
    made = "These commands made it:" if commands else ""
    told = "Every configuration, as its hash is made"
    folded = fold(told, f'<dl class="cells">{cells}</dl>', "open")
    return f"<p>{made}</p>\n<pre>{esc(commands)}</pre>\n<dl>\n{listed}</dl>\n{texts}{folded}"
