"""The store: what is written stays, is never counted for anything else, and can be asked."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from make_store import make_cells, make_run, make_store, plain, put

from cot_engine.ablation.records import (
    CandidateRecord,
    Key,
    ResultRow,
    SelectionRecord,
    pack,
    unpack,
)
from cot_engine.ablation.store import Store
from cot_engine.core.usage import Usage
from cot_engine.errors import StoreError
from cot_engine.files.locking import held
from cot_engine.images.thumbnails import Thumbnail
from cot_engine.report.analysis import analyse

HERE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "made.sqlite"
    store, run = make_store(path, problems=9, seeds=(0, 1), traces=3)
    store.close()
    with Store(path) as opened:
        yield opened, run


def two(store, labels=("greedy", "one sample"), **more):
    """A run of two cells on three problems, begun."""
    cells = {hash: cell for hash, cell in make_cells().items() if cell[0] in labels}
    run = make_run(3, (0, 1), cells, **more)
    store.begin(run)
    return run


def everything(row):
    """A row with a value in every field."""
    return replace(
        row,
        answer="a “red” | cube\n\u2028",
        unit="new tokens",
        allotted=10.5,
        remaining=0.25,
        candidates=(
            CandidateRecord("r.0", "x", 0.5, -0.25, False),
            CandidateRecord("r.1", "", 0.0, -99.0),
        ),
        selections=(
            SelectionRecord("CAPTION", ("r.0", "r.1"), ("r.1",), {"r.0": 0.125}, {"r.1": 1.0}),
            SelectionRecord("whole", ("r.0",), ("r.0",)),
        ),
        faults={"stray": 2},
        finished="2025-01-01T00:00:00Z",
        incomplete="The budget of 5 calls ended before CONCLUSION was written.",
    )


# --- what is written is what is read -------------------------------------------------------------


def test_a_row_comes_back_as_it_was(tmp_path):
    with Store(tmp_path / "s.sqlite", create=True) as store:
        run = two(store)
        key = next(iter(run.keys()))
        usage = {"generate": Usage(1, 2, 3, 4, 10**15, 6, 0.5), "judge": Usage(calls=1)}
        row = everything(ResultRow(key, "ok", correct=1.0, spent=7.0, seconds=0.1, usage=usage))
        store.add(run, row)
        assert list(store.rows(run)) == [row]
        with pytest.raises(StoreError, match="no trace"):
            store.trace(run, key)


def test_a_store_from_before_answers_said_that_they_were_cut(tmp_path):
    """It is read as it is, and written on after it got the column."""
    path = tmp_path / "s.sqlite"
    with Store(path, create=True) as store:
        run = two(store)
        first, second, *_ = (ResultRow(key, "ok", correct=1.0) for key in run.keys())  # noqa: SIM118
        store.add(run, first)
        before = list(store.rows(run))
    with sqlite3.connect(path) as db:
        view = db.execute("select sql from sqlite_master where name = 'results'").fetchone()[0]
        db.execute("drop view results")
        db.execute("alter table searches drop column incomplete")
        db.execute(view.replace("s.incomplete,", ""))
    db.close()
    with Store(path) as store:
        assert list(store.rows(run)) == before
    with Store(path, create=True) as store:
        store.add(run, replace(second, incomplete="Cut."))
        assert [row.incomplete for row in store.rows(run)] == ["", "Cut."]
        assert [row.incomplete for row in store.rows(run, "incomplete <> ''")] == ["Cut."]
    with Store(path) as store:
        assert len(list(store.rows(run))) == 2


def test_pictures_are_kept_once_and_by_old_stores_from_now_on(tmp_path):
    path = tmp_path / "s.sqlite"
    small = Thumbnail(5, 4, 320, 200, "jpeg", b"\xff\xd8")
    with Store(path, create=True) as store:
        run = two(store)
        store.add_picture(run.items[0].digest, small)
        store.add_picture(run.items[0].digest, Thumbnail(0))  # what is there stays
        store.add_picture(run.items[1].digest, Thumbnail(0))
        assert store.pictured() == {item.digest for item in run.items[:2]}
        assert [store.picture(i.digest) for i in run.items] == [small, Thumbnail(0), None]
    with sqlite3.connect(path) as db:
        db.execute("drop table pictures")
    db.close()
    with Store(path) as store:
        assert store.pictured() == set() and store.picture(run.items[0].digest) is None
    with Store(path, create=True) as store:
        store.add_picture(run.items[0].digest, small)
    with Store(path) as store:
        assert store.picture(run.items[0].digest) == small


def test_a_run_comes_back_as_it_was(made):
    store, run = made
    found = store.run()
    assert found == run == store.run(run.id) == store.run(run.id[:4])
    assert store.runs() == [run]
    expected = make_run(9, (0, 1))
    assert replace(found, started="") == expected
    assert list(found.cells) == list(expected.cells)  # in the order of the grid
    with pytest.raises(StoreError, match=r"no run 'zz'.*It has 0123456789ab"):
        store.run("zz")


def test_a_trace_comes_back_without_its_pixels(made):
    store, run = made
    row = next(row for row in store.rows(run) if row.selections)
    trace = store.trace(run, row.key)
    assert [s.candidates for s in row.selections] == [
        event.candidates for event in trace if type(event).__name__ == "Selected"
    ]
    assert [image.png() for image in trace.started.images] == [""]
    assert unpack(pack(trace)).canonical() == trace.canonical()


def test_rows_come_in_the_order_of_the_grid_whatever_order_they_were_done_in(tmp_path):
    with Store(tmp_path / "s.sqlite", create=True) as store:
        run = two(store)
        keys = list(run.keys())
        for key in reversed(keys):
            store.add(run, ResultRow(key, "ok", correct=1.0, spent=1.0))
        assert [row.key for row in store.rows(run)] == keys
        assert [row[:1] for row in store.table(run)][1:3] == [("greedy",), ("one sample",)]


def test_odd_texts_are_stored(tmp_path):
    """Half a surrogate pair, which JSON can say and UTF-8 cannot, NUL, and right-to-left marks."""
    odd = "a\ud800b\x00\u202ec"
    with Store(tmp_path / "s.sqlite", create=True) as store:
        run = make_run(2, (0,))
        items = (replace(run.items[0], question=odd, expected=odd), run.items[1])
        run = replace(run, items=items, command=odd)
        store.begin(run)
        put(
            store,
            run,
            "greedy",
            0,
            0,
            answer=odd,
            candidates=(CandidateRecord("r.0", odd, 1.0, 0.0),),
        )
        put(store, run, "one sample", 0, 0, None, error=odd)
        rows = list(store.rows(store.run()))
        assert rows[0].answer == "a\\ud800b\x00\u202ec"
        assert rows[0].candidates[0].answer == odd  # JSON keeps it
        assert rows[1].error == store.run().items[0].question == rows[0].answer


# --- nothing is counted for anything else --------------------------------------------------------


@pytest.mark.parametrize("changed", ["cell", "seed", "item", "code", "model"])
def test_a_row_is_found_by_all_that_names_it_and_by_nothing_else(tmp_path, changed):
    with Store(tmp_path / "s.sqlite", create=True) as store:
        run = two(store, labels=("greedy",))
        for problem in range(3):
            put(store, run, "greedy", problem, 0, 1.0)
        if changed == "cell":
            other = plain("greedy", temperature=0.1)
            run2 = replace(run, id="other", cells={"f" * 16: ("greedy", other)})
        elif changed == "seed":
            run2 = replace(run, id="other", seeds=(7,))
        elif changed == "item":
            items = tuple(replace(i, digest=i.digest[::-1]) for i in run.items)
            run2 = replace(run, id="other", items=items)
        else:
            run2 = replace(run, id="other", **{changed: "another"})
        store.begin(run2)
        assert not list(store.rows(run2))
        assert not set(run2.keys()) & store.done(run2)
        spent = store.spent(run2, next(iter(run2.cells)))
        assert not {(key.seed, key.item) for key in list(run2.keys())} & set(spent)
        assert len(list(store.table(run2))) == 1  # the names of the columns
        put(store, run2, "greedy", 0, run2.seeds[0], 0.0)
        assert [row.correct for row in store.rows(run2)] == [0.0]
        assert [row.correct for row in store.rows(run)] == [1.0, 1.0, 1.0]


def test_runs_that_share_searches_share_rows_each_under_its_own_label(tmp_path):
    with Store(tmp_path / "s.sqlite", create=True) as store:
        run = two(store)
        put(store, run, "greedy", 0, 0)
        hash = next(iter(run.cells))
        run2 = replace(run, id="second", cells={hash: ("plain", run.cells[hash][1])}, seeds=(0,))
        store.begin(run2)
        assert [row.key for row in store.rows(run2)] == [row.key for row in store.rows(run)]
        for each, label in ((run, "greedy"), (run2, "plain")):
            heads, line = store.table(each)
            assert line[heads.index("label")] == label
            assert len(list(store.rows(each, f"label = '{label}'"))) == 1
        assert store.run().id == "second"  # the last one begun


def test_a_row_that_is_there_stays_and_only_a_failed_one_is_replaced(tmp_path):
    with Store(tmp_path / "s.sqlite", create=True) as store:
        run = two(store)
        put(store, run, "greedy", 0, 0, None)
        assert len(store.done(run)) == 1
        assert store.done(run, failed=False) == set()
        put(store, run, "greedy", 0, 0, 1.0)
        put(store, run, "greedy", 0, 0, 0.0)
        put(store, run, "greedy", 0, 0, None)
        assert [row.correct for row in store.rows(run)] == [1.0]


# --- conditions ----------------------------------------------------------------------------------


def test_a_condition_chooses_rows_by_any_column(made):
    store, run = made
    for where, number in {
        "type = 'count'": 9 * 3 * 2,
        "seed = 0 and strategy = 'greedy'": 9,
        "label = 'stage-beam n=4' and status = 'failed'": 1,
        "problem = 'p003' and n is null": 2,
        "judge_flops > generate_flops": 0,
        "spent < allotted * 0.8": 17,
        "question like '%<script>%' and cell = cell and item = item": 18,
        "1 -- the end": 9 * 9 * 2 - 3,
    }.items():
        rows = list(store.rows(run, where))
        assert len(rows) == number, where
        assert len(list(store.table(run, where))) == number + 1, where


@pytest.mark.parametrize(
    "where",
    [
        "nonsense = 1",
        "type = ",
        "type = 'count",
        "",
        "seed = ?",
        "1); delete from searches; --",
        "1) and (select 1 from (delete from searches)",
        "load_extension('x')",
        "\x00",
    ],
)
def test_a_condition_that_cannot_be_used_is_said_with_the_columns(made, where):
    store, run = made
    before = len(list(store.rows(run)))
    with pytest.raises(StoreError, match=r"cannot be used.*columns label, problem, type"):
        list(store.rows(run, where))
    assert len(list(store.rows(run))) == before


def test_a_store_that_is_read_cannot_be_written(made):
    store, run = made
    with pytest.raises(StoreError, match="cannot be written"):
        put(store, run, "greedy", 0, 0)
    with pytest.raises(StoreError, match="cannot be written"):
        store.begin(run)


def test_pandas_reads_the_view(made):
    pandas = pytest.importorskip("pandas")
    store, _run = made
    with sqlite3.connect(store.path) as db:
        rows = pandas.read_sql("select * from results", db)
    assert len(rows) == 9 * 9 * 2 - 3
    assert set(rows.type) == {"count", "colour", "yes/no"}
    assert rows[rows.status == "ok"].correct.notna().all()
    assert rows[rows.strategy == "greedy"].judge_flops.isna().all()
    beam = rows[rows.strategy.eq("stage-beam") & rows.n.eq(4) & rows.status.eq("ok")]
    assert ((beam.generate_flops + beam.judge_flops) == beam.spent).all()
    assert json.loads(rows.config[0])["parameters"] is not None


# --- files that are no store ---------------------------------------------------------------------


def test_what_is_no_store_is_said(tmp_path):
    path = tmp_path / "s.sqlite"
    with pytest.raises(StoreError, match="There is no store"):
        Store(path)
    path.write_bytes(b"no database at all, but long enough to be looked at\n" * 40)
    with pytest.raises(StoreError, match="cannot be opened: file is not a database"):
        Store(path)
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("create table mine (x)")
    db.close()
    for create in (False, True):  # someone else's file is never taken over
        with pytest.raises(StoreError, match="another kind of SQLite file"):
            Store(path, create=create)
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(tmp_path / "s.sqlite" / "below.sqlite", create=True)
    (tmp_path / "empty.sqlite").touch()
    with pytest.raises(StoreError, match="another kind of SQLite file"):
        Store(tmp_path / "empty.sqlite")
    Store(tmp_path / "empty.sqlite", create=True).close()
    with Store(tmp_path / "empty.sqlite") as store, pytest.raises(StoreError, match="no run yet"):
        store.run()


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="rights as on POSIX")
def test_a_store_can_be_read_where_nothing_can_be_written(made):
    """A colleague's, or one on a disk that is mounted read-only."""
    with tempfile.TemporaryDirectory() as name:  # others can reach it, unlike pytest's folder
        folder = Path(name)
        path = Path(shutil.copy(made[0].path, folder))
        folder.chmod(0o555)
        path.chmod(0o444)
        before = os.geteuid()
        try:
            if before == 0:
                os.seteuid(65534)  # root may write anywhere
            with Store(path) as store:
                assert len(list(store.rows(store.run()))) == 9 * 9 * 2 - 3
            assert [each.name for each in folder.iterdir()] == [path.name]
        finally:
            os.seteuid(before)
            folder.chmod(0o755)


def changed(folder, statement):
    """A small store to which somebody has done something."""
    path = folder / "s.sqlite"
    make_store(path, problems=1, seeds=(0,))[0].close()
    with sqlite3.connect(path) as db:
        db.execute(statement)
    db.close()
    return path


DAMAGE = {
    "usage": "update searches set usage = '{'",
    "candidates": "update searches set candidates = '[{}]'",
    "trace": "update searches set trace = x'0011'",
    "about": "update runs set about = '['",
    "plain": "update cells set plain = ''",
    "table": "drop table run_items",
}


@pytest.mark.parametrize("statement", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_store_is_said_to_be_one_and_not_our_defect(tmp_path, statement):
    path = changed(tmp_path, statement)
    with pytest.raises(StoreError, match=r"cannot be read: .* If it is damaged"), Store(path) as s:
        run = s.run()
        for row in s.rows(run):
            s.trace(run, row.key)


def test_a_report_does_not_leave_out_a_trace_that_is_damaged(tmp_path):
    """One that was never stored is left out."""
    (tmp_path / "none").mkdir()
    with Store(changed(tmp_path / "none", "update searches set trace = null")) as store:
        analyse(store, store.run())
    path = changed(tmp_path, DAMAGE["trace"])
    with pytest.raises(StoreError, match="cannot be read"), Store(path) as store:
        analyse(store, store.run())


def test_another_schema_is_refused(tmp_path):
    path = changed(tmp_path, "update meta set value = '99' where key = 'schema'")
    for create in (False, True):
        with pytest.raises(StoreError, match=r"has schema 99; .* reads and writes 1\."):
            Store(path, create=create)


def test_what_cannot_be_locked_is_said_and_not_waited_for(tmp_path):
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "other.sqlite.lock").write_text("no lock of ours, but long enough\n" * 40)
    for path in (tmp_path / "file" / "s.sqlite", tmp_path / "other.sqlite", "."):
        with pytest.raises(StoreError, match="cannot be written"), writing(path, wait=True):
            pass


def writing(path, **how):
    return held(path, "the store", "Stop it.", **how)


# --- what stays behind ---------------------------------------------------------------------------


def _names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("error", [StoreError("refused"), KeyboardInterrupt(), ZeroDivisionError()])
def test_a_run_that_never_began_leaves_nothing(tmp_path, error):
    path = tmp_path / "below" / "deep" / "s.sqlite"
    with pytest.raises(type(error)), writing(path), Store(path, create=True):
        raise error
    assert _names(tmp_path) == []


@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
def test_a_run_leaves_its_store_alone_and_so_does_who_reads_it(tmp_path, error):
    path = tmp_path / "s.sqlite"
    try:
        with writing(path), Store(path, create=True) as store:
            store.begin(run := make_run(2, (0,)))
            put(store, run, "greedy", 0, 0)
            if error is not None:
                raise error
    except KeyboardInterrupt:
        pass
    assert _names(tmp_path) == ["s.sqlite"]
    with Store(path) as store:
        assert len(list(store.rows(store.run()))) == 1
    assert _names(tmp_path) == ["s.sqlite"]
    with writing(path), Store(path, create=True) as store:  # and it is written to again
        put(store, run, "greedy", 1, 0)
        with Store(path) as reader:
            assert len(list(reader.rows(reader.run()))) == 2
    assert _names(tmp_path) == ["s.sqlite"]


def test_who_reads_a_store_of_before_leaves_nothing(tmp_path):
    """Its header says that there is a log."""
    path = changed(tmp_path, "pragma journal_mode = wal")
    with Store(path) as store, pytest.raises(sqlite3.OperationalError, match="readonly"):
        store._db.execute("delete from searches")
    assert _names(tmp_path) == ["s.sqlite"]


def test_a_file_that_is_no_lock_of_ours_stays(tmp_path):
    theirs = tmp_path / "s.sqlite.lock"
    theirs.write_text("mine")
    with pytest.raises(StoreError, match="somebody else's"), writing(tmp_path / "s.sqlite"):
        pass
    assert theirs.read_text() == "mine"


def test_a_lock_that_goes_when_it_is_let_go_of_is_held_by_one_at_a_time(tmp_path):
    path, held, most, turns = tmp_path / "s.sqlite", [], [], []

    def work():
        while len(turns) < 200:
            try:
                with writing(path):
                    held.append(1)
                    most.append(len(held))
                    turns.append(1)
                    held.pop()
            except StoreError:
                pass

    threads = [threading.Thread(target=work) for _ in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert len(turns) >= 200 and max(most) == 1
    assert _names(tmp_path) == []


# --- processes -----------------------------------------------------------------------------------

WRITER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from make_store import make_run, put
from cot_engine.files.locking import held
from cot_engine.images.thumbnails import Thumbnail
from cot_engine.ablation.store import Store

with held(sys.argv[1], "the store", ""), Store(sys.argv[1], create=True) as store:
    run = make_run(200, (0,))
    store.begin(run)
    for problem in range(200):
        put(store, run, "greedy", problem, 0)
        print(problem, flush=True)
        if sys.argv[3] == "slowly":
            time.sleep(0.3)
"""


@pytest.fixture
def writer(tmp_path):
    """Start a process that writes: writer("slowly") gives it once it has stored a row."""
    started = []

    def start(how):
        command = [sys.executable, "-c", WRITER, str(tmp_path / "s.sqlite"), str(HERE), how]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "0\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_writer_is_refused_by_name_and_readers_are_not(tmp_path, writer):
    process, path = writer("slowly"), tmp_path / "s.sqlite"
    began = time.monotonic()
    said = rf"Process {process.pid} on .* is writing to the store"
    with pytest.raises(StoreError, match=said), writing(path):
        pass
    assert time.monotonic() - began < 5
    with Store(path) as store:
        assert len(list(store.rows(store.run()))) >= 1


def test_a_writer_that_waits_says_so_and_gets_its_turn(tmp_path, writer):
    process, path = writer("slowly"), tmp_path / "s.sqlite"
    told = []

    def tell(text):
        told.append(text)
        process.kill()

    with writing(path, wait=True, tell=tell), Store(path, create=True) as store:
        run = store.run()
        put(store, run, "one sample", 0, 0)
        assert len(list(store.rows(run))) >= 2
    assert len(told) == 1
    assert f"Process {process.pid} on" in told[0]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="a POSIX signal")
def test_kill_9_keeps_every_row_that_was_committed(tmp_path, writer):
    process, path = writer("fast"), tmp_path / "s.sqlite"
    for line in process.stdout:
        if int(line) >= 20:
            break
    os.kill(process.pid, signal.SIGKILL)
    rest = process.stdout.read().split("\n")
    process.wait()
    said = max([20, *(int(line) for line in rest if line)])
    with writing(path), Store(path, create=True) as store:  # the lock went with the process
        run = store.run()
        rows = list(store.rows(run))
        assert len(rows) in (said + 1, said + 2)  # a row may be stored and not yet said
        assert [row.key.item for row in rows] == [item.digest for item in run.items[: len(rows)]]
        put(store, run, "greedy", 199, 0)
        assert len(list(store.rows(run))) == len(rows) + 1
        integrity = store._db.execute("pragma integrity_check").fetchone()[0]
        assert integrity == "ok"


def test_two_writers_at_once_lose_nothing(tmp_path):
    """Not what ablate allows, but nothing may break if somebody does it."""
    path = tmp_path / "s.sqlite"
    with Store(path, create=True) as one, Store(path, create=True) as two_:
        run = two(one)
        for problem in range(3):
            put(one, run, "greedy", problem, 0)
            put(two_, run, "one sample", problem, 0)
        assert len(list(one.rows(run))) == len(list(two_.rows(run))) == 6
        assert one.done(run) == {
            Key(cell, 0, item.digest) for cell in run.cells for item in run.items
        }
