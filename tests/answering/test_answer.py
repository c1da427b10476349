"""cot-engine answer: files of questions, a predictions file to go on from, what is wrong in them
named. On the scripted model, in this process, but where a process is to be killed."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import time
from base64 import b64encode

import PIL.Image
import pytest
from command_line import process, two_lines

from cot_engine.core.trace import Trace

COLUMNS = "id question prediction answer right incomplete error new_tokens tokens flops seconds"
MARKS = {".csv": ",", ".tsv": "\t"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with two pictures."""
    monkeypatch.chdir(tmp_path)
    for name, colour in (("red.png", "red"), ("blue.png", "blue")):
        PIL.Image.new("RGB", (32, 16), colour).save(tmp_path / name)
    return tmp_path


def write(path, rows):
    """Questions (objects, or raw lines) as JSONL; or, by the name, as a table."""
    if path.suffix == ".jsonl":
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"\n".join(lines) + b"\n")
        return path
    with path.open("w", newline="") as file:
        names = list(dict.fromkeys(key for row in rows for key in row))
        writer = csv.DictWriter(file, names, delimiter=MARKS[path.suffix])
        writer.writeheader()
        writer.writerows(rows)
    return path


def question(number, **more):
    """One whose right answer the scripted model gives about every second time."""
    row = {"id": f"q{number}", "question": f"Number {number}?", "answer": str(number % 2)}
    return row | {"image": "red.png"} | more


def read(path):
    """The lines of a predictions file, as texts."""
    text = path.read_text()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return list(csv.DictReader(text.splitlines(True), delimiter=MARKS[path.suffix]))


def content(path):
    """All that two runs must have in common: not how long it took."""
    return [{k: v for k, v in line.items() if k not in ("seconds", "trace")} for line in read(path)]


# --- what is read, and written -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_the_same_questions_in_every_form(cli, folder, kind):
    rows = [question(k, type="odd" if k % 2 else "even") for k in range(6)]
    done = cli("answer", write(folder / "photos.jsonl", rows), "-n", "2")
    assert done.returncode == 0, done.stderr
    assert "6 of 6 questions" in done.stderr and "right" in done.stderr
    asked = content(folder / "photos.predictions.jsonl")
    assert [line["id"] for line in asked] == [row["id"] for row in rows]
    right = sum(line["right"] for line in asked)
    assert all(line["right"] == (line["prediction"] == line["answer"]) for line in asked)
    assert 0 < right < 6, "else this test says nothing"
    assert f"right: {right} of 6, {right / 6:.3f} (95 % interval" in done.stdout
    assert set(COLUMNS.split()) <= set(read(folder / "photos.predictions.jsonl")[0])

    other = write(folder / f"other.{kind}", rows)
    again = cli("answer", other, "-n", "2", "--out", f"out.{kind}", "--json")
    assert again.returncode == 0, again.stderr
    summary = json.loads(again.stdout)
    assert (summary["score"], summary["failed"]) == ({"right": right, "graded": 6}, [])
    assert summary["types"]["odd"]["graded"] == 3 and summary["accuracy"]["low"] > 0
    found = content(folder / f"out.{kind}")
    assert [line["prediction"] for line in found] == [line["prediction"] for line in asked]
    assert [str(x["right"]).lower() for x in found] == [str(x["right"]).lower() for x in asked]


def test_without_answers_pictures_or_ids(cli, folder):
    lines = ["question,image", "What?,blue.png", "How?,", '"Two\nlines?",red.png']
    (folder / "q.csv").write_text("\n".join(lines))
    done = cli("answer", "q.csv")
    assert done.returncode == 0, done.stderr
    assert "1 of 3 questions have no image" in done.stderr
    assert "nothing is graded" in done.stderr and "right" not in done.stdout
    assert [line["id"] for line in read(folder / "q.predictions.jsonl")] == ["2", "3", "4"]
    assert all(line["right"] is None for line in read(folder / "q.predictions.jsonl"))


def test_a_folder_of_pictures(cli, folder):
    (folder / "pics" / "more").mkdir(parents=True)
    for name in ("10.png", "2.png", "more/1.PNG"):
        PIL.Image.new("RGB", (9, 9), "red").save(folder / "pics" / name)
    (folder / "pics" / "notes.txt").write_text("no picture")
    (folder / "pics" / "3.jpg").write_text("no picture either")
    done = cli("answer", "pics", "--question", "What is shown?", "--out", "seen.tsv")
    assert done.returncode == 3 and "'3.jpg'" in done.stderr
    lines = read(folder / "seen.tsv")
    assert [line["id"] for line in lines] == ["2.png", "3.jpg", "10.png", "more/1.PNG"]
    assert "a text file" in lines[1]["error"] and not lines[1]["prediction"]
    assert lines[0]["prediction"] and "1 failed" in done.stdout.splitlines()[0]
    assert "--question" in two_lines(cli("answer", "pics"))
    (folder / "pics" / "3.jpg").unlink()
    PIL.Image.new("RGB", (9, 9), "red").save(folder / "pics" / "\udcff.png")  # a byte, no UTF-8
    for _ in range(2):  # the second time all are there, under their ids
        done = cli("answer", "pics", "--question", "What is shown?", "--out", "seen.tsv")
        assert done.returncode == 0, done.stderr
    assert "4 of 4 questions were answered already" in done.stderr
    (folder / "none").mkdir()
    assert "holds no pictures" in two_lines(cli("answer", "none", "--question", "What?"))


def test_limit_and_shuffle(cli, folder):
    write(folder / "q.jsonl", [question(k) for k in range(12)])

    def asked(*flags):
        assert cli("answer", "q.jsonl", "--fresh", "-q", *flags).returncode == 0
        return [line["id"] for line in read(folder / "q.predictions.jsonl")]

    assert asked("--limit", 3) == ["q0", "q1", "q2"]
    some, more = asked("--limit", 3, "--shuffle", 1), asked("--limit", 6, "--shuffle", 1)
    assert set(some) < set(more) and some != ["q0", "q1", "q2"]
    assert more == sorted(more, key=lambda id: int(id[1:])), "in the order of the data in the end"
    assert set(asked("--limit", 6, "--shuffle", 2)) != set(more)


def test_a_trace_is_that_of_solve(cli, folder):
    write(folder / "q.jsonl", [question(0, image=str(folder / "red.png")), question(1)])
    done = cli("answer", "q.jsonl", "-n", "3", "--seed", "5", "--traces", "traces")
    assert done.returncode == 0, done.stderr
    line = read(folder / "q.predictions.jsonl")[0]
    assert line["trace"] == os.path.join("traces", "q0.jsonl")
    cli("solve", folder / "red.png", "Number 0?", "-n", "3", "--seed", "5", "--trace", "s.jsonl")
    alone, among = Trace.read("s.jsonl"), Trace.read(line["trace"])
    assert alone.canonical() == among.canonical()
    assert among.finished.answer == line["prediction"]
    assert "earlier run" in two_lines(
        cli("answer", "q.jsonl", "-q", "--out", "p.csv", "--traces", "traces")
    )


def test_texts_that_a_spreadsheet_would_take_for_formulas(cli, folder):
    rows = [question(0, question="=1+1?"), question(1, id="-x", question='a "b"\tc\nd, ü')]
    write(folder / "q.jsonl", rows)
    assert cli("answer", "q.jsonl", "--out", "p.csv").returncode == 0
    assert [line["question"] for line in read(folder / "p.csv")] == ["'=1+1?", rows[1]["question"]]
    assert [line["id"] for line in read(folder / "p.csv")] == ["q0", "'-x"]
    before = (folder / "p.csv").read_bytes()
    again = cli("answer", "q.jsonl", "--out", "p.csv")
    assert again.returncode == 0 and "2 of 2 questions were answered already" in again.stderr
    assert (folder / "p.csv").read_bytes() == before


def test_answers_that_were_cut_are_counted(cli, folder):
    write(folder / "q.jsonl", [question(k) for k in range(3)])
    flags = ["-s", "greedy", "--budget", "64 new tokens"]
    done = cli("answer", "q.jsonl", *flags, script="long")
    assert done.returncode == 0 and ", 3 incomplete" in done.stdout.splitlines()[0]
    assert all("budget" in line["incomplete"] for line in read(folder / "q.predictions.jsonl"))


# --- what is wrong in it -------------------------------------------------------------------------


def test_bad_rows_are_named_and_the_rest_is_answered(cli, folder):
    png = b64encode((folder / "red.png").read_bytes()).decode()
    bad = [
        (b"{broken", ["line 2", "not JSON"]),
        (question(1, image="none.png"), ["line 3", "image", "'none.png'"]),
        (question(2, image=png[:70] + "!" + png[70:]), ["line 4", "image", "base64"]),
        (question(3, question=" "), ["line 5", "question"]),
        (question(0), ["line 6", "'q0'", "line 1"]),
        (b'{"id": "u", "question": "caf\xe9?"}', ["line 7", "question", "0xe9", "UTF-8"]),
        (question(4, choices=["a", "b"], answer="c"), ["line 8", "'c'", "A, B"]),
        (question(5, image="none.png" * 20), ["line 9", "image"]),
    ]
    write(folder / "q.jsonl", [question(0), *(row for row, _ in bad), question(9)])
    done = cli("answer", "q.jsonl")
    assert done.returncode == 3
    assert done.stdout.startswith("2 of 10 questions are answered in q.predictions.jsonl, 8 failed")
    lines = read(folder / "q.predictions.jsonl")
    assert [bool(line["error"]) for line in lines] == [False, *[True] * 8, False]
    for line, (_, words) in zip(lines[1:], bad, strict=False):
        assert all(word in line["error"] for word in words), line
        assert line["error"][:60] in done.stderr or line["error"] in done.stderr
    # For what cannot be asked no model is loaded.
    again = cli("answer", "q.jsonl", SEEN=folder / "loaded")
    assert again.returncode == 3 and not (folder / "loaded").exists()
    assert content(folder / "q.predictions.jsonl") == [
        {k: v for k, v in line.items() if k not in ("seconds", "trace")} for line in lines
    ]
    # Mended, only what failed is asked: what was answered is as it was.
    write(folder / "q.jsonl", [question(0), *(question(k) for k in range(11, 19)), question(9)])
    again = cli("answer", "q.jsonl")
    assert again.returncode == 0, again.stderr
    assert "2 of 10 questions were answered already" in again.stderr
    assert [read(folder / "q.predictions.jsonl")[k] for k in (0, 9)] == [lines[0], lines[9]]


def test_a_thousand_faults_are_not_a_thousand_lines(cli, folder):
    write(folder / "q.jsonl", [question(k, image="none.png") for k in range(60)])
    done = cli("answer", "q.jsonl")
    assert done.returncode == 3 and done.stderr.count("Failed:") == 20
    assert done.stderr.count("More fail") == 1 and "There are 57 more" in done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("id,Question\n1,x\n", ["line 1", "no column question", "Is 'Question'"]),
        ("id;question\n1;x\n", ["line 1", "semicolons"]),
        ("id,id,question\n1,2,x\n", ["column id", "twice"]),
        ("id,index,question\n1,2,x\n", ["index and id"]),
        ("", ["no questions"]),
    ],
)
def test_a_table_with_wrong_columns_is_refused(cli, folder, text, words):
    (folder / "q.csv").write_text(text)
    said = two_lines(cli("answer", "q.csv", SEEN=folder / "loaded"))
    assert all(word in said for word in words), said
    assert not (folder / "loaded").exists() and not (folder / "q.predictions.jsonl").exists()


def test_cells_that_are_no_good(cli, folder):
    rows = [
        {"index": "1", "question": "ok?", "image": "red.png"},
        {"index": "2", "question": "", "image": "red.png"},
        {"index": "3", "question": "one option?", "A": "x"},
        {"index": "4", "question": "row?", "image": "1"},
        {"index": "5", "question": "no row?", "image": "77"},
        {"index": "6", "question": "cut?", "image": "A" * 67},
    ]
    write(folder / "q.csv", rows)
    done = cli("answer", "q.csv")
    errors = {line["id"]: line["error"] for line in read(folder / "q.predictions.jsonl")}
    assert done.returncode == 3 and errors["1"] == errors["4"] == ""
    assert "line 6" in errors["5"] and "'77'" in errors["5"] and "base64" in errors["6"]
    assert sum("line 3" in e or "line 4" in e for e in errors.values()) == 1  # both have no id
    assert "4 failed" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["red.png"], ["a picture", "--question"]),
        (["q.xlsx"], [".jsonl", ".csv"]),
        (["nosuch.jsonl"], ["nosuch.jsonl"]),
        (["q.jsonl", "--out", "p.txt"], [".jsonl"]),
        (["q.jsonl", "--out", "q.jsonl"], ["would write over the data"]),
        (["q.jsonl", "--out", "a folder.jsonl"], ["'a folder.jsonl' is no regular file"]),
        (["q.jsonl", "--limit", "0"], ["limit is 0"]),
        (["q.jsonl", "--split", "val"], ["no question", "has one"]),
        (["q.jsonl", "--question", "x"], ["--question"]),
        (["scenes", "--strategy", "nosuch"], ["nosuch"]),
    ],
)
def test_wrong_arguments_are_explained_before_the_model_loads(cli, folder, arguments, words):
    write(folder / "q.jsonl", [question(0)])
    (folder / "a folder.jsonl").mkdir()
    said = two_lines(cli("answer", *arguments, SEEN=folder / "loaded"))
    assert all(word in said for word in words), said
    assert not (folder / "loaded").exists()


# --- going on ------------------------------------------------------------------------------------


def test_nothing_is_asked_twice_and_what_differs_is_refused(cli, folder, monkeypatch):
    data = write(folder / "q.jsonl", [question(k) for k in range(4)])
    assert cli("answer", data, "-n", "2", "--limit", 2).returncode == 0
    out = folder / "q.predictions.jsonl"
    before = read(out)
    seen = folder / "loaded"
    for flags, words in [
        (["-n", "3"], ["n 2 (now 3)"]),
        (["-n", "2", "-t", "0.9"], ["temperature 0.6 (now 0.9)"]),
        (["-n", "2", "--strategy", "best-of-n"], ["strategy stage-beam (now best-of-n)"]),
    ]:
        said = two_lines(cli("answer", data, *flags, SEEN=seen))
        assert all(word in said for word in [*words, "--fresh"]), said
        assert not seen.exists(), "known before the model loads"
    with monkeypatch.context() as other:
        other.setattr("cot_engine.answering.run.code_version", lambda *_: "cot-engine 9 (abc)")
        said = two_lines(cli("answer", data, "-n", "2"))
        assert "code cot-engine" in said and "(now cot-engine 9 (abc))" in said
    assert read(out) == before
    # Pictures and questions of what was answered must be the same; others may change.
    write(
        data, [question(0), question(1), question(2, question="Other?"), question(3), question(4)]
    )
    assert cli("answer", data, "-n", "2").returncode == 0
    assert read(out)[:2] == before and len(read(out)) == 5
    PIL.Image.new("RGB", (32, 16), "green").save(folder / "red.png")
    said = two_lines(cli("answer", data, "-n", "2"))
    assert "'q0' (line 1)" in said and "and 2 more" in said
    write(data, [question(1)])
    assert "no question 'q0' any more" in two_lines(cli("answer", data, "-n", "2"))
    fresh = cli("answer", data, "-n", "2", "--fresh")
    assert fresh.returncode == 0 and "q.predictions.old-1.jsonl" in fresh.stderr
    assert len(read(folder / "q.predictions.old-1.jsonl")) == 5 and len(read(out)) == 1


def test_a_file_of_somebody_else_is_not_written_over(cli, folder):
    write(folder / "q.jsonl", [question(0)])
    (folder / "p.csv").write_text("my,notes\n1,2\n")
    assert "p.csv.run.json" in two_lines(cli("answer", "q.jsonl", "--out", "p.csv"))
    assert (folder / "p.csv").read_text() == "my,notes\n1,2\n"
    assert cli("answer", "q.jsonl", "--out", "p.csv", "--fresh").returncode == 0
    assert (folder / "p.old-1.csv").read_text() == "my,notes\n1,2\n"


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_line_that_was_cut_is_asked_again_wherever_it_was_cut(cli, folder, kind):
    rows = [question(k, question=f"Two\nlines, {k}?") for k in range(3)]
    write(folder / "q.jsonl", rows)
    out = folder / f"p.{kind}"
    assert cli("answer", "q.jsonl", "--out", out).returncode == 0
    whole, wanted = out.read_bytes(), content(out)
    last = whole.rindex(b"q2")
    for at in {last, last + 1, last + 9, whole.rindex(b"lines"), len(whole) - 1}:
        out.write_bytes(whole[:at])
        done = cli("answer", "q.jsonl", "--out", out)
        assert done.returncode == 0, done.stderr
        assert "2 of 3 questions were answered already" in done.stderr, at
        assert content(out) == wanted


@pytest.mark.slow
def test_killed_at_any_time_it_comes_to_the_same_file(folder):
    write(folder / "q.jsonl", [question(k) for k in range(8)])
    rng, kills, out = random.Random(0), 0, folder / "q.predictions.jsonl"
    seen = []
    while kills < 3:
        running = begin(folder, "slow", "-q", "--in-flight", "2")
        wait_for(out, rng.randint(1, 2) + (len(seen[-1]) if seen else 0), running)
        time.sleep(rng.random() / 5)
        if running.poll() is None:
            running.send_signal(signal.SIGKILL)
            kills += 1
        running.wait()
        seen.append(read(out))
        assert 0 < len(seen[-1]) < 8
    last = begin(folder, "", "-q")
    assert last.communicate(timeout=60)[1] == "" and last.returncode == 0
    final = {line["id"]: line for line in read(out)}
    assert list(final) == [f"q{k}" for k in range(8)]
    assert all(final[line["id"]] == line for lines in seen for line in lines), "kept as they were"
    assert not list(folder.glob("*.part")) and not (folder / (out.name + ".lock")).exists()


def begin(folder, script, *flags):
    """A run of its own on q.jsonl, one request a question."""
    command, environment = process("answer", "q.jsonl", "-s", "greedy", *flags, script=script)
    return subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_for(out, lines, running):
    deadline = time.monotonic() + 60
    while running.poll() is None and time.monotonic() < deadline:
        if out.exists() and out.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.02)


def test_an_interrupt_keeps_what_is_done_and_says_how_to_go_on(folder):
    write(folder / "q.jsonl", [question(k) for k in range(40)])
    running, out = begin(folder, "slow", "--in-flight", "4"), folder / "q.predictions.jsonl"
    wait_for(out, 1, running)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130 and "Traceback" not in said
    assert f"{len(read(out))} of 40 questions are answered" in said and "same command" in said
    assert 0 < len(read(out)) < 40


def test_two_at_once_are_refused(cli, folder):
    from cot_engine.files.locking import held

    write(folder / "q.jsonl", [question(0)])
    with held("q.predictions.jsonl", "the predictions", ""):
        assert "is writing to the predictions" in two_lines(cli("answer", "q.jsonl", "-q"))


def test_dry_run(cli, folder):
    write(folder / "q.jsonl", [question(k) for k in range(3)])
    done = cli("answer", "q.jsonl", "--limit", "2", "--dry-run", "--json", SEEN=folder / "loaded")
    assert json.loads(done.stdout)["options"]["questions"] == 2
    assert not (folder / "loaded").exists() and not (folder / "q.predictions.jsonl").exists()
