"""How far long work is and how long it will take: of this run, on a terminal and elsewhere."""

import time

import pytest

from cot_engine.cli.data_build import _Watch
from cot_engine.cli.train import Show
from cot_engine.training.build import RowOutcome
from cot_engine.training.clock import Clock, duration, share


def begun(seconds, total, first=0, most=None):
    return Clock(total, first, most, time.monotonic() - seconds)


def test_what_is_left_follows_from_this_runs_own_rate():
    clock = begun(60, 3000)
    assert clock.left(0) is None and clock.said(0) == "0 of 3,000 (0 %)"
    assert clock.left(120) == pytest.approx(60 / 120 * 2880, rel=0.01)
    assert clock.said(120).startswith("120 of 3,000 (4 %), about 24 min ")
    assert clock.left(3000) == 0 and clock.said(3000) == "3,000 of 3,000 (100 %)"
    # 2,000 steps of an earlier run say nothing about how fast this one is.
    resumed = begun(60, 3000, first=2000)
    assert resumed.left(2000) is None
    assert resumed.left(2100) == pytest.approx(60 / 100 * 900, rel=0.01)


def test_a_run_that_stops_before_the_end_says_so():
    said = begun(60, 3000, most=300).said(120)
    assert "left, this run stops in 4 min 0 s" in said or "stops in 3 min 59 s" in said
    assert "stops" not in begun(60, 3000, most=1e9).said(120)
    assert "stops in 0 s" in begun(60, 3000, most=30).said(120)


def test_amounts_in_words():
    assert [duration(n) for n in (0, 59.4, 61, 3599, 3600, 11_520)] == [
        *("0 s", "59 s", "1 min 1 s", "59 min 59 s", "1 h 0 min", "3 h 12 min")
    ]
    assert duration(100 * 3600) == "4 d 4 h"
    assert [share(2999, 3000), share(0, 0), share(1, 1)] == ["99 %", "0 %", "100 %"]


ROW = {"step": 120, "loss": 0.5, "examples_per_second": 31.25, "seconds": 70.0}


def test_a_training_is_watched_without_a_terminal(capsys):
    clock = begun(60, 3000)
    with Show(quiet=False) as shown:
        shown.row({"step": 100, "held_out_loss": 0.25, "progress": clock.said(100)})
        shown.row(ROW | {"progress": clock.said(120)})
        for step in (121, 122):  # within ten seconds: no line of their own
            shown.step(step, clock.said(step))
        shown.said -= 11
        shown.step(123, clock.said(123))
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("Step 120 of 3,000 (4 %), about 2")
    assert first.endswith(": loss 0.5000, held-out loss 0.2500, 31.2 examples/s, 1 min 10 s so far")
    assert second.startswith("Step 123 of 3,000 (4 %), about 2") and "loss 0.5000" in second
    with Show(quiet=True) as shown:
        shown.row(ROW | {"progress": clock.said(120)})
    assert capsys.readouterr().err == ""


def test_rows_out_of_the_journal_say_nothing_about_a_teachers_rate():
    watch = _Watch(1000, quiet=True)
    for n in range(400):  # at once
        watch.outcome(RowOutcome(str(n), "", "kept"))
    assert watch.status() == "400 of 1,000 rows (40 %), 400 kept, 0 aside"
    watch.asked.began -= 60
    for n in range(100):
        watch.outcome(RowOutcome(str(n), "", "kept" if n else "aside", asked=True))
    said, rest = watch.status().rsplit(", about ", 1)
    assert said == "500 of 1,000 rows (50 %), 499 kept, 1 aside"
    assert rest in ("5 min 0 s to go", "5 min 1 s to go")  # 500 more, at 100 a minute
    watch.outcome(RowOutcome("x", "", "left"))
    assert "1 left for a later run" in watch.status()
