"""The drawings of a search: golden files, the page's structure, hostile text, a real browser."""

from __future__ import annotations

import asyncio
import io
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import browser
import pytest
from beams import Apart, Lookahead
from browser import in_browser
from cot_engine_strategies.best_of_n import BestOfN
from cot_engine_strategies.greedy import Greedy
from cot_engine_strategies.majority import Majority
from cot_engine_strategies.sentence_beam import SentenceBeam
from cot_engine_strategies.stage_beam import StageBeam
from golden import check_golden
from html_page import Page
from make_traces import HOSTILE, TRACES, Recorder, best_of_n, match, tag
from rich.console import Console

from cot_engine.core.events import Grown, event_from_json, event_to_json
from cot_engine.core.trace import Trace
from cot_engine.errors import TraceError
from cot_engine.judging.judges import RandomJudge
from cot_engine.search.loop import Named
from cot_engine.search.rejudge import rejudge, replayed
from cot_engine.search.session import Settings
from cot_engine.search.tournament import TOURNAMENTS
from cot_engine.show import captions, templates, words
from cot_engine.show import figure as fig
from cot_engine.show.board import Board
from cot_engine.show.html import render_html
from cot_engine.show.summary import summary
from cot_engine.show.tree import render_tree
from cot_engine.testing import solve_scripted

GOLDEN = (
    "stage-beam",
    "best-of-n",
    "round-robin",
    "majority",
    "interrupted",
    "hostile",
    "lookahead",
    "at-once",
)


def tree(trace: Trace, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(render_tree(trace))
    return console.file.getvalue()


def page(trace: Trace) -> Page:
    return Page(render_html(trace))


# --- golden files --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
def test_tree_looks_as_recorded(name):
    check_golden(f"views/{name}.txt", tree(TRACES[name]()))


@pytest.mark.parametrize("name", GOLDEN)
def test_page_looks_as_recorded(name):
    drawn = render_html(TRACES[name]())
    drawn = re.sub(r"<style>.*?</style>", "<style></style>", drawn, flags=re.DOTALL)
    # The same picture may be compressed to other bytes by another version of Pillow.
    drawn = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "data:image/png;base64,", drawn)
    check_golden(f"views/{name}.html", drawn)


@pytest.mark.parametrize("name", ["lookahead", "at-once"])
def test_summary_says_what_is_recorded(name):
    said = json.dumps(summary(TRACES[name]()), indent=1)
    check_golden(f"views/{name}.json", said + "\n")


@pytest.mark.parametrize("name", TRACES)
@pytest.mark.parametrize("width", [40, 80, 200])
def test_tree_keeps_to_the_width(name, width):
    lines = tree(TRACES[name](), width).splitlines()
    assert max(map(len, lines)) <= min(width, 110)


def test_tree_takes_a_narrower_width_than_the_console():
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(render_tree(TRACES["long"](), width=60))
    assert max(map(len, console.file.getvalue().splitlines())) <= 60


def test_the_documented_example_is_drawn_as_it_is_now():
    docs = Path(__file__).parents[2] / "docs"
    check_golden(
        "../../docs/example-trace.html", render_html(Trace.read(docs / "example-trace.jsonl"))
    )


# --- the page ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRACES)
def test_one_card_for_each_distinct_candidate(name):
    trace = TRACES[name]()
    grown = {chain.id for event in trace if isinstance(event, Grown) for chain in event.chains}
    folded = {
        id
        for event in trace
        for ids in getattr(event, "merged", {}).values()
        for id in ids
    }  # fmt: skip
    cards = [card["id"] for card in page(trace).all("article", "card")]
    assert sorted(cards) == sorted(grown - folded)


@pytest.mark.parametrize("name", TRACES)
def test_the_path_is_marked_from_first_to_last_column(name):
    trace = TRACES[name]()
    won = [card["id"] for card in page(trace).all("article", "won")]
    if trace.finished:
        parts = trace.finished.chain.split(".")
        assert won == [".".join(parts[:n]) for n in range(2, len(parts) + 1)]
    else:
        assert won == ["r.0"]


@pytest.mark.parametrize("name", TRACES)
def test_page_is_self_contained(name):
    drawn = render_html(TRACES[name]())
    found = Page(drawn)
    for tag_, attributes in found.elements:
        assert tag_ not in ("script", "link", "iframe", "object", "svg", "base", "form", "a")
        assert not [key for key in attributes if key.startswith("on")]
        assert "href" not in attributes
        source = attributes.get("src", "data:image/png;base64,")
        assert source.startswith("data:image/png;base64,")
    style = re.search(r"<style>(.*?)</style>", drawn, re.DOTALL)[1]
    assert "url(" not in style and "@import" not in style
    policy = next(a["content"] for a in found.all("meta") if "http-equiv" in a)
    assert "default-src 'none'" in policy and "script" not in policy


@pytest.mark.parametrize("name", sorted(TRACES.keys() - {"hostile"}))
def test_trace_survives_its_file(name):
    trace = TRACES[name]()
    again = Trace([event_from_json(event_to_json(event)) for event in trace])
    assert render_html(again) == render_html(trace)


def test_pixels_that_are_none_are_not_read_from_a_file():
    with pytest.raises(TraceError, match="base64"):
        event_from_json(event_to_json(TRACES["hostile"]().started))


def test_page_tells_the_whole_search():
    text = page(TRACES["stage-beam"]()).text
    assert "How many red things are left of the blue circle?" in text
    assert "A ×2" in text  # merged
    assert "orders disagree; log-probability decides" in text
    assert "+0.42 −0.61" in text and "? +0.80" in text
    assert "CAPTION: a stage broken off before its closing tag; closed" in text
    assert "The budget paid for 2 of 4 candidates (6.1 Gflops left)." in text
    assert "20 Gflops, of which 4.2 Gflops were left" in text
    assert "sha256:0123456789ab" in text and "seed 7" in text
    rows = re.search(r"generate 16 4 384 720 256 5 G 0.84 64% judge 12", text)
    assert rows, text[-900:]


def test_page_says_how_to_run_it_again():
    said = captions.command(fig.read(TRACES["stage-beam"]()))
    assert said == (
        "cot-engine solve scene.png 'How many red things are left of the blue circle?' --strategy"
        " stage-beam --n 4 --keep 1 --judge self --tournament knockout --budget '2e+10 flops'"
        " --seed 7 --model bundled"
    )
    hostile = captions.command(fig.read(TRACES["hostile"]()))
    assert HOSTILE in shlex.split(hostile)


def test_rationales_are_quoted_with_their_order():
    text = page(best_of_n()).text
    assert "A shown first The first names the colour. Choice: 1" in text
    assert "B shown first" in text


def test_votes_are_counted_over_answers():
    text = page(TRACES["majority"]()).text
    assert "Votes 12 3 A B D" in text and "7 1 E" in text


def test_unfinished_search_says_so():
    text = page(TRACES["interrupted"]()).text
    assert "No answer Interrupted." in text and "4 more were being sampled." in text
    assert "The image has 12 frames; the first one is used." in text
    broken = Trace(TRACES["interrupted"]().events[:-2])
    assert "The trace breaks off here." in page(broken).text
    assert "Nothing was sampled." in page(Trace(broken.events[:1])).text
    assert "breaks off" in tree(Trace(broken.events[:1]))


def test_image_that_was_not_kept():
    trace = TRACES["stage-beam"]()
    started = event_to_json(trace.started).replace(trace.started.images[0].data, "")
    drawn = page(Trace([event_from_json(started), *trace.events[1:]]))
    assert "not kept in this trace" in drawn.text and not drawn.all("img")


def test_hostile_text_stays_text():
    drawn = render_html(TRACES["hostile"]())
    found = Page(drawn)
    assert not found.all("script") and not found.all("svg") and not found.all("img")
    assert "<script>document.title='owned'</script>" in found.text
    assert drawn.count("</style>") == 1
    for raw in ("\x1b", "\x07", "\u202e", "\u2069"):
        assert raw not in drawn
        assert raw not in tree(TRACES["hostile"]())


def test_a_hostile_unit_stays_text_wherever_a_column_is_named():
    """As where a card says which column it grew from, or a match who stood in another one."""
    trace = Trace(
        [
            replace(event, unit=HOSTILE) if getattr(event, "unit", "") == "CAPTION" else event
            for event in TRACES["lookahead"]()
        ]
    )
    board = Board()
    blocks = [block for event in trace for block in board.take(event)]
    said = "".join(line.plain for block in blocks for line in block.lines)
    drawn = render_html(trace)
    assert "from <script>" in Page(drawn).text and "<SCRIPT>" in said
    assert not Page(drawn).all("script") and not Page(drawn).all("svg")
    for raw in ("\x1b", "\x07", "\u202e", "\u2069"):
        assert raw not in drawn + tree(trace) + said


def test_a_page_that_does_not_escape_would_tell(monkeypatch):
    """The negative control."""
    bare = templates.environment().overlay(autoescape=False)
    monkeypatch.setattr(templates, "environment", lambda: bare)
    found = render_html(TRACES["hostile"]())
    assert re.search(r"<script|<svg|<img src=x", found) and found.count("</style>") > 1


def test_trace_without_beginning_or_with_a_gap():
    events = TRACES["stage-beam"]().events
    with pytest.raises(TraceError, match="no beginning"):
        render_html(Trace(events[1:]))
    with pytest.raises(TraceError, match="grew from"):
        render_html(Trace([e for e in events if getattr(e, "unit", "") != "SUMMARY"]))


def test_sampled_again_and_concluded_at_once():
    r = Recorder("Which?", ())
    lost = r.grow("r", "SUMMARY", ["So,", "Well,"], faults={0: ["missing:SUMMARY"]})
    again = r.grow("r", "SUMMARY", tag("SUMMARY", "One.", "Two."), forced=True)
    (kept,) = r.select(again, [match(again[0], again[1], 1, -1)])
    text = page(r.finish(r.grow(kept, "CONCLUSION", tag("CONCLUSION", "X"), forced=True)[0])).text
    assert "sampled again with its tag put there" in text
    assert "Concluded at once, its tag put there." in text
    assert [card.id for card in fig.read(r.trace()).columns[0].cards] == [*again, *lost]


@pytest.mark.parametrize("tournament", TOURNAMENTS)
@pytest.mark.parametrize("n", [1, 3, 16])
def test_every_strategy_is_drawn(tournament, n):
    strategies = [Greedy(), StageBeam(n), StageBeam(n, keep=min(n, 2)), BestOfN(n), Majority(n)]
    strategies += [SentenceBeam(n, keep=min(n, 2)), Lookahead(n), Apart(n)]
    for strategy in strategies:
        answer = solve_scripted(strategy, settings=Settings(tournament=tournament))
        found = page(answer.trace)
        won = [card["id"] for card in found.all("article", "won")]
        parts = answer.chain.id.split(".")
        assert won == [".".join(parts[:n]) for n in range(2, len(parts) + 1)]
        assert answer.text in found.text and answer.text in tree(answer.trace)


def test_a_search_judged_again_keeps_its_path_in_one_line():
    """The new winners stand on top; the recorded path is led to where it stands."""
    searched = solve_scripted(StageBeam(5)).trace
    again = asyncio.run(rejudge(searched, Named("random", RandomJudge(3))))
    found = page(replayed(searched, again))
    won = [card["id"] for card in found.all("article", "won")]
    rows = [card["style"] for card in found.all("article", "won")]
    assert won[-1] == searched.finished.chain and rows != ["grid-row:1"] * len(rows)
    assert len(found.all("i", "rise")) == 2


# --- the figure ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stage-beam", "best-of-n", "wide", "sentence-beam", "long"])
def test_lines_of_a_bracket_never_cross(name):
    for column in fig.read(TRACES[name]()).columns:
        bouts = fig.bracket(column) or []
        ends = {fig.loser(b.match): b.lane for b in bouts}
        for bout in bouts:
            rows = [card.id for card in column.cards]
            assert rows[bout.top] == bout.match.winner
            inside = rows[bout.top + 1 : bout.bottom]
            assert all(ends.get(id, -1) < bout.lane for id in inside if id in ends)
            assert all(id in ends for id in inside)


def test_everyone_against_everyone_is_a_table():
    figure = fig.read(best_of_n(16, "round-robin", texts=False))
    assert fig.bracket(figure.columns[0]) is None
    found = page(best_of_n(16, "round-robin", texts=False))
    assert len(found.all("table", "cross")) == 1
    assert len(found.all("td", "w")) + len(found.all("td", "l")) == 16 * 15


def test_margins_are_the_winners():
    decided = match("r.0", "r.1", -1.5, 0.5)
    assert decided.winner == "r.1" and words.margins(decided) == ["+0.50", "+1.50"]
    unpaid = match("r.0", "r.1", 0, 0, unreadable=(0, 1), texts=["not judged: out of budget"] * 2)
    assert words.tie_text(unpaid) == "not judged: out of budget; log-probability decides"
    silent = match("r.0", "r.1", 0, 2.0, broken="draw")
    assert words.margins(silent) == ["=", "−2.00"] and words.tie_text(silent) == "tie; lot decides"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (1234, "1.23 k"), (999_700, "1 M"), (4.56e9, "4.56 G"), (0.5, "0.5")],
)
def test_numbers_have_three_figures(value, text):
    assert words.number(value) == text


def test_letters_go_on_after_z():
    assert [fig.letter(i) for i in (0, 25, 26, 52)] == ["A", "Z", "AA", "BA"]


# --- a real browser ------------------------------------------------------------------------------


@pytest.mark.slow
@in_browser
def test_in_a_browser():
    pages = {name: render_html(make()) for name, make in TRACES.items()}
    asked = [(name, width) for name in pages for width in (375, 1280)]
    looks, console = browser.probe([(pages[name], width) for name, width in asked])
    assert console == []
    for (name, width), seen in zip(asked, looks, strict=True):
        assert seen["out"] == [], (name, width)
        assert seen["width"] <= width, (name, width)
        assert seen["scripts"] == seen["handlers"] == 0
        assert seen["title"] != "owned"
        assert all(seen["images"])
        assert seen["cards"] == pages[name].count("<article")
        if width == 1280 and name in ("stage-beam", "sentence-beam", "lookahead"):
            assert len(set(seen["path"])) == 1  # the path is a straight line


@pytest.mark.slow
@in_browser
def test_the_browser_would_tell():
    """The negative control: a page that overflows, runs a script and breaks its own policy."""
    bad = render_html(TRACES["greedy"]()).replace(
        "<main>",
        '<main><div style="width:900px">wide</div><script>1</script>'
        '<img src="https://example.invalid/x.png" onerror="1">',
    )
    (seen,), console = browser.probe([(bad, 375)])
    assert seen["out"] and seen["width"] > 375 and seen["scripts"] and seen["handlers"]
    assert any("Content Security Policy" in line for line in console)
