"""A search that went back: where, why and in which round is read in every drawing of it."""

from __future__ import annotations

import io
import random

from cot_engine_strategies.swires import Swires
from golden import check_golden
from PIL import Image
from rich.console import Console

from cot_engine import Problem, load_image
from cot_engine.core.events import Progress, event_from_json, event_to_json
from cot_engine.core.trace import Trace
from cot_engine.escape import terminal
from cot_engine.show import figure
from cot_engine.show.board import Board
from cot_engine.show.html import render_html
from cot_engine.show.summary import summary
from cot_engine.show.tree import render_tree
from cot_engine.testing import solve_scripted


class Digest:
    scale = "probability"

    async def score(self, chains, case, ask):
        return [random.Random(chain.text).random() for chain in chains]


def searched():
    picture = load_image(Image.new("RGB", (8, 8), (200, 30, 30)))
    heard = []
    answer = solve_scripted(
        Swires(threshold=0.99, rounds=3),
        problem=Problem("p", "How many?", (picture,)),
        scorers=lambda name: Digest(),
        listen=heard.append,
    )
    return answer.trace, heard


SAID = [
    "Went back to CAPTION: the second best had 0.17, below 0.99. Round 2 of 3.",
    "Went back to CAPTION: the second best had 0.947, below 0.99. Round 3 of 3.",
]


def test_it_is_read_wherever_the_search_is_drawn():
    trace, heard = searched()
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(render_tree(trace))
    tree = console.file.getvalue()
    check_golden("views/swires.txt", tree)
    page, board = render_html(trace), Board()
    live = "\n".join(
        line.plain
        for event in heard
        if not isinstance(event, Progress)
        for block in board.take(event)
        for line in block.lines
    )
    for said in SAID:
        assert said in tree and said in page and terminal(said) in live
    titles = [column.title for column in figure.read(trace).columns]
    assert titles == [
        *["SUMMARY", "CAPTION", "REASONING", "CAPTION, round 2", "REASONING, round 2"],
        *["CAPTION, round 3", "REASONING, round 3", "CONCLUSION"],
    ]
    assert "<h2>CAPTION, round 3</h2>" in page
    assert [told["attempt"] for told in summary(trace)["retraced"]] == [2, 3]


def test_a_trace_that_went_back_survives_its_file():
    trace, _ = searched()
    again = Trace([event_from_json(event_to_json(event)) for event in trace])
    assert again.canonical() == trace.canonical() and render_html(again) == render_html(trace)
