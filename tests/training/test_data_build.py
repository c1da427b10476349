"""`cot-engine data build` as a process, against a real server process that does as it is told."""

import base64
import json
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import PIL.Image
import pytest
from golden import check_golden
from teacher_process import build, command, environment, lines, serving, write_questions

from cot_engine.cli import main
from cot_engine.core.grammar import read
from cot_engine.core.stages import DEFAULT_PLAN
from cot_engine.training.rows import TrainingRow, read_rows

STAGED = (
    "<SUMMARY>I will look closely.</SUMMARY>\n\n<CAPTION>There are some things.</CAPTION>\n\n"
    "<REASONING>Counting them one by one leads to {0}.</REASONING>\n\n<CONCLUSION>{0}</CONCLUSION>"
)


def teach(server, data, *arguments, **how):
    """Build, and give the report."""
    done = build(data, "--base-url", server.url, "--model", "teacher", "--json", *arguments, **how)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def kept(folder: Path, name="questions.staged") -> dict[str, TrainingRow]:
    return {row.id: row for row in read_rows(folder / f"{name}.jsonl")}


def aside(folder: Path, name="questions.staged") -> dict[str, dict]:
    return {row["id"]: row for row in lines(folder / f"{name}.aside.jsonl")}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# --- what a teacher may say ----------------------------------------------------------------------


def test_rows_are_kept_in_order_and_as_they_should_be(tmp_path):
    data = write_questions(tmp_path, 5)
    with serving(tmp_path, rows={"2": ["preface"]}) as server:
        report = teach(server, data)
        log = server.log
    assert report["kept"] == 5 and report["aside"] == report["left"] == report["attempts"] == {}
    rows = list(read_rows("questions.staged.jsonl"))
    assert [row.id for row in rows] == ["1", "2", "3", "4", "5"]
    ruled = {"answer": "12", "decided_by": "rule"}
    assert rows[1] == TrainingRow("2", "a.png", "row 2: how many?", STAGED.format(12), ruled)
    assert read(rows[1].response, DEFAULT_PLAN, complete=True).faults == ()
    assert all(entry["pictures"] == 1 and entry["purpose"] == "write" for entry in log)
    assert Path("questions.staged.aside.jsonl").read_text() == ""


SAYS = {  # what is said at each try -> what becomes of the row, and what the tries were worth
    "1": (["right"], "kept", []),
    "2": (["wrong", "right"], "kept", ["wrong"]),
    "3": (["wrong"], "wrong", ["wrong"] * 3),
    "4": (["garbage", "shape", "right"], "kept", ["garbage", "garbage"]),
    "5": (["sorry", "refuse"], "refused", ["refused"] * 3),
    "6": (["cut", "empty", "untagged"], "stages", ["length", "empty", "stages"]),
    "7": (["leak"], "gives away", ["gives away"] * 3),
    "8": (["wordy"], "kept", []),
}


def test_every_way_to_go_wrong_has_its_reason(tmp_path):
    data = write_questions(tmp_path, len(SAYS))
    with serving(tmp_path, rows={row: says for row, (says, _, _) in SAYS.items()}) as server:
        report = teach(server, data)
        log = server.log
    out, bad = kept(tmp_path), aside(tmp_path)
    for row, (_, end, tried) in SAYS.items():
        assert (row in out) == (end == "kept") and (row in bad) == (end != "kept"), row
        if row in bad:
            assert (bad[row]["reason"], bad[row]["attempts"]) == (end, tried)
            assert bad[row]["place"] == f"line {row}" and bad[row]["answer"] == str(10 + int(row))
        tries = [(e["seed"], e["temperature"]) for e in log if e["row"] == row and not _check(e)]
        assert len(tries) == len(set(tries)) == len(tried) + (end == "kept")
    assert "<CONCLUSION>999</CONCLUSION>" in bad["3"]["text"] and bad["5"]["text"] == "I will not."
    assert report["aside"] == {"wrong": 1, "refused": 1, "stages": 1, "gives away": 1}
    assert report["attempts"] == dict(
        Counter(why for _, _, tried in SAYS.values() for why in tried)
    )
    # Rules come first: only what they leave open was asked about.
    assert Counter(e["row"] for e in log if _check(e)) == {"8": 1}
    assert "There seem to be 18 of them" in out["8"].response
    assert [out[row].extra["decided_by"] for row in ("1", "2", "8")] == ["rule", "rule", "teacher"]
    assert report["decided_by"] == {"rule": 3, "teacher": 1}


def _check(entry):
    return entry["purpose"] == "check"


@pytest.mark.parametrize(
    ("check", "checks", "ends"),
    [
        ("rules", None, {"right": "kept", "wordy": "wrong", "wrong": "wrong"}),
        ("teacher", None, {"right": "kept", "wordy": "kept", "wrong": "wrong"}),
        ("teacher", "always no", {"right": "wrong", "wordy": "wrong", "wrong": "wrong"}),
        ("both", "always no", {"right": "kept", "wordy": "wrong", "wrong": "wrong"}),
        ("both", "always unsure", {"right": "kept", "wordy": "unclear", "wrong": "wrong"}),
        ("both", "always yes", {"right": "kept", "wordy": "kept", "wrong": "wrong"}),
        ("teacher", "always yes", {"right": "kept", "wordy": "kept", "wrong": "wrong"}),
    ],
)
def test_who_checks(tmp_path, check, checks, ends):
    data = write_questions(tmp_path, 3)
    says = {str(k): [action] for k, action in enumerate(ends, 1)}
    script = {"rows": says, "models": ["teacher", "other"]} | ({"checks": checks} if checks else {})
    more = [] if check == "rules" else ["--checker-model", "other"]
    with serving(tmp_path, **script) as server:
        teach(server, data, "--check", check, "--tries", 1, *more)
        asked = {(entry["purpose"], entry["model"]) for entry in server.log}
    bad = aside(tmp_path)
    for row, end in zip(says, ends.values(), strict=True):
        assert bad[row]["reason"] == end if row in bad else end == "kept"
    assert asked == {("write", "teacher")} | (set() if check == "rules" else {("check", "other")})


def test_a_teacher_that_approves_of_itself_overrules_no_rule(tmp_path):
    """It answers "red" to everything, and yes whenever it is asked whether that is right. Numbers,
    options and yes or no are not its to decide; other words are, and those rows say so."""
    PIL.Image.new("RGB", (12, 8), "red").save("a.png")
    options = {"choices": ["a red cube", "a blue cube", "a ball"]}
    asked = [
        *({"answer": str(n)} for n in (2, 7, 1999)),
        *({"answer": text} for text in ("two", "12 cm", "$5", "3.5 %", "-4", "1/2", "9:30")),
        *({"answer": letter, **options} for letter in "BC"),
        {"answer": "a ball", **options},
        *({"answer": letter} for letter in "ABCDE"),
        *({"answer": text} for text in ("yes", "No", "Yes, there is one.")),
        *({"answer": text} for text in (["2", "two"], "['7', 'seven']", 6)),
        {"answer": "crimson"},
        {"answer": "a bicycle"},
        {"answer": "red"},
    ]
    ruled = len(asked) - 3
    assert ruled == 24
    rows = [{"id": n, "image": "a.png", "question": f"row {n}: ?"} for n in range(len(asked))]
    lines = [json.dumps(row | more) for row, more in zip(rows, asked, strict=True)]
    Path("questions.jsonl").write_text("\n".join(lines))
    for check, who in (("both", ["teacher", "teacher", "rule"]), ("teacher", ["teacher"] * 3)):
        with serving(tmp_path, **{"else": "says red", "checks": "always yes"}) as server:
            report = teach(server, "questions.jsonl", "--check", check, "--out", f"{check}.jsonl")
            judged = {entry["row"] for entry in server.log if _check(entry)}
        out = kept(tmp_path, check)
        assert list(out) == [str(n) for n in range(ruled, ruled + 3)]
        assert [row.extra["decided_by"] for row in out.values()] == who
        assert [row.extra["answer"] for row in out.values()] == ["crimson", "a bicycle", "red"]
        assert report["aside"] == {"wrong": 24} and report["attempts"] == {"wrong": 72}
        assert judged <= set(out), "nobody is asked about what a rule has decided"
        assert all("by rule" in row["said"] for row in aside(tmp_path, check).values())


def test_more_tries_take_up_what_was_set_aside(tmp_path):
    data = write_questions(tmp_path, 2)
    with serving(tmp_path, rows={"2": ["wrong", "wrong", "right"]}) as server:
        assert teach(server, data, "--tries", 1)["aside"] == {"wrong": 1}
        assert teach(server, data, "--tries", 3)["kept"] == 2
        assert set(server.paid().values()) == {1} and len(server.paid()) == 1 + 3


# --- what the input may be -----------------------------------------------------------------------


def test_bad_rows_are_named_and_the_others_go_on(tmp_path):
    data = write_questions(tmp_path, 2)
    good = json.loads(data.read_text().splitlines()[0])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    bad = [
        (b"{broken", "input", "not JSON"),
        (b"[1]", "input", "this is a list"),
        (json.dumps(good | {"id": "a", "image": "none.png"}).encode(), "image", "none.png"),
        (json.dumps(good | {"id": "b", "image": "text.png"}).encode(), "image", "a text file"),
        (json.dumps(good | {"id": "c", "image": "cut.png"}).encode(), "image", "cut.png"),
        (json.dumps(good | {"id": "1"}).encode(), "input", "the id '1' is that of line 1 too"),
        (json.dumps(good | {"id": "d", "answer": ""}).encode(), "input", "no answer"),
        (
            json.dumps(good | {"id": "e", "images": ["a.png", "none.png"], "image": None}).encode(),
            "image",
            "none.png",
        ),
        (
            b'{"id": "f", "question": "caf\xe9", "answer": "1"}',
            "input",
            "0xe9, which is not UTF-8",
        ),
        (b'{"id": "g", "question": "to', "input", "not JSON"),  # torn
    ]
    with data.open("ab") as file:
        file.write(b"\n".join(line for line, _, _ in bad))
    with serving(tmp_path) as server:
        report = teach(server, data)
        assert len(server.log) == 2
    assert set(kept(tmp_path)) == {"1", "2"} and report["attempts"] == {}
    found = lines(tmp_path / "questions.staged.aside.jsonl")
    assert [row["place"] for row in found] == [f"line {n}" for n in range(3, 13)]
    for row, (_, reason, words) in zip(found, bad, strict=True):
        assert row["reason"] == reason and words in row["said"], row


def test_rows_of_llava_cot(tmp_path):
    """The standard answer is the CONCLUSION, or all that was said; each pair of turns is asked."""
    write_questions(tmp_path, 1)
    tagged = STAGED.format("16")
    rows = [
        {"id": "1", "image": "a.png", "conversations": _said("<image>\nrow 1: ?", tagged)},
        {"id": 2, "image": "a.png", "conversations": _said("row 2: ?\n<image>", "17")},
        {"id": "3", "conversations": _said("row 3: ?", "18", "row 4: ?", "19")},
        {"id": "5", "image": "a.png", "conversations": []},
        {"id": "6", "image": ["a.png", "a.png"], "conversations": _said("row 6: ?", "16")},
        {"id": "7", "conversations": [{"from": "system", "value": ""}, *_said("row 7: ?", "17")]},
    ]
    Path("cot.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving(tmp_path) as server:
        report = teach(server, "cot.jsonl")
        log = server.log
    assert report["aside"] == {"input": 2}
    out = kept(tmp_path, "cot.staged")
    assert list(out) == ["1", "2", "3/1", "3/2", "6"]
    assert out["6"].images == ("a.png", "a.png")
    assert {entry["row"]: entry["pictures"] for entry in log}["6"] == 2
    (last,) = [row for row in aside(tmp_path, "cot.staged").values() if row["id"] == "7"]
    assert "Turn 1 is from 'system'" in last["said"]
    ruled = {"answer": "16", "decided_by": "rule"}
    assert out["1"] == TrainingRow("1", "a.png", "row 1: ?", tagged, ruled)
    assert out["2"].question == "row 2: ?" and "<CONCLUSION>17<" in out["2"].response
    assert out["3/2"].question == "row 4: ?" and out["3/2"].image is None
    # Without a picture there is none to describe.
    texts = {entry["row"]: entry["text"] for entry in log}
    assert "<CAPTION>" in texts["1"] and "<CAPTION>" not in texts["4"]
    assert "The note: 16" in texts["1"] and "<SUMMARY>I will" not in texts["1"]


def _said(*values):
    who = ("human", "gpt")
    return [{"from": who[k % 2], "value": value} for k, value in enumerate(values)]


def test_rows_of_a_benchmark(tmp_path):
    """Options are asked about with their letters; a picture inside the file becomes one of its
    own, once for the rows that share it."""
    PIL.Image.new("RGB", (30, 20), "blue").save("b.png")
    picture = base64.b64encode(Path("b.png").read_bytes()).decode()
    Path("mc.tsv").write_text(
        "index\tquestion\tA\tB\tanswer\timage\n"
        f"1\trow 1: what is it?\ta red cube\ta blue one\tB\t{picture}\n"
        "2\trow 2: which?\tone\ttwo\tA\t1\n"
    )
    with serving(tmp_path) as server:
        teach(server, "mc.tsv", "--out", "out/rows.jsonl")
        texts = {entry["row"]: entry["text"] for entry in server.log}
        assert all(entry["pictures"] == 1 for entry in server.log)
    assert "A. a red cube\nB. a blue one" in texts["1"] and "The note: B. a blue one" in texts["1"]
    one, two = read_rows("out/rows.jsonl")
    assert "Choose one option" in one.question and "<CONCLUSION>B. a blue one<" in one.response
    assert one.image == two.image and one.image.startswith("rows.images/")
    assert Path("out", one.image).read_bytes() == Path("b.png").read_bytes()
    assert len(list(Path("out/rows.images").iterdir())) == 1


def test_pictures_are_found_from_where_the_rows_are(tmp_path):
    (tmp_path / "pictures").mkdir()
    data = write_questions(tmp_path, 1)
    (tmp_path / "a.png").rename(tmp_path / "pictures" / "a.png")
    with serving(tmp_path) as server:
        teach(server, data, "--images", "pictures", "--out", "made/rows.jsonl")
    (row,) = read_rows("made/rows.jsonl")
    assert row.image == "../pictures/a.png" and Path("made", row.image).is_file()


# --- costs ---------------------------------------------------------------------------------------


def test_costs_are_counted_by_purpose(tmp_path):
    data = write_questions(tmp_path, 3)
    says = {"1": ["wordy"], "2": ["wrong", "right"]}
    with serving(tmp_path, rows=says) as server:
        spent = teach(server, data, "--price-in", 2, "--price-out", 10)["spent"]
        again = teach(server, data, "--price-in", 2, "--price-out", 10)["spent"]
        assert len(server.log) == 4 + 1
    tokens = {"prompt": 400, "completion": 40, "cached": 160, "uncounted": 0}
    money = pytest.approx((400 * 2 + 40 * 10) / 1e6)
    assert spent["write"] == {"calls": 4, **tokens, "money": money}
    assert spent["check"]["calls"] == 1 and spent["check"]["prompt"] == 100
    assert again == spent, "of all runs: this one paid for nothing"


@pytest.mark.parametrize("budget", ["440 tokens", "0.0012"])
def test_a_budget_stops_new_calls(tmp_path, budget):
    """A reply takes 110 tokens, or 0.0003 in money: the fourth uses the budget up."""
    data = write_questions(tmp_path, 9)
    prices = ["--price-in", 2, "--price-out", 10, "--in-flight", 1]
    with serving(tmp_path) as server:
        asked = (data, "--base-url", server.url, "--model", "teacher", *prices, "--budget")
        for _ in range(2):  # of all runs together
            done = build(*asked, budget)
            assert done.returncode == 3 and "5 of 9 rows are left" in done.stderr
            assert "larger --budget" in done.stderr and "4 rows kept" in done.stdout
            assert len(server.log) == 4 and len(kept(tmp_path)) == 4
        assert build(*asked, "1e6 tokens").returncode == 0
        assert len(server.log) == 9 and len(kept(tmp_path)) == 9


def test_no_budget_without_counts(tmp_path):
    data = write_questions(tmp_path, 5)
    with serving(tmp_path, usage=False) as server:
        asked = (data, "--base-url", server.url, "--model", "teacher", "--in-flight", 1)
        done = build(*asked, "--budget", "1000 tokens")
        assert done.returncode == 2 and "no budget can be kept" in done.stderr
        assert len(server.log) == 1
        done = build(*asked)
        assert done.returncode == 0 and "5 replies did not say" in done.stdout


# --- stopped and gone on -------------------------------------------------------------------------


def journaled(path: Path) -> set[tuple[str, int]]:
    """What the journal holds, named as the server names it: purpose and seed."""
    with closing(sqlite3.connect(path)) as db:
        found = db.execute("select purpose, task, attempt from replies").fetchall()
    return {(purpose, int(task[:7], 16) + attempt) for purpose, task, attempt in found}


def test_kill_9_at_any_time_loses_nothing_and_pays_nothing_twice(tmp_path):
    says = {
        str(k): action
        for k, action in enumerate(
            [["wrong", "right"], ["garbage", "wordy"], ["wrong"], ["cut", "sorry", "right"]] * 5, 3
        )
    }
    data = write_questions(tmp_path, 24)
    with serving(tmp_path, rows=says) as server:
        teach(server, data, "--out", "whole.jsonl", "--in-flight", 4)
        total = server.paid()
    assert set(total.values()) == {1}

    out, journal = tmp_path / "parts.jsonl", tmp_path / "parts.journal.sqlite"
    lost: Counter = Counter()  # paid for, but not in the journal when it was killed
    with serving(tmp_path, rows=says, delay=0.03) as server:
        asked = (data, "--base-url", server.url, "--model", "teacher", "--out", out)
        run = command(*asked, "--in-flight", 4, "--quiet")
        for more in (1, 6, 2, 11, 5):
            before = server.paid()
            enough = before.total() + more
            process = subprocess.Popen(run, env=environment(), stdout=subprocess.DEVNULL)
            server.until(
                lambda state, enough=enough: sum(e["paid"] for e in state["log"]) >= enough
            )
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            server.until(lambda state: state["connections"] == 1)  # what it was asked is over
            gone = server.paid() - before  # what this run paid for
            assert set(gone.values()) <= {1}
            gone = set(gone) - journaled(journal)
            assert len(gone) <= 4, "no more than were in flight"
            lost.update(gone)
            assert not out.exists(), "the files are written whole, at the end"
        before = journaled(journal)
        assert build(*asked, "--in-flight", 4).returncode == 0
        paid = server.paid()
    assert len(before) < len(total), "it was killed in the middle"
    assert set(paid) == set(total) and paid == total + lost
    for kind in ("jsonl", "aside.jsonl"):
        one, two = Path(f"whole.{kind}"), Path(f"parts.{kind}")
        assert one.read_bytes() == two.read_bytes(), kind
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_ctrl_c_keeps_what_is_paid_for(tmp_path):
    data = write_questions(tmp_path, 40)
    with serving(tmp_path, delay=0.2) as server:
        asked = (data, "--base-url", server.url, "--model", "teacher", "--in-flight", 4)
        process = subprocess.Popen(
            command(*asked),
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        server.until(lambda state: len(state["log"]) >= 10)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert "calls are in flight and paid for" in err and "the same command goes on" in err
        paid = server.paid()
        assert 10 <= len(paid) < 40 and set(paid) == journaled(
            Path("questions.staged.journal.sqlite")
        )
        assert len(kept(tmp_path)) == len(paid) and f"{len(paid)} rows kept" in out
        assert build(*asked).returncode == 0
        assert set(server.paid().values()) == {1} and len(kept(tmp_path)) == 40


def test_a_second_ctrl_c_drops_what_is_in_flight(tmp_path):
    """Nobody is answered here for longer than the test would wait."""
    data = write_questions(tmp_path, 4)
    with serving(tmp_path, first={str(k): ["hang:100"] for k in range(1, 5)}) as server:
        run = command(data, "--base-url", server.url, "--model", "teacher")
        process = subprocess.Popen(run, env=environment(), stderr=subprocess.PIPE, text=True)
        server.until(lambda state: state["open"] == 4)
        process.send_signal(signal.SIGINT)
        while "4 calls are in flight" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "The journal keeps" in err
    assert not Path("questions.staged.jsonl").exists()


def test_a_full_disk_keeps_what_is_done(tmp_path):
    """Here the largest file that a process may write; the first replies fit into it."""
    data = write_questions(tmp_path, 60)
    with serving(tmp_path) as server:
        asked = (data, "--base-url", server.url, "--model", "teacher", "--in-flight", 1)
        done = build(*asked, before="ulimit -f 64")
        assert done.returncode == 2, done.stderr
        assert "cannot be written" in done.stderr and "Is the disk full?" in done.stderr
        assert "Traceback" not in done.stderr
        had = journaled(Path("questions.staged.journal.sqlite"))
        paid = server.paid()
        assert 0 < len(had) < 60 and had <= set(paid) and len(paid) - len(had) <= 1
        assert build(*asked).returncode == 0 and len(kept(tmp_path)) == 60
        assert sum(server.paid().values()) <= 61


def test_a_dead_teacher_leaves_the_earlier_rows(tmp_path):
    data = write_questions(tmp_path, 3)
    with serving(tmp_path) as server:
        teach(server, data)
        url = server.url
    with data.open("a") as file:
        new = json.loads(data.read_text().splitlines()[0]) | {"id": "4"}
        file.write(json.dumps(new) + "\n")
    done = build(data, "--base-url", url, "--model", "teacher")
    assert done.returncode == 2 and "No teacher answers at" in done.stderr
    assert "3 rows kept, 0 set aside, 1 left" in done.stdout and len(kept(tmp_path)) == 3


def test_a_row_that_is_not_answered_is_left_for_later(tmp_path):
    data = write_questions(tmp_path, 3)
    with serving(tmp_path, first={"2": ["500"]}) as server:
        asked = (data, "--base-url", server.url, "--model", "teacher", "--retries", 0)
        done = build(*asked)
        assert done.returncode == 3 and "1 of 3 rows are left" in done.stderr
        assert set(kept(tmp_path)) == {"1", "3"} and aside(tmp_path) == {}
        assert build(*asked).returncode == 0 and set(kept(tmp_path)) == {"1", "2", "3"}


def test_the_key_is_nowhere(tmp_path):
    data = write_questions(tmp_path, 2)
    with serving(tmp_path, key="sk-very-secret") as server:
        asked = (data, "--base-url", server.url, "--model", "teacher", "--key-env", "MY_KEY")
        done = build(*asked, MY_KEY="sk-very-secret")
        assert done.returncode == 0, done.stderr
        wrong = build(*asked, "--out", "w.jsonl", MY_KEY="sk-not-that-one")
        assert wrong.returncode == 2 and "HTTP 401" in wrong.stderr
        assert "environment variable" in wrong.stderr and "Traceback" not in wrong.stderr
    said = done.stdout + done.stderr + wrong.stdout + wrong.stderr
    written = b"".join(
        p.read_bytes() for p in tmp_path.rglob("*") if "script" not in p.name and p.is_file()
    )
    for key in ("sk-very-secret", "sk-not-that-one"):
        assert key not in said and key.encode() not in written


# --- LLaVA's teacher -----------------------------------------------------------------------------


def described(folder: Path, *rows) -> Path:
    PIL.Image.new("RGB", (12, 8), "red").save(folder / "a.png")
    path = folder / "told.jsonl"
    path.write_text("".join((json.dumps(row) if row else "{torn") + "\n" for row in rows))
    return path


TOLD = {"image": "a.png", "captions": ["row 1: a dog by a car.", "A dog waits."]}
BOXES = [{"label": "dog", "box": [0.1, 0.5, 0.34, 0.9]}, {"label": "car", "box": [0, 0, 1, 0.8]}]


def test_llava(tmp_path):
    data = described(tmp_path, TOLD | {"id": "7", "boxes": BOXES})
    with serving(tmp_path, **{"else": "ask"}) as server:
        report = teach(server, data, "--teacher", "llava")
        log = server.log
    assert report["kept"] == 3 and len(log) == 3
    for entry in log:
        assert entry["pictures"] == 0 and "a.png" not in entry["text"]
        assert "A dog waits.\n\ndog: [0.100, 0.500, 0.340, 0.900]\ncar: [0.000" in entry["text"]
    talk, detail, reasoning = lines(tmp_path / "told.llava.jsonl")
    assert [talk["id"], detail["id"], reasoning["id"]] == [
        "7-conversation",
        "7-detail",
        "7-reasoning",
    ]
    assert talk["image"] == "a.png" and talk["conversations"] == _said(
        "<image>\nWhat is there?", "A dog.", "Where?", "By the car."
    )
    assert detail["conversations"][1]["value"] == "A dog stands by a car."
    assert detail["conversations"][0]["value"].startswith("<image>\n")
    assert reasoning["conversations"] == _said(
        "<image>\nWhy is it there?", "It waits: the door is open."
    )
    assert all(isinstance(row, TrainingRow) for row in read_rows("told.llava.jsonl"))


def test_llava_sets_aside_what_gives_it_away(tmp_path):
    data = described(tmp_path, TOLD | {"id": "7"})
    says = {"1": ["boxed", "talk", "told"]}
    with serving(tmp_path, rows=says) as server:
        report = teach(server, data, "--teacher", "llava", "--kinds", "detail,reasoning")
    assert report["kept"] == 1 and report["aside"] == {"stages": 1}
    # "talk" is a description as good as another: nothing says what one looks like.
    assert report["attempts"] == {"gives away": 2, "stages": 2}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (None, "not JSON"),
        ({"image": "a.png"}, "captions is null"),
        ({"image": "a.png", "captions": []}, "captions is []"),
        ({"captions": ["x"]}, "image is null"),
        (TOLD | {"image": "b.png"}, "no picture 'b.png'"),
        (TOLD | {"boxes": [{"label": "dog", "box": [10, 20, 30, 40]}]}, "Divide pixels"),
        (TOLD | {"boxes": [{"label": "dog", "box": [0.5, 0, 0.4, 1]}]}, "left, top, right"),
        (TOLD | {"boxes": [{"box": [0, 0, 1, 1]}]}, "a box is"),
        (TOLD | {"boxes": 3}, "boxes is 3"),
        (TOLD | {"id": "good"}, "is that of line 1 too"),
    ],
)
def test_what_cannot_be_told(tmp_path, row, words):
    data = described(tmp_path, TOLD | {"id": "good"}, row)
    with serving(tmp_path, **{"else": "ask"}) as server:
        report = teach(server, data, "--teacher", "llava", "--kinds", "detail")
    assert report["kept"] == 1
    (bad,) = lines(tmp_path / "told.llava.aside.jsonl")
    assert bad["place"] == "line 2" and words in bad["said"]


# --- the command line ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--base-url is missing"),
        (["--base-url", "http://a/v1"], "--model is missing"),
        (["--base-url", "nowhere", "-m", "x"], "base-url is 'nowhere'"),
        (["--base-url", "http://a/v1", "-m", "x", "--budget", "5"], "there are no prices"),
        (["--base-url", "http://a/v1", "-m", "x", "--budget", "5 euros"], "--budget is '5 euros'"),
        (["--base-url", "http://a/v1", "-m", "x", "--check", "none"], "rules, teacher, both"),
        (["--base-url", "http://a/v1", "-m", "x", "--teacher", "gpt"], "staged or llava"),
        (["--base-url", "http://a/v1", "-m", "x", "--kinds", "detail"], "--teacher llava"),
        (["--base-url", "http://a/v1", "-m", "x", "--tries", "0"], "tries is 0"),
        (["--base-url", "http://a/v1", "-m", "x", "--rpm", "0"], "cannot be 0"),
        (["--base-url", "http://a/v1", "-m", "x", "--images", "no"], "not a folder"),
        (["--base-url", "http://a/v1", "-m", "x", "--out", "questions.jsonl"], "would write over"),
    ],
)
def test_options_that_cannot_be(tmp_path, capsys, arguments, words):
    write_questions(tmp_path, 1)
    assert main(["data", "build", "questions.jsonl", *arguments]) == 2
    out, err = capsys.readouterr()
    assert words in err and out == "" and len(err.splitlines()) == 2
    assert not list(tmp_path.glob("*.sqlite"))


def test_files_that_cannot_be(tmp_path, capsys):
    (tmp_path / "empty.jsonl").write_text("\n")
    write_questions(tmp_path, 1)
    how = ["--base-url", "http://127.0.0.1:9/v1", "-m", "x"]
    for name, words in [
        ("question.jsonl", "Did you mean 'questions.jsonl'?"),
        ("empty.jsonl", "holds no questions"),
        ("a.png", "no known kind"),
    ]:
        assert main(["data", "build", name, *how]) == 2
        assert words in capsys.readouterr().err


def test_a_teacher_that_never_answers_leaves_no_file(tmp_path, capsys):
    data = write_questions(tmp_path, 1)
    before = sorted(Path().iterdir())
    how = ["--base-url", "http://127.0.0.1:9/v1", "-m", "x", "--retries", "0"]
    assert main(["data", "build", str(data), *how]) == 2
    assert "No teacher answers" in capsys.readouterr().err
    assert sorted(Path().iterdir()) == before


def test_another_model_is_not_mixed_in(tmp_path):
    data = write_questions(tmp_path, 1)
    with serving(tmp_path, models=["teacher", "other"]) as server:
        teach(server, data)
        done = build(data, "--base-url", server.url, "--model", "other")
        assert done.returncode == 2 and "model 'teacher' (now 'other')" in done.stderr


def test_what_a_server_says_is_harmless_on_a_terminal(tmp_path):
    data = write_questions(tmp_path, 1)
    with serving(tmp_path, models=["\x1b[2Jred"]) as server:
        done = build(data, "--base-url", server.url, "--model", "x")
    assert done.returncode == 2 and "\x1b" not in done.stderr and "␛[2Jred" in done.stderr


def test_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["data", "build", "--help"]) == 0
    out = capsys.readouterr().out
    check_golden("help/data-build.txt", out)
    assert max(map(len, out.splitlines())) <= 80


def test_nothing_is_left_to_import_late(tmp_path):
    """The command needs no model: it must not load what loads one."""
    code = "import cot_engine.training.build, cot_engine.training.staged, sys\n"
    code += "print({'torch', 'transformers'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "set()\n", run.stderr
