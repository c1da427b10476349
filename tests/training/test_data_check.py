"""`cot-engine data check`: each fault is found in the row that has it, and nothing else is."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import PIL.Image
import pytest
import tokenizers
from golden import check_golden

from cot_engine.cli import main
from cot_engine.core.grammar import FAULTS, read
from cot_engine.core.stages import DEFAULT_PLAN, Plan, Stage
from cot_engine.errors import InputError
from cot_engine.scenes import sample
from cot_engine.training import check as check_module
from cot_engine.training.check import CHECKS, SEVERITIES, check, load_tokenizer
from cot_engine.training.leaks import leaks
from cot_engine.training.rows import TrainingRow, read_rows, row_json, write_rows


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """300 rows of the scenes world with different responses, every fifth without a picture, and
    the file that they are in."""
    folder = tmp_path_factory.mktemp("clean")
    (folder / "im").mkdir()
    rows, seen = [], set()
    for index in range(1000):
        detail = ("normal", "brief", "full")[index % 3]
        problem = sample(5, index, detail=detail, text_only=index % 5 == 0)
        if len(rows) == 300:
            break
        if problem.response in seen:
            continue
        seen.add(problem.response)
        name = None if problem.image is None else f"im/{index}.png"
        if name:
            problem.image.save(folder / name)
        rows.append(TrainingRow(problem.id, name, problem.prompt, problem.response))
    write_rows(folder / "rows.jsonl", rows)
    return SimpleNamespace(folder=folder, rows=rows, file=folder / "rows.jsonl")


def test_clean_rows_raise_no_alarm(clean):
    report = check(clean.file)
    assert report.findings == [] and not report.counts
    assert (report.rows, report.good, report.bad) == (300, 300, 0)


def staged(row, **contents):
    """The row's response with other contents of its stages; None leaves a stage out."""
    stages = read(row.response, DEFAULT_PLAN).contents | contents
    return "".join(f"<{k}>{v}</{k}>" for k, v in stages.items() if v is not None)


def without(row, text):
    assert text in row.response
    return row.response.replace(text, "", 1)


def broken_png(folder):
    data = (folder / "ok.png").read_bytes()
    (folder / "bad.png").write_bytes(data[: len(data) // 2])
    return "bad.png"


def tiny(folder):
    PIL.Image.new("RGB", (1, 1)).save(folder / "tiny.png")
    return "tiny.png"


def text_as_picture(folder):
    (folder / "text.png").write_text("not a picture")
    return "text.png"


def empty_picture(folder):
    (folder / "empty.png").write_bytes(b"")
    return "empty.png"


SCARED = "The sign is red and round and stands alone."
TEXTS = {  # name of the check: what it makes of a row with a picture
    "stray": lambda row: "Sure! " + row.response,
    "unopened": lambda row: without(row, "<REASONING>"),
    "unclosed-last": lambda row: without(row, "</CONCLUSION>"),
    "unclosed": lambda row: without(row, "</CAPTION>"),
    "mismatched": lambda row: row.response.replace("</SUMMARY>", "</REASONING>"),
    "empty": lambda row: staged(row, CAPTION="  "),
    "echo": lambda row: staged(row, REASONING=read(row.response, DEFAULT_PLAN).contents["CAPTION"]),
    "repeated": lambda row: row.response + "<CAPTION>Again.</CAPTION>",
    "misplaced": lambda row: staged(row, CAPTION=None) + "<CAPTION>Last.</CAPTION>",
    "skipped": lambda row: staged(row, REASONING=None),
    "missing": lambda row: staged(row, CONCLUSION=None),
    "unknown-tag": lambda row: row.response.replace(
        "<REASONING>", "<REASONING><THINKING>Hm.</THINKING> "
    ),
    "image-marker": lambda row: row.response.replace("<CAPTION>", "<CAPTION><image> "),
    "answer-stated": lambda row: staged(
        row, SUMMARY="The answer is 73.", REASONING="So 73.", CONCLUSION="73"
    ),
    "answer-early": lambda row: staged(row, SUMMARY=f"I say: {SCARED}", CONCLUSION=SCARED),
    "answer-hinted": lambda row: staged(
        row, SUMMARY="I show that it is a zebra.", REASONING="A zebra.", CONCLUSION="zebra"
    ),
    "answer-in-caption": lambda row: staged(row, CAPTION=f"See. {SCARED}", CONCLUSION=SCARED),
    "answer-given": lambda row: row.response.replace(
        "<REASONING>", "<REASONING>By the standard answer it is so. "
    ),
    "contradicted": lambda row: staged(row, REASONING="6 - 3 = 3. So 73.", CONCLUSION="74"),
    "unsupported": lambda row: staged(row, REASONING="I look at it.", CONCLUSION="zebra"),
    "question-pasted": lambda row: staged(row, SUMMARY=f"I am asked: {row.question} I count."),
    "encoding": lambda row: row.response.replace("<CAPTION>", "<CAPTION>CafÃ© "),
    "length": lambda row: staged(row, REASONING="I look again. " * 1000 + "So 2.", CONCLUSION="2"),
}
ALSO = {  # what the fault brings with it
    "misplaced": {"skipped"},
}
PICTURES = {
    "image-missing": [lambda _: "none.png", lambda _: "https://x.org/a.png", lambda _: "a\0b.png"],
    "image-unreadable": [broken_png, tiny, text_as_picture, empty_picture, lambda _: "."],
}


def inject(clean, tmp_path, change, at=7, n=60):
    """The report on the first `n` rows, of which row `at`, which has a picture, is changed."""
    rows = clean.rows[:n]
    assert rows[at].image is not None and len(rows[at].question.split()) > 5
    rows[at] = change(rows[at])
    write_rows(tmp_path / "rows.jsonl", rows)
    return check(tmp_path / "rows.jsonl", images=clean.folder)


def only(report, *names, line=8):
    assert {(f.line, f.check) for f in report.findings} == {(line, name) for name in names}, (
        report.findings
    )
    assert report.bad == any(CHECKS[name][0] == "error" for name in names)


@pytest.mark.parametrize("name", TEXTS)
def test_a_fault_of_the_text_is_found_and_nothing_else(clean, tmp_path, name):
    report = inject(clean, tmp_path, lambda row: replace(row, response=TEXTS[name](row)))
    only(report, name, *ALSO.get(name, ()))


def test_every_fault_that_a_finished_reply_can_have_is_looked_for():
    assert set(FAULTS) - {"ended"} == set(TEXTS) & set(FAULTS)
    assert all(severity in SEVERITIES for severity, _ in CHECKS.values())


@pytest.mark.parametrize(
    ("name", "make"), [(name, make) for name, makes in PICTURES.items() for make in makes]
)
def test_a_picture_that_cannot_be_used(clean, tmp_path, name, make):
    PIL.Image.new("RGB", (32, 32), "red").save(clean.folder / "ok.png")
    report = inject(clean, tmp_path, lambda row: replace(row, image=make(clean.folder)))
    only(report, name)


def test_a_picture_outside_the_folder(clean, tmp_path):
    PIL.Image.new("RGB", (32, 32), "red").save(tmp_path / "out.png")
    report = inject(clean, tmp_path, lambda row: replace(row, image=str(tmp_path / "out.png")))
    only(report, "image-outside")


def test_a_missing_picture_names_a_similar_one(clean, tmp_path):
    report = inject(clean, tmp_path, lambda row: replace(row, image=row.image + "g"))
    assert f"Did you mean {clean.folder / clean.rows[7].image}" in report.findings[0].said


def test_faults_of_the_question(clean, tmp_path):
    only(inject(clean, tmp_path, lambda row: replace(row, question=" \n")), "no-question")
    report = inject(clean, tmp_path, lambda row: replace(row, question="And <image>?"))
    only(report, "image-marker")


def test_a_description_without_a_picture(clean, tmp_path):
    only(inject(clean, tmp_path, lambda row: replace(row, image=None)), "caption-unasked")


def test_rows_that_come_twice(clean, tmp_path):
    first = clean.rows[3]
    only(inject(clean, tmp_path, lambda row: replace(row, id=first.id)), "same-id")
    report = inject(clean, tmp_path, lambda row: replace(row, response=clean.rows[1].response))
    assert report.counts["same-response"] == 1
    # The same pixels under another name, the question in capitals; another response.
    one = clean.rows[1]
    copy = clean.folder / "copy.bmp"
    PIL.Image.open(clean.folder / one.image).save(copy)
    question = f" {one.question.upper()} "
    report = inject(clean, tmp_path, lambda row: replace(row, image="copy.bmp", question=question))
    only(report, "same-question")
    assert "Line 2 " in report.findings[0].said


def test_a_line_that_is_no_row(clean, tmp_path):
    lines = [row_json(row) for row in clean.rows[:30]]
    lines[7] = lines[7][:50]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    report = check(tmp_path / "rows.jsonl", images=clean.folder)
    only(report, "row")
    assert report.findings[0].id == "" and "is not JSON" in report.findings[0].said


# --- leaks ---------------------------------------------------------------------------------------

QUESTION = "What animal is this?"
MCQ = "Which animal is this?\nA. a horse\nB. a zebra\nC. a cow"


def leaked(summary, conclusion, *, question=QUESTION, caption="", reasoning=None, standard=""):
    reasoning = conclusion if reasoning is None else reasoning
    contents = dict(SUMMARY=summary, CAPTION=caption, REASONING=reasoning, CONCLUSION=conclusion)
    return {name for name, _ in leaks(contents, DEFAULT_PLAN, question, standard)}


@pytest.mark.parametrize(
    ("summary", "conclusion", "question"),
    [
        ("The answer is B.", "B", MCQ),
        ("I will show that the correct option is (B), a zebra.", "B. a zebra", MCQ),
        ("So, the answer is: yes.", "Yes.", "Is it striped?"),
        ("I count and see why the answer is 2.", "2", "How many?"),
        ("The answer is 3.5, as I will show.", "3.5", "How long?"),
        ("The final answer would be 1,000!", "1000", "How many?"),
        ("The answer is\n**zebra**", "The answer is zebra.", QUESTION),
    ],
)
def test_a_stated_answer_is_an_error(summary, conclusion, question):
    assert leaked(summary, conclusion, question=question) == {"answer-stated"}


@pytest.mark.parametrize(
    ("summary", "conclusion", "question"),
    [
        ("The answer is a number between 1 and 9.", "A", MCQ),
        ("I check whether the answer is yes.", "yes", "Is it striped?"),
        ("The answer is yes or no.", "yes", "Is it striped?"),
        ("The answer is either 2 or 3.", "2", "How many?"),
        ("I answer in 2 steps, one at a time.", "2", "How many?"),
        ("I compare both, the one on the left first.", "left", "Which one?"),
        ("I weigh A against B and C.", "B", MCQ),
        ("I see which of horse, zebra and cow it is.", "a zebra", MCQ),
        ("I look for stripes of a zebra crossing.", "zebra", "Is it a zebra or a horse?"),
        ("No calculation is needed, yes?", "no", "Is it striped?"),
        ("I look at the animal.", "zebra", QUESTION),
        ("I look at the animal.", "", QUESTION),
    ],
)
def test_short_answers_raise_no_false_alarm(summary, conclusion, question):
    assert leaked(summary, conclusion, question=question, reasoning=conclusion) == set()


def test_what_a_description_may_say():
    said = "No parking on Sundays at all"
    assert leaked("I read.", said, caption=f'A sign reads "{said}" in red.') == set()
    assert leaked("I read.", said, caption=f"A sign: {said}.") == {"answer-in-caption"}
    assert leaked("I look.", "zebra", caption="A zebra on grass.") == set()
    assert leaked("I look.", "zebra", caption="The answer is zebra.") == {"answer-stated"}


def test_a_pasted_standard_answer():
    standard = "A zebra that drinks from a river."
    assert leaked(f"As told: {standard}", "zebra, drinking", standard=standard) == {"answer-early"}


@pytest.mark.parametrize(
    ("reasoning", "conclusion", "found"),
    [
        ("1 + 1 = 2. So 2.", "3", {"contradicted"}),
        ("It has stripes, so yes.", "no", {"contradicted"}),
        ("Therefore, the correct answer is (C).", "B", {"contradicted"}),
        ("The answer is 12. Or rather 12 / 4, so 3.", "3", set()),
        ("So 2.", "2.0", set()),
        ("So 1,000.", "1000", set()),
        ("There are two of them.", "2", set()),
        ("It has stripes.", "yes", set()),
        ("It has stripes.", "B", set()),
        ("I see horses.", "zebra", {"unsupported"}),
        ("There are zebras.", "zebra", set()),
        ("I count them.", "7", {"unsupported"}),
        ("它是斑马的一种", "斑马", set()),
    ],
)
def test_what_reasoning_comes_to(reasoning, conclusion, found):
    assert leaked("I look.", conclusion, reasoning=reasoning) == found


# --- the pass ------------------------------------------------------------------------------------


def test_another_plan(clean, tmp_path):
    plan = Plan((Stage("LOOK", "", "", needs_image=True), Stage("ANSWER", "", "")))
    rows = [
        TrainingRow("1", clean.rows[7].image, "How?", "<LOOK>A house.</LOOK><ANSWER>So.</ANSWER>"),
        TrainingRow("2", None, "How many?", "<ANSWER>2</ANSWER>"),
        TrainingRow("3", None, "Why?", "<SUMMARY>I look.</SUMMARY><ANSWER>It is.</ANSWER>"),
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    report = check(tmp_path / "rows.jsonl", images=clean.folder, plan=plan)
    assert {(f.line, f.check) for f in report.findings} == {
        *((1, "unsupported"), (3, "stray"), (3, "unknown-tag"))
    }


def tokenizer(folder):
    """A model's folder with a tokenizer of whole words."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["</s>"])
    words.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text("{}")
    return load_tokenizer(str(folder))


def test_tokens(tmp_path):
    row = TrainingRow("1", None, "How many are there?", staged_text("2"))
    long = TrainingRow("2", None, "How many more?", staged_text("2", "well " * 50))
    special = TrainingRow("3", None, "How many less?", staged_text("2", "That is it.</s>"))
    write_rows(tmp_path / "rows.jsonl", [row, long, special])
    report = check(tmp_path / "rows.jsonl", tokenizer=tokenizer(tmp_path), max_tokens=30)
    assert {(f.line, f.check) for f in report.findings} == {(2, "too-long"), (3, "special-token")}
    assert report.lengths.tokens[0] == 4 + len(row.response.split())
    with pytest.raises(InputError, match="0 tokens"):
        check(tmp_path / "rows.jsonl", tokenizer=tokenizer(tmp_path), max_tokens=0)


def staged_text(answer, more=""):
    return (
        f"<SUMMARY>I count.</SUMMARY><REASONING>{more} So {answer}.</REASONING>"
        f"<CONCLUSION>{answer}</CONCLUSION>"
    )


def test_no_more_rows_are_read_than_are_soon_needed(clean, monkeypatch):
    """Memory is bounded: rows are read only a window ahead of those that are done."""
    reached = 0

    def counted(path):
        nonlocal reached
        for pair in numbered(path):
            reached += 1
            yield pair

    numbered = check_module.numbered_rows
    monkeypatch.setattr(check_module, "numbered_rows", counted)
    done = []
    check(clean.file, threads=2, on_row=lambda line, *_: done.append(reached - line))
    assert max(done) <= 2 * check_module._AHEAD and len(done) == 300


def test_findings_beyond_the_limit_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(check_module, "MOST_KEPT", 5)
    (tmp_path / "rows.jsonl").write_text("{}\n" * 9)
    report = check(tmp_path / "rows.jsonl")
    assert (len(report.findings), report.left_out) == (5, 4)
    assert report.counts == {"row": 9} and report.bad == report.rows == 9


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def cli(capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments):
        code = main(["data", "check", *map(str, arguments)])
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def mixed(tmp_path):
    """A file with good rows, a warning, a notice, errors, a broken line, and escape sequences."""
    rows = [
        TrainingRow(str(k), None, f"How many, in case {k}?", staged_text(str(k)))
        for k in range(2, 6)
    ]
    lines = [row_json(row) for row in rows]
    lines.append(row_json(TrainingRow("6\x1b[31m", "no\x1b[2J.png", "How many?", "<SUMMARY>6")))
    lines.append('{"id": 7')
    lines.append(row_json(TrainingRow("8", None, "How many then?", staged_text("8") + "\nDone.")))
    lines.append(
        row_json(TrainingRow("2", None, "How many now?", staged_text("9"), {"source": "é"}))
    )
    lines.append(row_json(TrainingRow("10", None, "What now?", "<SUMMARY>6</SUMMARY>")))
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_table(mixed, cli, monkeypatch):
    monkeypatch.chdir(mixed.parent)
    done = cli("mixed.jsonl")
    assert done.code == 3
    assert done.err.splitlines() == [
        "4 of 9 rows have errors.",
        "--write-good OUT.jsonl keeps the others.",
    ]
    check_golden("data_check/table.txt", done.out)
    assert "\x1b" not in done.out


def test_json_has_everything(mixed, cli):
    found = json.loads(cli(mixed, "--json").out)
    assert (found["rows"], found["good"], found["bad"]) == (9, 5, 4)
    counts = {each["check"]: each["rows"] for each in found["checks"]}
    assert counts == {
        **{"missing": 2, "image-missing": 1, "row": 1, "stray": 1, "same-id": 1},
        "unclosed": 1,
    }
    assert len(found["findings"]) == sum(counts.values()) and found["findings_left_out"] == 0
    assert {"line": 6, "id": "", "check": "row", "severity": "error"}.items() <= next(
        each for each in found["findings"] if each["check"] == "row"
    ).items()
    assert found["characters"]["longest"] >= found["characters"]["median"]
    assert found["tokens"] is found["max_tokens"] is None


def test_good_and_bad_rows_are_written_apart(mixed, cli, tmp_path):
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    done = cli(mixed, "--write-good", good, "--write-bad", bad)
    assert done.code == 3 and str(good) in done.err
    source = mixed.read_text().splitlines()
    assert good.read_text().splitlines() == [*source[:4], source[6]]
    told = lines_of(bad)
    assert [each["line"] for each in told] == [5, 6, 8, 9]
    assert told[0]["row"] == json.loads(source[4]) and told[1]["text"] == source[5]
    assert [each["check"] for each in told[2]["reasons"]] == ["same-id"]
    assert cli(good).code == 0 and list(read_rows(good)) != []


def test_nothing_is_overwritten_unasked(mixed, cli, tmp_path):
    before = mixed.read_bytes()
    for more in ([], ["--overwrite"]):
        done = cli(mixed, "--write-good", mixed, *more)
        assert done.code == 2 and "would write over the data" in done.err
        assert mixed.read_bytes() == before
    there = tmp_path / "there"
    there.write_text("x")
    done = cli(mixed, "--write-good", there)
    assert done.code == 2 and "there already" in done.err and "--overwrite" in done.err
    assert there.read_text() == "x"
    assert cli(mixed, "--write-good", there, "--overwrite").code == 3
    assert len(there.read_bytes().splitlines()) == 5
    assert cli(mixed, "--write-good", tmp_path / "a", "--write-bad", tmp_path / "a").code == 2
    assert not (tmp_path / "a").exists()


def test_clean_data_is_exit_code_0(clean, cli, tmp_path):
    done = cli(clean.file, "--write-good", tmp_path / "good")
    assert done.code == 0 and done.err == ""
    assert "Nothing was found." in done.out and "300 rows, 300 good" in done.out
    assert (tmp_path / "good").read_bytes() == clean.file.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.jsonl"], ["cannot be read: No such file"]),
        (["."], ["is a folder", "empty.jsonl"]),
        (["empty.jsonl"], ["holds no rows"]),
        (["mixed.jsonl", "--images", "none"], ["image folder 'none' does not exist"]),
        (["mixed.jsonl", "--images", "mixed.jsonl"], ["is not a folder"]),
        (["mixed.jsonl", "--plan", "none.toml"], ["plan 'none.toml' cannot be read"]),
        (["mixed.jsonl", "--max-tokens", "5"], ["--model"]),
        (["mixed.jsonl", "--model", "./none"], ["no model folder './none'"]),
        (["mixed.jsonl", "--write-good", "mixed.jsonl/x"], ["cannot be written"]),
        ([], ["Missing argument", "data check --help"]),
    ],
)
def test_errors_say_what_to_do(mixed, cli, monkeypatch, arguments, said):
    monkeypatch.chdir(mixed.parent)
    (mixed.parent / "empty.jsonl").write_text("\n\n")
    done = cli(*arguments)
    assert done.code == 2 and done.out == "" and len(done.err.splitlines()) == 2
    for each in said:
        assert each in done.err
    assert sorted(os.listdir(mixed.parent)) == ["empty.jsonl", "mixed.jsonl"]


def test_the_help(cli):
    done = cli("--help")
    assert done.code == 0 and max(map(len, done.out.splitlines())) <= 80
    check_golden("help/data-check.txt", done.out)
