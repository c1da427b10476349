"""A search drawn while it runs: in the end the drawing of its trace, and escaped on the way."""

from __future__ import annotations

import re

import pytest
from cot_engine_strategies.best_of_n import BestOfN
from cot_engine_strategies.stage_beam import StageBeam
from make_traces import HOSTILE, TRACES

from cot_engine import SelfJudge
from cot_engine.core.events import Growing, Grown, Progress
from cot_engine.show.html import render_html
from cot_engine.show.live import Live
from cot_engine.testing import ScriptedBackend, solve_scripted, staged_reply


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr("cot_engine.search.progress.EVERY", 0.001)


def heard(strategy, script=staged_reply):
    """What a listener hears of a search."""
    found = []
    backend = ScriptedBackend(script, pause=0.003)
    solve_scripted(strategy, backend=backend, judge=SelfJudge(), listen=found.append)
    return found


def drawn(events, anchor=""):
    """The pieces that there are after each event, those given before included."""
    live, pieces = Live(anchor), {}
    for event in events:
        live.take(event)
        for kind, value in live.news().items():
            if isinstance(value, dict):
                pieces.setdefault(kind, {}).update(value)
            else:
                pieces[kind] = value
        yield event, pieces


@pytest.mark.parametrize("name", TRACES)
def test_in_the_end_it_is_the_drawing_of_the_trace(name):
    trace = TRACES[name]()
    page, live, pieces = render_html(trace), Live(), {"columns": {}, "slots": {}}
    half = len(trace.events) // 2
    for some in (trace.events[:half], trace.events[half:]):
        for event in some:
            live.take(event)
        news = live.news()
        pieces["columns"] |= news.get("columns", {})
        pieces["slots"] |= news["slots"]
    columns = [pieces["columns"][str(at)] for at in range(live.count)]
    assert len(columns) == page.count('<li class="column')
    for markup in [*columns, *pieces["slots"].values()]:
        assert markup.strip() in page


@pytest.mark.parametrize("strategy", [StageBeam(n=3), BestOfN(n=3)])
def test_candidates_are_there_while_they_are_written(strategy):
    grown = set()
    for event, pieces in drawn(heard(strategy), "x-"):
        columns = "".join(pieces.get("columns", {}).values())
        if isinstance(event, Growing):
            assert columns.count('class="card writing"') == event.n
        elif isinstance(event, Grown):
            grown |= {chain.id for chain in event.chains}
            assert "writing" not in columns
        elif isinstance(event, Progress) and event.texts and event.texts.keys() - grown:
            assert all(f'id="x-{id}"' in columns for id in event.texts)
            texts = [re.sub(r"</?[A-Z]*>?|\s", "", text) for text in event.texts.values()]
            cards = re.sub(
                r"<h3>.*?</h3>|<[^>]*>|\s", "", columns + "".join(pieces.get("cards", {}).values())
            )
            assert all(text in cards for text in texts)
    assert grown


def test_what_has_not_changed_is_not_given_again():
    live, given = Live(), []
    for event in heard(StageBeam(n=3)):
        live.take(event)
        given.append(live.news())
        assert live.news() == {}
    firsts = [news["columns"]["0"] for news in given if "0" in news.get("columns", {})]
    assert len(set(firsts)) == len(firsts) > 3
    words = [news for news in given if "cards" in news]
    assert words and not any("columns" in news for news in words)


def test_what_is_being_written_is_escaped():
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)>" + HOSTILE

    def script(request, seed):
        return staged_reply(request, seed).replace("About", f"About {hostile}")

    seen = 0
    for _, pieces in drawn(heard(StageBeam(n=2), script)):
        markup = "".join([*pieces.get("columns", {}).values(), *pieces.get("cards", {}).values()])
        assert not re.search(r"<(script|img|svg)|[\x00-\x08\x1b\u202e]", markup)
        seen += "&lt;script&gt;" in "".join(pieces.get("cards", {}).values())
    assert seen > 3
