"""Ablations run: every search once, resumed wherever they stopped, matched within their budgets.

All on the bundled model; the whole command in processes of its own where it is to be killed.
"""

from __future__ import annotations

import gc
import json
import random
import signal
import time
import tomllib
import weakref

import pytest
from forked import Forked
from PIL import Image

from cot_engine.ablation import ray_workers
from cot_engine.ablation.grid import parse_ablation
from cot_engine.ablation.records import Key
from cot_engine.ablation.runner import ablate, plan_run, run_local, told
from cot_engine.ablation.store import Store
from cot_engine.cli import main
from cot_engine.engine.facade import Engine
from cot_engine.errors import ModelError
from cot_engine.files.locking import held
from cot_engine.images.thumbnails import thumbnail
from cot_engine.questions.data import load_data
from cot_engine.questions.pictures import FilePicture
from cot_engine.testing import alike

GRID = """
seeds = [0, 1]
[data]
source = "scenes"
n = 2
[run]
temperature = 2.0
top_p = 1.0
top_k = 0
[match]
reference = "stage-beam n=3"
unit = "UNIT"
[[cells]]
strategy = "stage-beam"
n = 3
[[cells]]
strategy = ["best-of-n", "sentence-beam"]
matched = true
n = 2
"""


@pytest.fixture(scope="module")
def engine():
    with Engine.from_pretrained(in_flight=16) as engine:
        yield engine


def planned(engine, text=GRID, unit="flops", n=None):
    ablation = parse_ablation(tomllib.loads(text.replace("UNIT", unit)), name="test")
    data = load_data(**ablation.data | ({"n": n} if n else {}))
    return plan_run(ablation, data, engine, "cot-engine ablate test.toml")


def do(engine, work, store, **more):
    """Run what is missing; the keys that were run."""
    ran = []
    ablate(
        work,
        store,
        lambda tasks, keep: run_local(engine, tasks, keep, 16),
        on_row=lambda row: ran.append(row.key),
        **more,
    )
    return ran


@pytest.fixture(scope="module")
def finished(engine, tmp_path_factory):
    work = planned(engine)
    path = tmp_path_factory.mktemp("ablation") / "test.sqlite"
    with Store(path, create=True) as store:
        ran = do(engine, work, store)
        yield work, store, ran


def test_every_search_is_done_once_and_never_again(engine, finished):
    work, store, ran = finished
    assert sorted(ran) == sorted(work.run.keys())
    assert len(list(store.rows(work.run))) == len(ran) == 2 * 2 * len(work.cells)
    assert do(engine, work, store) == []
    for item in work.items.values():  # as the report will show it
        assert store.picture(item.digest) == thumbnail([item.pictures[0].load()])


def test_a_picture_is_read_once_and_let_go_when_its_problem_is_done(engine, tmp_path, monkeypatch):
    lines = []
    for k in range(3):
        Image.new("RGB", (48, 48), (60 * k, 0, 0)).save(tmp_path / f"{k}.png")
        lines.append(json.dumps({"image": f"{k}.png", "question": "What is red?", "answer": "it"}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    seen, held, load = [], [], FilePicture.load

    def watched(picture):
        image = load(picture)
        gc.collect(1)
        held.append(sum(each() is not None for each in seen))
        seen.append(weakref.ref(image))
        return image

    monkeypatch.setattr(FilePicture, "load", watched)
    source = tmp_path / "data.jsonl"
    text = f'run.detail = "brief"\ndata.source = "{source}"\ncells = [{{strategy = "greedy"}}]'
    work = planned(engine, text)
    with Store(tmp_path / "s.sqlite", create=True) as store:
        tasks = next(iter(work.phases(store)))
        run_local(engine, tasks, lambda row: None, 1)
    assert len(tasks) > len(seen) == 3  # two cells, each picture read once
    assert max(held) <= 1  # the one before, never all: 256 photographs would fill the memory


def test_a_run_records_which_cells_its_grid_did_not_name(finished):
    _, store, _ = finished
    run = store.run()
    added = [run.cells[digest][0] for digest in run.about["added"]]
    assert added == ["greedy", "one sample", "majority (matched)"]


def test_a_stored_search_is_the_one_that_solve_does(engine, finished):
    work, store, _ = finished
    reference = next(c for c in work.cells.values() if c.label == "stage-beam n=3")
    for row in store.rows(work.run, "label = 'stage-beam n=3' and seed = 1"):
        item = work.items[row.key.item]
        answer = engine.solve(
            item.problem(), strategy="stage-beam", n=3, seed=1,
            temperature=2.0, top_p=1.0, top_k=0,
        )  # fmt: skip
        assert row.answer == answer.text
        assert row.correct == item.grade(answer.text)
        stored = store.trace(work.run, Key(reference.hash, 1, row.key.item))
        canonical = [
            {k: v for k, v in event.items() if k != "images"} for event in stored.canonical()
        ]
        alone = [
            {k: v for k, v in event.items() if k != "images"} for event in answer.trace.canonical()
        ]
        assert alike(canonical, alone)
        assert row.spent == answer.total.flops == sum(u.flops for u in row.usage.values())


def test_matched_cells_get_what_the_reference_spent_there(finished):
    work, store, _ = finished
    rows = list(store.rows(work.run))
    label = {digest: name for digest, (name, _) in work.run.cells.items()}
    given = {r.key[1:]: r.spent for r in rows if label[r.key.cell] == "stage-beam n=3"}
    matched = [r for r in rows if "matched" in label[r.key.cell]]
    assert len(matched) == 3 * 2 * 2
    for row in matched:
        assert row.allotted == given[row.key[1:]]
        assert row.spent <= row.allotted
        assert row.remaining == pytest.approx(row.allotted - row.spent, abs=1)


@pytest.mark.parametrize("unit", ["new tokens", "tokens", "calls", "seconds"])
def test_other_units(engine, tmp_path, unit):
    text = GRID.replace("seeds = [0, 1]", "seeds = [0]")
    work = planned(engine, text, unit=unit, n=1)
    with Store(tmp_path / "units.sqlite", create=True) as store:
        do(engine, work, store)
        for row in store.rows(work.run):
            assert row.status == "ok" and row.unit == unit and row.spent > 0
            if row.allotted is not None and unit != "seconds":
                assert row.spent <= row.allotted


def test_what_is_worked_out_beside_a_search(finished):
    work, store, _ = finished
    for row in store.rows(work.run):
        strategy = work.cells[row.key.cell].config.strategy
        if strategy in ("best-of-n", "majority", "greedy"):
            assert row.candidates and all(c.id.count(".") == 1 for c in row.candidates)
        if strategy == "stage-beam":
            stages = [s.stage for s in row.selections]
            assert stages == ["SUMMARY", "CAPTION", "REASONING", "CONCLUSION"]
            caption, last = row.selections[1], row.selections[3]
            assert set(caption.facts) <= set(caption.candidates) and caption.facts
            assert last.worth[last.kept[0]] == row.correct


def test_grids_that_share_cells_share_rows(engine, finished):
    _, store, _ = finished
    more = planned(engine, GRID + '[[cells]]\nstrategy = "greedy"\nname = "again"\n', n=3)
    added = {key for tasks in more.phases(store) for key in (task.key for task in tasks)}
    assert {key.item for key in added if key.seed == 0} == {more.run.items[2].digest}


def test_another_model_or_code_shares_nothing(engine, finished):
    from dataclasses import replace

    work, store, _ = finished
    for change in ({"model": "other"}, {"code": "other"}):
        other = replace(work.run, **change)
        assert not store.done(other) and not list(store.rows(other))


BREAKING = """
    from dataclasses import dataclass
    from cot_engine import Expand

    @dataclass(frozen=True)
    class Breaking:
        def search(self, task):
            beam = yield Expand(task.start, until="end", greedy=True)
            if task.problem.id.endswith("/2"):
                raise ValueError("two is too many")
            return beam[0]
"""


def test_a_strategy_that_raises_costs_one_cell(engine, install, tmp_path):
    install("breaking", BREAKING, breaking="breaking:Breaking")
    text = "[data]\nn = 4\n[[cells]]\nstrategy = ['breaking', 'greedy']"
    with Store(tmp_path / "failing.sqlite", create=True) as store:
        work = planned(engine, text)
        do(engine, work, store)
        failed = [row for row in store.rows(work.run) if row.status == "failed"]
        assert [work.items[row.key.item].id[-2:] for row in failed] == ["/2"]
        assert "two is too many" in failed[0].error and failed[0].correct is None
        assert len(list(store.rows(work.run))) == 3 * 4
        assert do(engine, work, store, retry=False) == []
        assert do(engine, work, store) == [failed[0].key]


FLAKY = """
    class Flaky:
        symmetric = True
        async def compare(self, pairs, case, ask):
            if case.problem.id.endswith("/1"):
                raise ValueError(f"odd after {len(pairs)} pairs")
            if case.problem.id.endswith("/3"):
                raise SystemExit("that is it")
            return await self.fine(pairs, case, ask)
        async def fine(self, pairs, case, ask):
            from cot_engine.judging.judges import RandomJudge
            return await RandomJudge().compare(pairs, case, ask)
"""


def test_a_judge_that_fails_for_some_problems_costs_these(engine, install, tmp_path):
    """Each is a row that names the judge; the next run of the command tries them again."""
    install("flaky-pack", FLAKY, "judges", flaky="flaky_pack:Flaky")
    text = GRID[: GRID.index("[match]")].replace("[run]", "[run]\njudge = 'flaky'")
    text += "[[cells]]\nstrategy = 'stage-beam'\nn = [3, 4]\n"
    with Store(tmp_path / "flaky.sqlite", create=True) as store:
        work = planned(engine, text, n=4)
        do(engine, work, store)
        rows = list(store.rows(work.run))
        assert len(rows) == len(list(work.run.keys()))
        failed = [row for row in rows if row.status == "failed"]
        assert {work.items[row.key.item].id[-2:] for row in failed} == {"/1", "/3"}
        assert {work.cells[row.key.cell].config.strategy for row in failed} == {"stage-beam"}
        for row in failed:
            assert "The judge flaky (Flaky) raised" in row.error
            assert row.answer is None and row.correct is None
        said = told(work.run, store.rows(work.run))
        assert f"{len(failed)} of {len(rows)} searches failed" in said
        # Two causes, though their numbers differ: each once, with its first search.
        assert said.count("raised ValueError: odd after") == said.count("raised SystemExit") == 1
        assert "first: problem scenes-2/test/0/1, stage-beam n=3, seed 0" in said
        assert sorted(do(engine, work, store)) == sorted(row.key for row in failed)
        assert told(work.run, []) == ""


@pytest.mark.parametrize("error", [ModelError("The model is gone."), RuntimeError("a defect")])
def test_what_would_befall_every_search_ends_the_run(engine, monkeypatch, tmp_path, error):
    async def gone(*_, **__):
        raise error

    with Store(tmp_path / "gone.sqlite", create=True) as store:
        work = planned(engine, "[data]\nn = 2\n[[cells]]\nstrategy = 'greedy'")
        monkeypatch.setattr(engine.backend, "generate", gone)
        with pytest.raises(ModelError, match=str(error)):
            do(engine, work, store)
        assert not list(store.rows(work.run))


def test_a_worker_hands_over_what_it_had_done_when_its_model_is_lost(engine, monkeypatch, tmp_path):
    with Store(tmp_path / "lost.sqlite", create=True) as store:
        work = planned(engine, "[data]\nn = 3\n[[cells]]\nstrategy = 'greedy'")
        tasks = [task for phase in work.phases(store) for task in phase]
    needs = ray_workers._Needs(work.run.code, work.run.model, tuple(work.cells.values()), 1, 1)
    generate, seen = engine.backend.generate, set()
    monkeypatch.setattr(ray_workers, "_loaded", (ray_workers._key(needs), engine))

    async def twice(request):
        seen.add(request.scope)
        if len([scope for scope in seen if not scope.startswith("probe")]) > 2:
            raise ModelError("The model is gone.")
        return await generate(request)

    monkeypatch.setattr(engine.backend, "generate", twice)
    given = ray_workers.search_chunk(needs, tasks)
    assert isinstance(given, ray_workers.Refusal) and "The model is gone." in given.message
    assert [row.key for row in given.rows] == [task.key for task in tasks[:2]]


# --- the command ---------------------------------------------------------------------------------


def command(tmp_path, *more, text=GRID):
    path = tmp_path / "grid.toml"
    path.write_text(text.replace("UNIT", "flops"), "utf-8")
    return ["ablate", str(path), *more]


def process(tmp_path, *more):
    """The command in a process of its own."""
    return Forked("-m", "cot_engine", *command(tmp_path, *more), cwd=tmp_path)


def test_the_second_of_two_runs_says_who_is_first(tmp_path):
    with (
        held(tmp_path / "grid.sqlite", "the store", ""),
        Store(tmp_path / "grid.sqlite", create=True),
    ):
        second = process(tmp_path).ended()
    assert second.returncode == 2
    assert "is writing to the store" in second.stderr and "--wait" in second.stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--workers", "many"], "workers is 'many'"),
        (["--problems", "0"], "n"),
        (["--dtype", "float8"], "float8"),
    ],
)
def test_wrong_flags_are_explained(tmp_path, capsys, more, said):
    assert main(command(tmp_path, *more)) == 2
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told


def test_an_unknown_preset_names_those_there_are(capsys):
    assert main(["ablate", "papre"]) == 2
    assert "paper" in capsys.readouterr().err


def test_failures_show_in_the_exit_code(tmp_path, install, monkeypatch, capsys):
    install("breaking", BREAKING, breaking="breaking:Breaking")
    monkeypatch.chdir(tmp_path)
    text = "[data]\nn = 3\n[[cells]]\nstrategy = 'breaking'"
    assert main(command(tmp_path, text=text)) == 3
    done = capsys.readouterr()
    assert "1 of 9 searches failed" in done.err
    assert "two is too many" in done.err
    assert "problem scenes-2/test/0/2, breaking, seed 0" in done.err
    assert "The same command tries them again" in done.err
    assert "greedy" in done.out


def results(path):
    """What a store holds, by key, without what differs between two runs of the same searches."""
    with Store(path) as store:
        made = store.run()
        found = {}
        for row in store.rows(made):
            trace = store.trace(made, row.key).canonical()
            found[row.key] = (row.answer, row.correct, row.allotted, row.spent, trace)
        return made, found


def test_killed_at_random_points_nothing_is_lost_or_doubled(tmp_path, finished):
    """Each time some searches are done before the kill; together they make the whole run."""
    rng = random.Random(0)
    path = tmp_path / "grid.sqlite"
    kills, seen = 0, 0
    while kills < 4:
        running = process(tmp_path, "--quiet", "--in-flight", "4", "--problems", "1")
        wanted = seen + rng.randint(1, 4)
        deadline = time.monotonic() + 120
        while stored(path) < wanted and running.returncode is None and time.monotonic() < deadline:
            time.sleep(rng.random() * 0.1)
        running.send_signal(signal.SIGKILL)
        ended = running.ended()
        kills += ended.returncode == -signal.SIGKILL
        assert ended.returncode in (-signal.SIGKILL, 0), ended.stderr
        before, seen = seen, stored(path)
        assert seen >= before  # nothing that was stored is lost
        if ended.returncode == 0:
            break
    done = process(tmp_path, "--quiet", "--problems", "1").ended()
    assert done.returncode == 0, done.stderr
    made, found = results(path)
    assert sorted(found) == sorted(made.keys())
    work, store, _ = finished
    rows = [row for row in store.rows(work.run) if row.key.item == made.items[0].digest]
    assert len(rows) == len(found) == 12
    for row in rows:
        answer, correct, allotted, spent, trace = found[row.key]
        assert (answer, correct) == (row.answer, row.correct)
        assert (allotted, spent) == (row.allotted, row.spent)
        assert alike(trace, store.trace(work.run, row.key).canonical())
    assert kills


def stored(path) -> int:
    import contextlib
    import sqlite3

    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute("select count(*) from searches").fetchone()[0]
    return 0


def test_an_interrupt_keeps_what_is_done(tmp_path):
    running = process(tmp_path, "--in-flight", "2", "--problems", "50")
    deadline = time.monotonic() + 120
    while stored(tmp_path / "grid.sqlite") < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    done = running.ended(60)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert stored(tmp_path / "grid.sqlite") >= 2


@pytest.mark.slow
def test_the_example_runs_and_is_reported_in_every_form(tmp_path, monkeypatch, capsys):
    from pathlib import Path

    example = Path(__file__).parents[2] / "examples" / "ablation.toml"
    monkeypatch.chdir(tmp_path)
    assert main(["ablate", str(example), "--problems", "1"]) == 0
    done = capsys.readouterr().out
    assert "wide caption" in done and "majority (matched)" in done
    for name in ("out.md", "out.json", "out.html", "out.csv"):
        assert main(["report", "ablation.sqlite", "--out", name]) == 0
        assert "stage-beam n=4" in (tmp_path / name).read_text("utf-8")
    assert main(["report", "ablation.sqlite", "--format", "inspect", "--out", "logs"]) == 0
    assert len(list((tmp_path / "logs").glob("*.eval"))) == 14
