"""The report in pictures: what searching changed and on which problems, one look per strategy."""

from __future__ import annotations

import base64
import io
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from browser import CHROMIUM
from html_page import Page
from make_store import RIGHT, digest, make_run, make_store, plain, put
from PIL import Image as pil

from cot_engine.ablation.store import Store
from cot_engine.images.load import load_image
from cot_engine.images.thumbnails import Thumbnail, thumbnail
from cot_engine.report import gallery, heatmap, pictures, plots
from cot_engine.report.analysis import analyse
from cot_engine.report.changes import TURN
from cot_engine.report.findings import Findings
from cot_engine.report.looks import CLIPS, looks
from cot_engine.report.page import page
from cot_engine.report.svg import MARKERS

_PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
OURS = tuple(_PROJECT["project"]["entry-points"]["cot_engine.strategies"])


def small(number: int) -> Thumbnail:
    return thumbnail([load_image(pil.new("RGB", (90, 60), (number * 9 % 256, 80, 160)))])


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "main.sqlite"
    made, run = make_store(path, 24, (0, 1), traces=24)
    for number, item in enumerate(run.items):
        made.add_picture(item.digest, small(number))
    made.close()
    with Store(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def found(store) -> Findings:
    return analyse(store, store.run())


@pytest.fixture(scope="module")
def html(found, store) -> str:
    return page(found, store)


# --- one look per strategy -----------------------------------------------------------------------


def test_a_strategy_looks_the_same_whatever_stands_beside_it():
    others = [f"strategy-{i}" for i in range(20)]
    alone = {name: looks([name])[name] for name in (*OURS, *others)}
    together = looks(reversed([*OURS, *others]))
    assert {n: look.color for n, look in together.items()} == {
        n: look.color for n, look in alone.items()
    }
    main = ("greedy", "best-of-n", "majority", "stage-beam", "sentence-beam")
    assert len({alone[name].color for name in main}) == len(main) < len(OURS)
    assert all(alone[name].symbol == f"look-{name}" for name in OURS), "give a new one its look"
    assert not {alone[n][:2] for n in OURS} & {alone[n][:2] for n in others}
    assert len({(look.color, look.marker) for look in together.values()}) == len(together)
    assert set(CLIPS) == set(MARKERS)


def test_its_colour_is_the_same_in_every_plot_and_table(found, html):
    """In plots by what is said of a mark, in tables by the class beside a name."""
    style = html[html.index("<style>") : html.index("</style>")]
    by_class = dict(re.findall(r"\.(look-[\w-]+) { background: (var\(--c\d+\));", style))
    look = {s.label: looks([s.strategy])[s.strategy] for s in found.standings}
    own = [s.label for s in found.standings if s.kind == "search"]
    rows = re.findall(r'<i class="sw (look-[\w-]+)"></i>(?:<b>|<span>)?([^<]+)', html)
    assert {label for _, label in rows} >= set(own)
    for symbol, label in rows:
        label = label.removesuffix(" − ").removesuffix(" over greedy")
        assert by_class[symbol] == look[label].color, label
    seen = set()
    for name, plot in plots.draw(found).items():
        for drawn in (plot.wide, plot.narrow):
            marks = re.findall(r'stroke="(var\(--c\d+\))"[^>]*><title>([^<]+)</title>', drawn)
            for color, said in marks:
                label = max((la for la in own if said.startswith(la)), key=len, default=None)
                if label and not said.startswith(("majority of", "oracle of", "random of")):
                    assert color == look[label].color, (name, said)
                    seen.add((name, label))
    assert {label for name, label in seen if name == "accuracy"} == set(own)
    assert {name for name, _ in seen} == {"accuracy", "scaling", "cost", "headroom"}
    bars = re.findall(r"--c:(var\(--c\d+\))", html)
    assert bars == [look[label].color for label in own]


# --- what searching changed ----------------------------------------------------------------------


def test_the_map_says_what_the_outcomes_say(found):
    """By counting: differences of means, and problems that moved by a half."""
    assert {c.type for c in found.changes} == {None, "count", "colour", "yes/no"}
    assert not {c.label for c in found.changes} & {"greedy", "one sample"}
    for c in found.changes:
        both = [
            o.correct[c.label] - o.correct[c.baseline]
            for o in found.outcomes
            if c.type in (None, o.type) and None not in (o.correct[c.label], o.correct[c.baseline])
        ]
        assert c.baseline == "greedy" and c.problems == len(both)
        if "matched" not in c.label:  # where a seed is missing, only what both have counts
            assert c.difference.estimate == pytest.approx(sum(both) / len(both))
            assert (c.right, c.wrong) == (
                sum(d >= TURN for d in both),
                sum(d <= -TURN for d in both),
            )
    assert any(c.right for c in found.changes) and any(c.wrong for c in found.changes)


def test_the_map_marks_cells_of_few_problems_and_clear_ones(found, html):
    drawn = heatmap.heat_map(found)
    assert [row["few"] for row in drawn["rows"]] == [False, True, True, True]
    assert drawn["few"] == heatmap.FEW
    kinds = [cell["kind"].split() for row in drawn["rows"] for cell in row["cells"]]
    changes = [c for c in found.changes if c.difference.low > 0 or c.difference.high < 0]
    assert sum("clear" in kind for kind in kinds) == len(changes)
    assert all(("few" in kind) for kind in kinds[len(drawn["labels"]) :])
    table = html[html.index('<div class="scroll heat') :]
    table = table[: table.index("</table>")]
    assert table.count('<th scope="row">') == 4 and ": few</small>" in table
    for row in drawn["rows"]:
        assert 0 <= max(float(cell["weight"]) for cell in row["cells"]) <= 1


def turned_store(path, scores, seeds=(0,)):
    """Problems whose greedy and searched scores are given."""
    cells = {
        digest(n): (n, plain("greedy" if n == "greedy" else "stage-beam")) for n in ("greedy", "s")
    }
    run = make_run(len(scores), seeds, cells, "none")
    with Store(path, create=True) as store:
        store.begin(run)
        for number, (before, after) in enumerate(scores):
            put(store, run, "greedy", number, 0, before, answer="before <b>")
            put(store, run, "s", number, 0, after, answer="after & all")
    return run


@pytest.mark.parametrize(
    ("scores", "right", "wrong"),
    [
        ([(0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.0, 0.0), (0.2, 0.6), (0.2, 0.7)], 2, 1),
        ([(1.0, 1.0)] * 3, 0, 0),
        ([(0.0, 0.0)] * 3, 0, 0),
        ([(0.0, 1.0)] * 30, 30, 0),
    ],
)
def test_what_turned_is_shown_and_how_many_more(tmp_path, scores, right, wrong):
    turned_store(tmp_path / "t.sqlite", scores)
    with Store(tmp_path / "t.sqlite") as store:
        found = analyse(store, store.run())
        html = page(found, store)
    chosen = gallery.turned(found)
    assert len(chosen.right["s"]) == min(right, gallery.MOST)
    assert len(chosen.wrong["s"]) == min(wrong, gallery.MOST)
    text = Page(html).text
    assert html.count('<li class="card') == len(chosen.right["s"]) + len(chosen.wrong["s"])
    if right > gallery.MOST:
        assert f"{right} problems, of which {gallery.MOST} are here" in text
    if right:
        assert "before <b>" in text and "after & all" in text and "before <b>" not in html
    assert f"▲{right} ▼{wrong}" in text


def test_each_type_has_its_turn(found):
    shown = gallery._spread(found.outcomes, 5)
    assert [o.type for o in shown] == ["count", "colour", "yes/no", "count", "colour"]
    assert gallery._spread(found.outcomes[:3], 5) == list(found.outcomes[:3])


def test_without_a_baseline_or_without_types_the_page_says_so(found, store):
    nothing = page(replace(found, changes=()), store)
    assert "Nothing in this run searches" in nothing and 'class="card' not in nothing
    whole = tuple(c for c in found.changes if c.type is None)
    untyped = page(replace(found, changes=whole, types=()), store)
    assert "all problems" in untyped and "The data has one type of question only." in untyped


# --- pictures ------------------------------------------------------------------------------------


def test_every_card_has_its_problems_picture_and_its_searches(html, found):
    items = gallery.turned(found).items()
    names = {o.problem: n for n, o in enumerate(found.outcomes)}
    cards = re.findall(r'<li class="card.*?</ul>\n</li>', html, re.DOTALL)
    assert len(cards) >= len(items) > 5
    ids = set(re.findall(r'id="([^"]+)"', html))
    for card in cards:
        kind, data, name = re.search(
            r'<img src="data:image/(\w+);base64,([^"]+)" alt="Picture of problem (\w+)"', card
        ).groups()
        assert base64.b64decode(data) == small(names[name]).data
        assert pil.open(io.BytesIO(base64.b64decode(data))).format == kind.upper()
        links = re.findall(r'href="#([^"]+)"', card)
        assert links and set(links) <= ids and all(link.startswith("t") for link in links)
        assert RIGHT[found.outcomes[names[name]].type] in card
    assert not re.search(r'(src|href)="(?!data:image/|#)', html)


def test_a_page_holds_no_more_pictures_than_it_has_room_for(store, found, monkeypatch):
    one = len(base64.b64encode(small(0).data)) + len("data:image/png;base64,")
    monkeypatch.setattr(pictures, "ROOM", 3 * one + 10)
    drawn = page(found, store)
    shown = set(re.findall(r'<img src="([^"]+)"', drawn))
    assert 1 <= len(shown) <= 4 and sum(map(len, shown)) <= 3 * one + 10
    assert "left out, so that the page stays small" in drawn and "picture left out" in drawn


def test_pictures_that_are_not_there_are_said_not_to_be(tmp_path):
    path = tmp_path / "t.sqlite"
    run = turned_store(path, [(0.0, 1.0)] * 5)
    with Store(path, create=True) as store:
        store.add_picture(run.items[0].digest, Thumbnail(0))
        store.add_picture(run.items[1].digest, Thumbnail(1, 1, 9, 9, "svg+xml", b"<svg/>"))
        store.add_picture(run.items[2].digest, Thumbnail(1, 1, 9, 9, "png", bytes(10**6)))
        store.add_picture(run.items[3].digest, small(3))
        html = page(analyse(store, run), store)
    assert html.count("<img ") == 1
    text = Page(html).text
    for said in ("a question without a picture", "picture not readable", "picture not kept"):
        assert said in text
    assert "keeps no picture of 1 problem:" in text and "the picture of 2 problems" in text


# --- a real browser ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium():
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(chromium, html, tmp_path, scheme):
    """Nothing is wider than it but in boxes that scroll; pictures are drawn; who chooses a
    strategy sees its problems; links open the search; axe has nothing against it."""
    (tmp_path / "page.html").write_text(html)
    context = chromium.new_context(
        viewport={"width": 390, "height": 800}, color_scheme=scheme, bypass_csp=True
    )
    view, said = context.new_page(), []
    view.on("console", lambda message: said.append(message.text))
    view.on("request", lambda asked: said.extend([asked.url] * asked.url.startswith("http")))
    view.goto((tmp_path / "page.html").as_uri())
    assert view.evaluate("document.documentElement.scrollWidth") == 390
    wide = """[...document.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth
        && getComputedStyle(e).overflowX !== "auto").length"""
    assert view.evaluate(wide) == 0
    stacked = "(e => e.scrollWidth - e.clientWidth)(document.querySelector('.standings'))"
    assert view.evaluate(stacked) <= 0
    drawn = "[...document.images].map(i => i.naturalWidth * i.complete)"
    assert set(view.evaluate(drawn)) == {90}
    shown = "[...document.querySelectorAll('.card')].filter(c => c.offsetHeight).map(c => c.id)"
    before = view.evaluate(shown)
    choices = view.locator("fieldset label")
    assert choices.count() > 3
    seen = []
    for number in range(choices.count()):
        choices.nth(number).click()
        cards = view.evaluate(shown)
        own = view.evaluate(f"[...document.querySelectorAll('.of-{number}')].map(c => c.id)")
        assert cards == own
        assert view.locator(".for:visible").count() == 2
        seen.append(tuple(cards))
    assert tuple(before) in seen and len(set(seen)) > 2
    link = view.locator(".card:visible .by a").first
    target = link.get_attribute("href")
    link.click()
    assert view.locator(target).is_visible() and view.url.endswith(target)
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    violations = axe.run(view).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"][:200]) for v in violations] == []
    assert said == []
    context.close()
