"""The ablation's report as a page: golden file, plots against findings, hostile text, a browser."""

from __future__ import annotations

import hashlib
import math
import pickle
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from xml.etree import ElementTree

import browser
import pytest
from browser import in_browser
from golden import check_golden
from html_page import Page
from hypothesis import given
from hypothesis import strategies as st
from make_store import digest, make_run, make_store, plain, put
from make_traces import HOSTILE, TRACES

from cot_engine.ablation.records import ItemRecord, Key
from cot_engine.ablation.store import Store
from cot_engine.cli.report import _named
from cot_engine.report import amounts, panels, plots, problems, svg, tradeoff
from cot_engine.report.analysis import analyse
from cot_engine.report.findings import Findings, ItemOutcome
from cot_engine.report.page import page
from cot_engine.show import templates
from cot_engine.statistics import Interval

COLORS = {svg.INK, svg.SOFT, svg.RULE, svg.PAPER, *svg.SERIES}
NAMES = ("accuracy", "scaling", "forest", "cost", "headroom", "calibration")
EVIL = "<img src=x onerror=alert(1)> \"quoted' & $x$ \x1b[31m\u202e"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "main.sqlite"
    make_store(path, 15, (0, 1), traces=6)[0].close()
    with Store(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def found(store) -> Findings:
    return analyse(store, store.run())


@pytest.fixture(scope="module")
def drawn(found) -> dict[str, plots.Plot]:
    return plots.draw(found)


@pytest.fixture
def as_drawn(drawn, monkeypatch):
    """The plots are not what is tested: they are not drawn again."""
    monkeypatch.setattr(plots, "draw", lambda found: drawn)


@pytest.fixture(scope="module")
def html(found, store) -> str:
    return page(found, store)


# --- the page ------------------------------------------------------------------------------------


def test_page_looks_as_recorded(html, store):
    html = re.sub(r"<style>.*?</style>", "<style></style>", html, flags=re.DOTALL)
    html = re.sub(r"<svg .*?</svg>", "<svg></svg>", html, flags=re.DOTALL)
    check_golden("report/page.html", html.replace(str(store.path), "main.sqlite"))


def test_page_is_self_contained(html):
    seen = Page(html)
    for tag, attributes in seen.elements:
        assert tag not in ("script", "link", "iframe", "object", "base", "form", "img", "image")
        assert not [key for key in attributes if key.startswith("on")]
        assert attributes.get("href", "#").startswith("#")
        assert "src" not in attributes
    assert not re.search(r"url\((?!#)|@import|https?:", html.replace("http://x)", ""))
    policy = next(a["content"] for a in seen.all("meta") if "http-equiv" in a)
    assert "default-src 'none'" in policy and "script" not in policy


def test_every_link_leads_somewhere_and_ids_are_unique(html):
    elements = Page(html).elements
    ids = [a["id"] for _, a in elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = {a["href"][1:] for _, a in elements if a.get("href", "").startswith("#")}
    assert links <= set(ids)
    assert any(link.startswith("t") for link in links) and any(x.startswith("p") for x in links)
    for _, attributes in elements:
        for used in re.findall(r"url\(#([^)]+)\)", " ".join(map(str, attributes.values()))):
            assert used in ids


def test_page_tells_the_findings(html, found):
    text = Page(html).text
    for s in found.standings:
        assert s.label in text and amounts.share(s.accuracy.estimate) in text
    for c in found.comparisons:
        assert c.sentence in text
    for said in (*found.headline, *found.notes, *found.commands, found.run.id, found.run.code):
        assert said in text
    for digest_ in found.run.cells:
        assert digest_ in text
    assert "not matched (×0.72)" in text and "sets the budget" in text


def test_page_has_tables_a_reader_can_hear(html):
    seen = Page(html)
    tables = len(seen.all("table"))
    assert tables == len(seen.all("caption")) == html.count('role="region"')
    assert all(a.get("scope") or a.get("colspan") or not a for a in seen.all("th"))
    assert len(seen.all("h1")) == 1 and len(seen.all("h2")) == len(seen.all("section"))


def test_each_outcome_leads_to_its_search(html, found, store):
    """To the search in the page, or to a command that names a search of that problem."""
    labels = [label for label, _ in found.run.cells.values()]
    rows = re.findall(r'<tr><th scope="row"><small>(\S+) .*?</tr>', html)
    assert rows == [o.problem for o in found.outcomes if o.problem in rows]
    assert html.count('class="search"') <= len(rows) * len(labels)
    shown = set(re.findall(r'<div id="t(\d+)-\d+" class="search">', html))
    assert 1 < len(shown) < len(rows)  # six problems have traces
    commands = re.findall(r'<code id="p(\d+)">(.*?)</code>', html)
    assert {n for n, _ in commands} == {str(n) for n in range(len(rows))} - shown
    for number, command in commands:
        words = shlex.split(command.replace("&#39;", "'").split(" | ")[0])
        assert words[:3] == ["cot-engine", "report", str(store.path)]
        (key,) = _named(found.run, words[words.index("--trace") + 1])
        item = next(o.item for o in found.outcomes if o.problem == rows[int(number)])
        assert key.item == item


def test_fewer_traces(found, store, as_drawn):
    few, none = (page(found, store, traces=n) for n in (2, 0))
    assert few.count('class="problem"') == 2 and 'class="problem"' not in none
    assert not re.search(r'href="#t\d', none) and 'href="#p0"' in none


def test_searches_keep_to_their_room(found, store, monkeypatch, as_drawn):
    monkeypatch.setattr(problems, "ROOM", 30_000)
    drawn = page(found, store)
    searches = drawn[drawn.index('<div class="searches">') : drawn.index('<section id="run">')]
    assert 0 < len(searches.encode()) < 33_000


def test_problems_on_which_all_agree_are_lists(found, store, as_drawn):
    labels = [label for label, _ in found.run.cells.values()]

    def agreed(outcome: ItemOutcome, score: float | None) -> ItemOutcome:
        return replace(outcome, correct=dict.fromkeys(labels, score))

    a, b, c, d = found.outcomes[:4]
    outcomes = (agreed(a, 1.0), agreed(b, 0.0), agreed(c, 0.5), agreed(d, None))
    drawn = page(replace(found, outcomes=outcomes), store)
    text = Page(drawn).text
    assert "On 1 of 3 problems" in text
    assert "All right: 1 problem" in text and "All wrong: 1 problem" in text
    assert drawn.count('<td class="h">') == len(labels)


def test_a_thousand_problems_of_fifteen_strategies_stay_small(found, tmp_path, as_drawn):
    """All of them different, all questions long; the searches have their own limit."""
    labels = [f"a strategy of some kind n={n} (matched)" for n in range(15)]
    cells = {digest(label): (label, plain("greedy")) for label in labels}
    run = make_run(1000, (0,), cells, "none")
    outcomes = tuple(
        ItemOutcome(
            item.problem,
            item.digest,
            item.type,
            "What? " * 50,
            item.expected,
            {label: float((at + n) % 2) for n, label in enumerate(labels)},
            {label: (Key(hash, 0, item.digest),) for hash, (label, _) in cells.items()},
        )
        for at, item in enumerate(run.items)
    )
    with Store(tmp_path / "big.sqlite", create=True) as store:
        store.begin(run)
        drawn = page(replace(found, run=run, outcomes=outcomes), store)
    assert drawn.count("<td class=") > 15_000
    assert len(drawn.encode()) + problems.ROOM < 3_000_000


# --- what is missing, what is hostile ------------------------------------------------------------

_NAN = Interval(math.nan, 0.0, 1.0)


def _unknown(found: Findings) -> Findings:
    bare = [replace(s, accuracy=_NAN, spent=math.nan, seconds=math.nan, by_role={}, usage={},
                    allotted=None, left=None, problems=0) for s in found.standings]  # fmt: skip
    return replace(found, standings=tuple(bare), curves=(), comparisons=())


PARTS = {
    "nothing": lambda f: replace(
        f, headline=(), notes=(), standings=(), comparisons=(), curves=(), headrooms=(), types=(),
        cards=(), outcomes=(), searches=0, commands=(),
    ),
    "no matching": lambda f: replace(
        f,
        standings=tuple(
            replace(s, allotted=None, left=None, matching="") for s in f.standings
        ),
    ),
    "one cell": lambda f: replace(f, standings=f.standings[:1], comparisons=(), curves=()),
    "no types": lambda f: replace(f, types=()),
    "no headroom": lambda f: replace(f, headrooms=(), cards=()),
    "no result": _unknown,
    "no rows of a cell": lambda f: replace(
        f,
        standings=tuple(replace(s, accuracy=_NAN) for s in f.standings[:1]) + f.standings[1:],
        outcomes=tuple(replace(o, correct=dict.fromkeys(o.correct), keys={}) for o in f.outcomes),
    ),
    "tokens": lambda f: replace(f, unit="new tokens"),
    "about": lambda f: replace(
        f, run=replace(f.run, about={"grid": "seeds = [0]\n\n[data]\nn = 3", "odd": 3}, seeds=()),
        where="type = 'count' and 1 < 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_partial_findings(name, found, store, monkeypatch):
    part = PARTS[name](found)
    drawn = plots.draw(part)
    monkeypatch.setattr(plots, "draw", lambda found: drawn)
    html = page(part, store)
    text = Page(html).text
    assert "nan" not in text.lower().replace("finance", "") and "None" not in text
    assert "inf" not in re.findall(r"[a-z]+", re.sub(r"<svg.*?</svg>", "", text))
    for plot in drawn.values():
        assert bool(plot.wide) == bool(plot.narrow) != bool(plot.absent)
        whole = {"nothing": ("accuracy", "scaling", "cost", "calibration")}.get(name, ())
        whole = ("calibration",) if name == "no headroom" else whole
        if plot.absent and plot.name not in whole:  # else the section has one sentence for all
            assert plot.absent in text and plot.absent.endswith(".")
    if name == "nothing":
        assert all(plot.absent for plot in drawn.values())


def test_hostile_text_stays_text(tmp_path):
    cells = {digest(n): (f"{n} {EVIL}", plain("best-of-n", {"n": n})) for n in (1, 2)}
    run = make_run(3, (0,), cells, "1 " + EVIL, name=EVIL, command=EVIL)
    odd = ItemRecord("odd", EVIL, EVIL, EVIL, EVIL)
    run = replace(run, items=(odd, *run.items), about={"data": {"name": EVIL}, EVIL: f"{EVIL}\n"})
    with Store(tmp_path / "evil.sqlite", create=True) as store:
        store.begin(run)
        labels = [label for label, _ in cells.values()]
        for at, label in enumerate(labels):
            for number in range(4):
                trace = TRACES["hostile"]() if number == 0 else None
                right = float((at + number) % 2)
                put(store, run, label, number, 0, right, 1e9 * (at + 1), trace=trace)
        html = page(analyse(store, run), store)
    seen = Page(html)
    assert not [tag for tag, _ in seen.elements if tag in ("script", "img")]
    assert not [a for _, a in seen.elements if any(key.startswith("on") for key in a)]
    assert html.count("</style>") == 1 and "\x1b" not in html and "\u202e" not in html
    assert '<img src=x onerror=alert(1)> "quoted' in seen.text and HOSTILE[:10] in seen.text
    for plot in re.findall(r"<svg .*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(plot)


def test_a_report_that_does_not_escape_would_tell(found, store, monkeypatch, as_drawn):
    """The negative control: questions of the store have markup in them."""
    bare = templates.environment().overlay(autoescape=False)
    assert "<script" not in page(found, store)
    monkeypatch.setattr(templates, "environment", lambda: bare)
    assert "<script" in page(found, store)


# --- the plots -----------------------------------------------------------------------------------


def parts(plot: str) -> dict[str, tuple[str, ElementTree.Element]]:
    """What is named in a plot: what is said of it, and its mark."""
    root = ElementTree.fromstring(plot)
    return {
        e.get("id").split("-", 2)[2]: (e.findtext("title"), e)
        for e in root
        if e.find("title") is not None
    }


def place(mark: ElementTree.Element) -> tuple[float, float]:
    x, y = re.fullmatch(r"translate\((\S+) (\S+)\) scale\(\S+\)", mark.get("transform")).groups()
    return float(x), float(y)


def straight(pairs: list[tuple[float, float]]) -> None:
    """The pixels are a linear function of the values, to the rounding of pixels."""
    (low, at_low), (high, at_high) = min(pairs), max(pairs)
    assert high > low
    for value, at in pairs:
        expected = at_low + (value - low) / (high - low) * (at_high - at_low)
        assert at == pytest.approx(expected, abs=0.03)


def texts(plot: str) -> list[str]:
    return [e.text for e in ElementTree.fromstring(plot).iter("text")]


def test_plots_are_the_same_each_time(found, drawn):
    assert plots.draw(found) == drawn
    code = """import hashlib, pickle, sys
sys.path[:0] = sys.argv[1:]
from cot_engine.report import plots
found = pickle.loads(sys.stdin.buffer.read())
print(hashlib.sha256(repr(plots.draw(found)).encode()).hexdigest())"""
    done = subprocess.run(
        [sys.executable, "-c", code, *sys.path], input=pickle.dumps(found), capture_output=True,
        check=True, env={"PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert done.stdout.decode().strip() == hashlib.sha256(repr(drawn).encode()).hexdigest()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", ["wide", "narrow"])
def test_plots_are_inline_and_named(drawn, name, size):
    plot = getattr(drawn[name], size)
    root = ElementTree.fromstring(plot)
    assert root.tag == "svg" and root.get("role") == "img" and root.get("aria-label")
    assert root.get("width") == str(svg.WIDE if size == "wide" else svg.NARROW)
    assert not re.search(r"#[0-9a-f]{3}|font-family|<style|xmlns|nan", plot)
    assert {e.get(key) for e in root for key in ("fill", "stroke")} <= COLORS | {"none", None}
    assert len(plot) < 32_000
    labels = {
        "accuracy": {"accuracy", "Gflops a search", "tokens a search", "seconds a search"},
        "scaling": {"accuracy", "n", "mean spent on a search (Gflops)"},
        "forest": {"difference in accuracy (points)"},
        "cost": {"mean spent on a search (Gflops)"},
        "headroom": {"mean score of the candidate that is taken"},
        "calibration": {"share right", "mean |margin|"},
    }[name]
    assert labels <= set(texts(plot))
    assert all(text and text.strip() for text in texts(plot))


def test_accuracy_plots_show_the_standings(found, drawn):
    """One for FLOPs, tokens and seconds each, all with the same scale of accuracy; only searches
    have seconds of their own."""
    for size in ("wide", "narrow"):
        seen = parts(getattr(drawn["accuracy"], size))
        own = {n for n, s in enumerate(found.standings, 1) if s.kind == "search"}
        every = set(range(1, len(found.standings) + 1))
        shown = [f"u{unit}-s{n}" for unit, ns in enumerate((every, every, own)) for n in ns]
        assert set(seen) == set(shown)
        for unit in range(3):
            points = []
            for number, s in enumerate(found.standings, 1):
                if f"u{unit}-s{number}" in seen:
                    said, mark = seen[f"u{unit}-s{number}"]
                    assert said.startswith(f"{s.label}: {amounts.interval(s.accuracy)}")
                    points.append((s.accuracy.estimate, place(mark)[1]))
            straight(points)
    assert {"FLOPs", "tokens", "seconds"} <= set(texts(drawn["accuracy"].wide))
    assert "budget: stage-beam n=4" in texts(drawn["accuracy"].wide)


@pytest.mark.parametrize("unit", tradeoff.UNITS)
def test_accuracy_plots_keep_the_order_of_cost(found, drawn, unit):
    at = tradeoff.UNITS.index(unit)
    seen = parts(drawn["accuracy"].wide)
    spent = {n: tradeoff.spent(s, unit, "flops") for n, s in enumerate(found.standings, 1)}
    own = [(spent[n], place(seen[f"u{at}-s{n}"][1])[0]) for n, s in enumerate(found.standings, 1)
           if s.kind == "search"]  # fmt: skip
    across = [x for _, x in sorted(own)]
    assert across == sorted(across)
    derived = [(math.log(spent[n]), place(seen[f"u{at}-s{n}"][1])[0])
               for n, s in enumerate(found.standings, 1)
               if s.kind != "search" and unit != "seconds"]  # fmt: skip
    if len({value for value, _ in derived}) > 1:
        straight(derived)


def test_pareto_best_is_what_nothing_beats(found, drawn):
    """By brute force; ringed in the plot, marked in the table."""
    own, half = [s for s in found.standings if s.kind == "search"], Interval(0.5, 0.4, 0.6)
    for at, unit in enumerate(tradeoff.UNITS):
        cost = {s.label: tradeoff.spent(s, unit, "flops") for s in own}
        best = {
            s.label
            for s in own
            if not any(
                cost[o.label] <= cost[s.label]
                and o.accuracy.estimate >= s.accuracy.estimate
                and (cost[o.label], -o.accuracy.estimate) != (cost[s.label], -s.accuracy.estimate)
                for o in own
            )
        }
        assert {s.label for s in tradeoff.pareto(found, unit)} == best and 0 < len(best) < len(own)
        ringed = re.findall(rf'id="accuracy-880-u{at}-b(\d+)"', drawn["accuracy"].wide)
        assert {found.standings[int(n) - 1].label for n in ringed} == best
        alike = replace(found, standings=tuple(replace(s, accuracy=half) for s in own))
        assert [s.label for s in tradeoff.pareto(alike, unit)] == [min(cost, key=cost.get)]


def test_scaling_plot_shows_the_curves(found, drawn):
    seen = parts(drawn["scaling"].wide)
    curves = [c for c in found.curves if len(c.points) > 1]
    assert len(seen) == 2 * sum(len(c.points) for c in curves)
    cost = [(math.log(p.spent), place(seen[f"c{i}-{k}"][1])[0])
            for i, c in enumerate(curves) for k, p in enumerate(c.points)]  # fmt: skip
    straight(cost)
    for panel in "nc":
        straight([(p.accuracy.estimate, place(seen[f"{panel}{i}-{k}"][1])[1])
                  for i, c in enumerate(curves) for k, p in enumerate(c.points)])  # fmt: skip


def test_forest_plot_shows_the_comparisons(found, drawn):
    seen = parts(drawn["forest"].narrow)
    assert len(seen) == len(found.comparisons)
    straight([(c.paired.difference.estimate, place(seen[f"d{i}"][1])[0])
              for i, c in enumerate(found.comparisons)])  # fmt: skip
    for i, c in enumerate(found.comparisons):
        assert f"{c.first} − {c.second}" in seen[f"d{i}"][0]
        assert amounts.interval(c.paired.difference, sign=True) in seen[f"d{i}"][0]


def test_cost_plot_shows_what_each_role_spent(found, drawn):
    seen = parts(drawn["cost"].wide)
    own = [s for s in found.standings if s.kind == "search"]
    widths, ticks = [], []
    for i, s in enumerate(own):
        for role, spent in s.by_role.items():
            widths.append((spent, float(seen[f"{role}{i}"][1].get("width"))))
        if s.allotted is not None:
            ticks.append(float(re.match(r"M(\S+)", seen[f"allotted{i}"][1].get("d"))[1]))
    straight([(0.0, 0.0), *widths])
    assert ticks and len(ticks) == sum(s.allotted is not None for s in own)


def test_headroom_plot_shows_three_candidates_each(found, drawn):
    seen = parts(drawn["headroom"].wide)
    values = {h_text(h, name): getattr(h, name).estimate
              for h in found.headrooms for name in ("random", "selected", "oracle")}  # fmt: skip
    assert len(seen) == len(values)
    straight([(values[said.rpartition(":")[0]], place(g)[0]) for said, g in seen.values()])


def h_text(h, name: str) -> str:
    return f"{h.label}, {h.measure}, {h.stage}, {name}"


def test_calibration_plot_shows_the_bins(found, drawn):
    seen = parts(drawn["calibration"].wide)
    assert len(seen) == sum(len(c.calibration) for c in found.cards)
    for i, card in enumerate(found.cards):
        for k, b in enumerate(card.calibration):
            said, _ = seen[f"b{i}-{k}"]
            assert f"{amounts.share(b.right)} right of {b.pairs} pairs" in said


# --- numbers, places -----------------------------------------------------------------------------


@given(st.lists(st.floats(-500, 500), max_size=12), st.floats(1, 40))
def test_spread_keeps_order_and_distance(wanted, gap):
    placed = svg.spread(wanted, gap)
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    for a, b in pairwise(order):
        assert placed[b] - placed[a] >= gap - 1e-6
    assert sum(placed) == pytest.approx(sum(wanted), abs=1e-6)  # moved no more to one side
    if len(wanted) == 1:
        assert placed == wanted


@given(st.floats(1e-3, 1e6), st.floats(1.5, 1e5), st.integers(3, 9))
def test_ticks_are_few_and_round(low, ratio, most):
    found = panels.log_ticks(low, low * ratio, most)
    assert len(found) <= most
    assert all(low <= tick <= low * ratio for tick in found)
    assert ratio < 10 or found


@given(st.floats(-1e3, 1e3), st.floats(1e-6, 1e6), st.integers(3, 12))
def test_ticks_of_an_even_scale_are_round_and_evenly_apart(low, range_, most):
    found = panels.round_ticks(low, low + range_, most)
    assert most / 3 - 1 <= len(found) <= most
    assert all(low - 1e-6 * range_ <= tick <= low + 1.000001 * range_ for tick in found)
    if len(steps := [b - a for a, b in pairwise(found)]) > 1:
        assert max(steps) == pytest.approx(min(steps), rel=1e-3)
        assert f"{steps[0]:.3e}"[0] in "125" or f"{steps[0]:.1e}"[0] in "125"


def test_text_is_cut_to_its_width():
    assert svg.fitted("short", 200) == "short" and svg.fitted("long", 0) == "…"
    cut = svg.fitted("a very long label of a strategy", 80)
    assert cut.endswith("…") and svg.text_width(cut) <= 80 < svg.text_width(cut + "mmm")
    assert svg.text_width("図図") > svg.text_width("ab") > svg.text_width("a\u0301i")


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (amounts.share(0.97561), "0.976"),
        (amounts.share(-0.0001, sign=True), "0.000"),
        (amounts.share(-0.25, sign=True), "−0.250"),
        (amounts.share(math.nan), "–"),
        (amounts.share(None), "–"),
        (amounts.interval(Interval(0.5, 0.4, 0.6)), "0.500 (0.400 to 0.600)"),
        (amounts.interval(Interval(math.nan, 0, 1)), "–"),
        (amounts.figures(3.9599), "3.96"),
        (amounts.figures(4.0), "4.00"),
        (amounts.figures(1234.5), "1,234"),
        (amounts.figures(0), "0"),
        (amounts.percent(0.004), "0.4 %"),
        (amounts.percent(0.126), "13 %"),
        (amounts.percent(-0.2), "−20 %"),
        (amounts.points(-0.0321), "−3.2"),
        (amounts.points(0.0), "0.0"),
        (amounts.probability(0.0499), "0.04990"),
        (amounts.probability(0.0001), "< 0.001"),
        (amounts.axis([4e9, 2e7], "flops"), (1e9, "Gflops")),
        (amounts.axis([400], "new tokens"), (1.0, "new tokens")),
        (amounts.axis([], "calls"), (1.0, "calls")),
        (amounts.amount(None, "flops"), "–"),
    ],
)
def test_numbers_are_written_alike(made, said):
    assert made == said


# --- a real browser ------------------------------------------------------------------------------


def _renamed(found: Findings) -> Findings:
    """With names whose widths must be guessed: long ones, wide letters, Chinese, Cyrillic."""
    odd = (
        "WWWW MMMM of %s, a long name",
        "図表の質問に答える %s",
        "ЩЮФЖ %s",
        "ill it %s",
        "ŒÆ@%%W%%m %s",
    )

    def name(label: str) -> str:
        return odd[sum(label.encode()) % len(odd)] % label

    return replace(
        found,
        standings=tuple(replace(s, label=name(s.label)) for s in found.standings),
        comparisons=tuple(
            replace(c, first=name(c.first), second=name(c.second)) for c in found.comparisons
        ),
        curves=tuple(replace(c, name=name(c.name)) for c in found.curves),
        headrooms=tuple(replace(h, label=name(h.label)) for h in found.headrooms),
        cards=tuple(replace(c, judge=name(c.judge)) for c in found.cards),
    )


@pytest.mark.slow
@in_browser
def test_in_a_browser(html, found, store):
    pages = [html, page(PARTS["nothing"](found), store), page(PARTS["one cell"](found), store)]
    pages.append(page(_renamed(found), store, traces=0))
    asked = [(shown, width) for shown in pages for width in (360, 1280)]
    looks, console = browser.probe(asked)
    assert console == []
    for (_, width), seen in zip(asked, looks, strict=True):
        assert seen["out"] == [] and seen["width"] <= width
        assert seen["scripts"] == seen["handlers"] == 0
        for plot in seen["plots"]:
            assert plot["cut"] == [], plot["label"]
            assert plot["over"] == [], plot["label"]
            assert plot["width"] > (500 if width == 1280 else 280) and plot["height"] > 100
    assert len(looks[0]["plots"]) == len(looks[1]["plots"]) == len(looks[6]["plots"]) == len(NAMES)
    assert looks[2]["plots"] == []


@pytest.mark.slow
@in_browser
def test_a_link_opens_what_it_leads_to(html):
    link = re.search(r'href="#(t\d+-\d+)"', html)[1]
    followed = browser.followed(html, link)
    before = followed[: followed.index(f'id="{link}"')]
    assert len(re.findall(r"<details[^>]* open", before)) == 2  # the problem, the search
    command = re.search(r'href="#(p\d+)"', html)[1]
    assert f'<details open=""><summary>draw</summary><code id="{command}">' in browser.followed(
        html, command
    )
    assert browser.followed(html, "problems").count(" open=") == 0


@pytest.mark.slow
@in_browser
def test_it_prints(html):
    made = browser.printed(html)
    assert made.startswith(b"%PDF") and 5 < made.count(b"/Type /Page\n") < 40
