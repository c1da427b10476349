"""The view of a running search: what is shown when, and that showing it never does harm."""

import io
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from golden import check_golden
from make_traces import TRACES
from rich.console import Console

from cot_engine.cli.display import Live, Log, Silent, make_display
from cot_engine.cli.progress import LongWork
from cot_engine.core.chain import Chain, Step
from cot_engine.core.events import (
    Cut,
    Failed,
    Finished,
    Growing,
    Grown,
    ImageRecord,
    Judged,
    Judging,
    Notice,
    Progress,
    Scored,
    Selected,
    Started,
)
from cot_engine.core.match import Match, Verdict
from cot_engine.core.requests import BackendInfo, Sampling
from cot_engine.core.stages import DEFAULT_PLAN
from cot_engine.core.usage import Usage
from cot_engine.show.board import Board
from cot_engine.testing import solve_scripted

HOSTILE = "\x1b[31m\x9b2J\r\u202e[bold]x[/bold]"


def started(question="How many?", budget=None, **more):
    values = {
        "problem": "p",
        "question": question,
        "images": (ImageRecord("0" * 16, "street.png", (32, 16)),),
        "strategy": "stage-beam",
        "parameters": {"n": 3, "keep": 1},
        "judge": "self",
        "tournament": "knockout",
        "orders": "both",
        "judge_image": "seen",
        "plan": DEFAULT_PLAN,
        "mode": "trained",
        "detail": "normal",
        "seed": 0,
        "sampling": Sampling(),
        "budget": budget,
        "backend": BackendInfo("local", "bundled", "0", "Llava", "cpu", "float32", 1024, 1),
    }
    return Started(**(values | more))


def candidate(id, content, *faults, stage="SUMMARY", logprob=-3.0):
    text = f"<{stage}>{content}</{stage}>"
    return Chain(id, (Step(text, (), stage, logprob, 10, "stop", faults),))


def match(first, second, winner, margin=1.0, broken_by=""):
    if broken_by:
        return Match(first, second, (Verdict("tie"), Verdict("tie")), "tie", winner, broken_by)
    one = Verdict("first", margin) if winner == first else Verdict("second", -margin)
    two = Verdict("second", -margin) if winner == first else Verdict("first", margin)
    return Match(first, second, (one, two), one.outcome, winner)


def selected(*matches, candidates=("r.0", "r.1", "r.2", "r.3"), kept=("r.3",), **more):
    values = {
        "about": "step",
        "stage": "SUMMARY",
        "candidates": candidates,
        "merged": {"r.0": ("r.2",)},
        "unjudged": {},
        "matches": matches,
        "ranking": kept,
        "kept": kept,
        "usage": Usage(prefilled=40, flops=2_000_000),
    }
    return Selected(**(values | more))


SEARCH = [
    started(),
    Growing(("r",), "SUMMARY", 4),
    Grown(
        "SUMMARY",
        (
            candidate("r.0", "Count the cubes."),
            candidate("r.1", "Look.", "echo:SUMMARY"),
            candidate("r.2", "Count the cubes."),
            candidate("r.3", "Count them one by one.", logprob=-1.0),
        ),
        Usage(prefilled=20, decoded=40, flops=1_000_000),
    ),
    Judging("step", "SUMMARY", ("r.0", "r.3")),
    Judged(match("r.0", "r.3", "r.3", 0.84)),
    selected(match("r.0", "r.3", "r.3", 0.84)),
]


def shown(events):
    """(what stays, what the current round looks like) after the events."""
    board = Board()
    blocks = [block for event in events for block in board.take(event)]
    final = [line.plain for block in blocks for line in block.lines]
    return board, final, [line.plain for line in board.lines()]


# --- the board -----------------------------------------------------------------------------------


def test_long_paths_are_shortened_and_nothing_is_minus_zero():
    where = "/home/someone/pictures/of/the/holidays/street.png"
    sure = Grown("SUMMARY", (candidate("r.0", "Sure.", logprob=-0.001),), Usage())
    growing = Growing(("r",), "SUMMARY", 1)
    _, final, now = shown([started(images=(ImageRecord("0", where, (9, 9)),)), growing, sure])
    assert final[1] == "How many?  [street.png 9 x 9]"
    assert now[1] == "▸ A   0.00  Sure."


def test_the_header_says_what_runs():
    _, final, _ = shown([started(budget="500 new tokens")])
    assert final == [
        "bundled on cpu, float32 · stage-beam n=3 keep=1 · judge self, knockout · 500 new tokens",
        "How many?  [street.png 32 x 16]",
    ]


def test_a_round_as_it_grows():
    assert Board().status() == "Preparing"
    assert shown(SEARCH[:2])[0].status() == "Writing SUMMARY: 4 candidates"
    board, final, now = shown(SEARCH[:3])
    assert len(final) == 2, "nothing of the round is final yet"
    assert now == [
        "SUMMARY  4 candidates, 3 distinct",
        "  A  −0.30  ×2 Count the cubes.",
        "  B  −0.30  echo: Look.",
        "  C  −0.10  Count them one by one.",
    ]
    board, _, now = shown(SEARCH[:5])
    assert board.status() == "Judging SUMMARY: 1 match so far"
    assert now[-1] == "    C beat A by 0.84"


def test_a_round_that_is_over_stays_with_its_winner_marked():
    board, final, now = shown(SEARCH)
    assert now == [] and board.open == []
    assert final[2:] == [
        "SUMMARY  4 candidates, 3 distinct, 1 match",
        "  A  −0.30  ×2 Count the cubes.",
        "  B  −0.30  echo: Look.",
        "▸ C  −0.10  Count them one by one.",
        "    C beat A by 0.84",
    ]
    assert board.cost() == "generate 60 tokens 1 MFLOP · judge 40 tokens 2 MFLOP"


def test_the_status_moves_inside_a_round():
    """Frames of one growth and one tournament, as they would be drawn."""
    told = [
        (Progress("growing", "SUMMARY", 0, 4), "Writing SUMMARY: 4 candidates"),
        (
            Progress("growing", "SUMMARY", 0, 4, tokens=1),
            "Writing SUMMARY: 0 of 4 candidates, 1 token",
        ),
        (
            Progress("growing", "SUMMARY", 3, 4, False, 1310, 84.6),
            "Writing SUMMARY: 3 of 4 candidates, 1,310 tokens, 85 a second",
        ),
    ]
    board, *_ = shown(SEARCH[:2])
    for progress, said in told:
        assert board.take(progress) == [] and board.status() == said
    for event in SEARCH[2:4]:
        board.take(event)
    assert board.status() == "Judging SUMMARY", "what was told of the growth is over"
    for progress, said in [
        (Progress("judging", "SUMMARY", 0, 3), "Judging SUMMARY: 0 of 3 matches"),
        (Progress("judging", "SUMMARY", 1, 1), "Judging SUMMARY: 1 of 1 match"),
        (Progress("judging", "SUMMARY", 2, 5, True), "Judging SUMMARY: 2 of at most 5 matches"),
        (
            Progress("judging", "SUMMARY", 2, 3, False, 40, 2.25),
            "Judging SUMMARY: 2 of 3 matches, 40 tokens, 2.2 a second",
        ),
        (Progress("judging", "SUMMARY", 2, 0), "Judging SUMMARY: 2 matches so far"),
    ]:
        board.take(progress)
        assert board.status() == said
    board.take(SEARCH[4])
    assert board.status() == "Judging SUMMARY: 2 matches so far", "a match is no end"
    board.take(SEARCH[5])
    assert board.status() == "Thinking"


def test_what_is_being_written_is_there_while_it_is():
    board = shown(SEARCH[:2])[0]
    texts = {
        "r.0": "<SUMMARY>Count the \x1b[31m",
        "r.1": "",
        "r.2": f"Look {'on ' * 40}and on</SUM",
    }
    board.take(Progress("growing", "SUMMARY", 0, 4, tokens=9, texts=texts))
    first, last = (line.plain for line in board.lines())
    assert first == "    Count the ␛[31m"
    assert last.startswith("    … ") and last.endswith("on on and on") and len(last) < 80
    board.take(SEARCH[2])
    assert not any("…" in line.plain for line in board.lines())


def test_the_status_names_what_no_round_holds():
    board = shown(SEARCH)[0]
    for progress, said in [
        (Progress("judging", "", 1, 3), "Judging whole responses: 1 of 3 matches"),
        (Progress("growing", "end", 0, 1, tokens=7), "Writing the response: 7 tokens"),
        (Progress("scoring", HOSTILE[:8], 0, 0, tokens=7), "Scoring by "),
    ]:
        board.take(progress)
        assert board.status().startswith(said) and "\x1b" not in board.status()


def test_ties_say_how_they_were_broken():
    for how, said in [("likelihood", "C = A, C likelier"), ("draw", "C = A, C by lot")]:
        tie = match("r.3", "r.0", "r.3", broken_by=how)
        assert shown([*SEARCH[:3], selected(tie)])[1][-1].strip() == said
    unread = (Verdict("tie", readable=False),)
    tie = Match("r.3", "r.0", unread, "tie", "r.0", "likelihood")
    assert shown([*SEARCH[:3], selected(tie)])[1][-1].strip() == "A ? C, A likelier"


def test_margins_are_the_winners_whoever_stood_first():
    for first, second in [("r.0", "r.3"), ("r.3", "r.0")]:
        _, final, _ = shown([*SEARCH[:3], selected(match(first, second, "r.3", 0.5))])
        assert final[-1].strip() == "C beat A by 0.50"


def test_wide_rounds_stay_short_and_keep_the_winner():
    chains = tuple(candidate(f"r.{k}", f"Text {k}.") for k in range(40))
    ids = tuple(chain.id for chain in chains)
    matches = [match("r.39", f"r.{k}", "r.39") for k in range(39)]
    chosen = selected(*matches, candidates=ids, kept=("r.39",), merged={})
    events = [started(), Growing(("r",), "SUMMARY", 40), Grown("SUMMARY", chains, Usage()), chosen]
    _, final, _ = shown(events)
    assert len(final) < 20
    assert [line for line in final if line.startswith("▸")] == ["▸ AN −0.30  Text 39."]
    assert "    and 32 more" in final and "27 earlier matches" in " ".join(final)
    assert max(map(len, final)) <= 100


def test_a_long_common_beginning_is_left_out():
    begin = "Count them all, from the left to the right: "
    texts = [begin + "one, two, three.", begin + "one, two, four."]
    chains = tuple(candidate(f"r.{k}", text) for k, text in enumerate(texts))
    _, _, now = shown([started(), Growing(("r",), "SUMMARY", 2), Grown("SUMMARY", chains, Usage())])
    assert [line.partition("0  ")[2] for line in now[1:]] == ["… three.", "… four."]
    _, _, now = shown(
        [started(), Growing(("r",), "SUMMARY", 1), Grown("SUMMARY", chains[:1], Usage())]
    )
    assert now[1].endswith(texts[0])


def test_candidates_of_several_parents_are_not_confused():
    """Letters are unique although the indices of the ids are not, and equal texts of different
    parents are different candidates."""
    chains = tuple(candidate(f"r.{p}.{k}", f"Same {k}.") for p in (0, 1) for k in (0, 1))
    events = [*SEARCH, Growing(("r.0", "r.1"), "CAPTION", 2), Grown("CAPTION", chains, Usage())]
    _, _, now = shown(events)
    assert [line.split()[0] for line in now[1:]] == ["A", "B", "C", "D"]


def test_rounds_without_a_tournament_stay_too():
    whole = Grown("end", (candidate("r.0", "All of it."),), Usage())
    _, final, _ = shown([started(), Growing(("r",), "end", 1), whole, Finished("x", "r.0", {}, {})])
    assert final[2:] == ["RESPONSE  1 candidate", "▸ A  −0.30  All of it."]


def test_a_stage_that_had_to_be_sampled_again_is_one_round():
    bad = Grown("SUMMARY", (candidate("r.0", "?", "skipped:SUMMARY"),), Usage())
    good = Grown("SUMMARY", (candidate("r.1", "Fine."),), Usage(), forced=True)
    growing = Growing(("r",), "SUMMARY", 1)
    _, final, now = shown([started(), growing, bad, growing, good])
    assert len(final) == 2 and now[0] == "SUMMARY  2 candidates"
    assert now[1] == "  A  −0.30  skipped: ?"


def test_sentences_are_numbered():
    events = [started()]
    for parent in ("r", "r.0"):
        grown = Grown("sentence", (candidate(f"{parent}.0", "S."),), Usage())
        events += [Growing((parent,), "sentence", 1), grown]
    board, final, now = shown(events)
    assert final[2] == "SENTENCE 1  1 candidate" and now[0] == "SENTENCE 2  1 candidate"
    assert board.status() == "Writing sentence 2"


def test_notices_and_cuts():
    _, final, _ = shown(
        [started(budget="9 calls"), Notice("Three frames."), Cut("matches", 4, 1, 0)]
    )
    assert final[2] == "Three frames." and "1 of 4 matches" in final[3]


def test_a_failed_search_leaves_what_it_had():
    _, final, now = shown([*SEARCH[:3], Failed("KeyboardInterrupt", "")])
    assert final[2].startswith("SUMMARY  4 candidates") and now == []


def test_hostile_text_is_shown_not_obeyed():
    events = [
        started(question=HOSTILE, images=(ImageRecord("0", HOSTILE, (1, 1)),)),
        Growing(("r",), "SUMMARY", 1),
        Grown("SUMMARY", (candidate("r.0", HOSTILE),), Usage()),
        Notice(HOSTILE),
    ]
    _, final, now = shown(events)
    assert len(final) == 3
    for line in [*final[1:], *now[1:]]:
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202e]", line)
        assert "[bold]x[/bold]" in line


@pytest.mark.parametrize("name", ["lookahead", "at-once"])
def test_rounds_that_are_no_simple_sequence(name):
    """What stays, what is on show after each event, and what is said to be done."""
    board, lines = Board(), []
    for event in TRACES[name]():
        lines += [f"= {line.plain}" for block in board.take(event) for line in block.lines]
        lines += [f"    {line.plain}" for line in board.lines()]
        lines.append(f"[{board.status()}]")
    check_golden(f"views/{name}.board.txt", "\n".join([*lines, ""]))


def test_matches_among_candidates_that_are_final_are_shown_by_themselves():
    """As where a strategy grows deeper first, and has the shallower judged then."""
    ahead = (candidate("r.0.0", "X"), candidate("r.1.0", "Y"))
    later = [Growing(("r.0", "r.1"), "CAPTION", 1), Grown("CAPTION", ahead, Usage())]
    won = match("r.0", "r.1", "r.1", 0.5)
    among = selected(won, candidates=("r.0", "r.1"), kept=("r.1",), merged={})
    judging = [Judging("step", "SUMMARY", ("r.0", "r.1")), Judged(won)]
    _, final, now = shown([*SEARCH[:3], *later, *judging, among])
    assert final[-4:] == [
        "SUMMARY  1 match",
        "  A  −0.30  Count the cubes.",
        "▸ B  −0.30  echo: Look.",
        "    B beat A by 0.50",
    ]
    assert now[0] == "CAPTION from A B  2 candidates"


@pytest.mark.parametrize("name", ["greedy", "stage_beam", "best_of_n", "sentence_beam", "majority"])
def test_every_strategy_can_be_watched(name):
    """Real searches: every chain that is grown appears, and the cost is the answer's."""
    module = __import__(f"cot_engine_strategies.{name}", fromlist=["*"])
    strategy = getattr(module, "".join(word.title() for word in name.split("_")))
    board, titles, sampled = Board(), 0, 0

    def listen(event):
        nonlocal titles, sampled
        for block in board.take(event):
            if block.kind == "round":
                titles += 1
                sampled += int(re.search(r"(\d+) candidate", block.lines[0].plain)[1])

    answer = solve_scripted(strategy(), listen=listen)
    grown = sum(len(event.chains) for event in answer.trace if isinstance(event, Grown))
    assert sampled == grown and titles > 0
    assert board.fold.spent == answer.usage and board.lines() == []


# --- the log -------------------------------------------------------------------------------------


def test_the_log_has_one_line_per_round():
    stream = io.StringIO()
    with make_display(stream=stream) as display:
        assert isinstance(display, Log)
        display.loading("bundled")
        display.notice("Halved.")
        for event in [*SEARCH, Scored("likelihood", {}, Usage()), Finished("3", "r.3", {}, {})]:
            display(event)
    lines = [line.partition("] ")[2] for line in stream.getvalue().splitlines()]
    assert lines[0] == "Loading bundled" and lines[1] == "Note: Halved."
    assert lines[4:-1] == [
        "SUMMARY 4 candidates, 3 distinct, 1 match: C −0.10 Count them one by one."
    ]
    assert lines[-1].startswith("Done")
    assert all(re.match(r"\[ +\d+\.\d s\] ", line) for line in stream.getvalue().splitlines())


def test_the_log_says_now_and_then_how_far_a_long_round_is(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("cot_engine.cli.display.time.monotonic", lambda: now[0])
    stream = io.StringIO()
    display = make_display(stream=stream)
    for event in SEARCH[:2]:
        display(event)
    for tenth in range(251):
        now[0] = 100 + tenth / 10
        display(Progress("growing", "SUMMARY", 1, 4, False, tenth, 10.0))
    lines = stream.getvalue().splitlines()
    assert [line for line in lines if "Writing" in line] == [
        f"[{at:6.1f} s] Writing SUMMARY: 1 of 4 candidates, {at}0 tokens, 10 a second"
        for at in (10, 20)
    ]


def test_the_table_of_long_work_moves_between_two_searches(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("cot_engine.cli.progress.time.monotonic", lambda: now[0])
    work = LongWork({"beam": 3}, stream=io.StringIO())
    shown = []
    for _ in range(3):
        shown.append(work._table().caption)
        now[0] += 45
    assert shown == [
        "0 of 3 searches, 0 s so far",
        "0 of 3 searches, 45 s so far",
        "0 of 3 searches, 1 min 30 s so far",
    ]


def test_a_display_whose_stream_is_gone_is_silent(tmp_path):
    with (tmp_path / "x").open("w") as stream:
        display = make_display(stream=stream)
    display.loading("bundled")
    for event in SEARCH:
        display(event)


def test_quiet_and_dumb_terminals(monkeypatch):
    assert type(make_display(quiet=True)) is Silent
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_display(stream=Terminal()), Log)
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(make_display(stream=Terminal()), Live)
    monkeypatch.setattr(Terminal, "encoding", "ascii")
    assert isinstance(make_display(stream=Terminal()), Log)


# --- the live view -------------------------------------------------------------------------------


def screen(written):
    """The lines that a terminal shows after these characters (of those that rich uses)."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", written):
        if part.startswith("\x1b"):
            count = int(re.sub(r"\D", "", part) or 1)
            if part.endswith("A"):
                row = max(0, row - count)
            elif part == "\x1b[2K":
                lines[row] = ""
            else:
                assert part[-1] in "mhl", part
        elif part == "\n":
            row, column = row + 1, 0  # a terminal's driver returns the carriage too
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        else:
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
    return [line.rstrip() for line in lines]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_every_round_stays_on_the_screen_once(monkeypatch):
    """With frames drawn all the time from another thread, none erases what was printed."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("cot_engine.cli.display._FRAMES_PER_SECOND", 1000)
    render = Console.render

    def slowly(self, *arguments):
        time.sleep(0.001)  # the other threads' turn, after the cursor's way back was measured
        return render(self, *arguments)

    monkeypatch.setattr(Console, "render", slowly)
    stream = Terminal()
    with make_display(stream=stream) as display:
        display.loading("bundled")
        display(SEARCH[0])
        for number in range(12):
            for event in SEARCH[1:]:
                display(event)
                time.sleep(0.004)
            display.notice(f"Note {number}.")
        assert display.broken is False
    lines = [line for line in screen(stream.getvalue()) if line]
    _, expected, _ = shown(SEARCH)
    per_round = expected[2:]
    assert lines[:2] == expected[:2]
    for number in range(12):
        begin = 2 + number * (len(per_round) + 1)
        assert lines[begin : begin + len(per_round) + 1] == [*per_round, f"Note {number}."]
    assert len(lines) == 2 + 12 * (len(per_round) + 1) + 1, "and then the cost, nothing else"


# --- a real terminal -----------------------------------------------------------------------------

HERE = Path(__file__).parents[1]


def on_terminal(*arguments, columns=80, rows=30, **environment):
    """Run the command line with stderr alone on a terminal: what it wrote there, stdout, code."""
    import fcntl
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    running = subprocess.Popen(
        [sys.executable, str(HERE / "scripted_cli.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=slave,
        text=True,
        env=clean | {"TERM": "xterm-256color"} | environment,
    )
    os.close(slave)
    seen = bytearray()

    def drain():
        while running.poll() is None or select.select([master], [], [], 0.1)[0]:
            if select.select([master], [], [], 0.1)[0]:
                try:
                    seen.extend(os.read(master, 65536))
                except OSError:
                    return

    reader = threading.Thread(target=drain)
    reader.start()
    out = running.stdout.read()
    running.wait(timeout=60)
    reader.join(10)
    os.close(master)
    return seen.decode("utf-8"), out, running.returncode


def test_live_on_a_terminal():
    text, out, code = on_terminal("solve", "How many?", "--n", "3", SCRIPT="slow")
    assert code == 0 and re.fullmatch(r"[0-4]\n", out)
    assert text.index("Loading bundled") < text.index("SUMMARY")
    for word in ("Writing SUMMARY: ", "▸", "beat", "\x1b[1;32m", "generate"):
        assert word in text
    for stage in ("SUMMARY", "REASONING", "CONCLUSION"):
        moves = re.findall(rf"Writing {stage}: 0 of 3 candidates, (\d+) tokens?", text)
        assert len(set(moves)) > 2, f"{stage} stood still"
    assert " a second" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h"), "the cursor comes back"
    assert text.count("\x1b[2J") == 0, "the screen is never cleared"
    titles = [line for line in screen(text) if re.match(r"[A-Z]+  \d candidates", line)]
    assert [title.split()[0] for title in titles] == ["SUMMARY", "REASONING", "CONCLUSION"]


def test_live_honours_no_color_and_narrow_windows():
    text, _, code = on_terminal("solve", "How many?", columns=40, NO_COLOR="1")
    assert code == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", text), "a colour"
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").split("\n")
    assert max(map(len, lines)) <= 40


def test_live_keeps_hostile_text_out():
    text, _, code = on_terminal("solve", "How many?", SCRIPT="hostile")
    assert code == 0 and "[bold]x[/bold]" in text
    assert "\x1b]0;" not in text and "\x9b" not in text and "\u202e" not in text
