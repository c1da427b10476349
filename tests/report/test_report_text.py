"""Findings as Markdown, JSON and CSV: what stands in them, and that texts stay texts."""

import csv
import io
import itertools
import json
import math
from dataclasses import fields, replace

import pytest
from golden import check_golden
from make_store import digest, make_run, make_store, plain, put
from make_traces import HOSTILE
from markdown_it import MarkdownIt

from cot_engine.ablation.records import CandidateRecord, SelectionRecord
from cot_engine.ablation.store import Store
from cot_engine.report import findings as values
from cot_engine.report.analysis import analyse
from cot_engine.report.judging import JudgeCard
from cot_engine.report.text import judge_share, markdown, rows_csv, summary
from cot_engine.report.text import plain as as_json
from cot_engine.statistics import Paired


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # the report says the store's name
        store, run = make_store("main.sqlite", problems=6, seeds=(0, 1), traces=3)
        found = analyse(store, run)
        yield store, run, found
        store.close()


@pytest.fixture
def hostile(tmp_path):
    """Findings of a run in which every name and text is an enemy's."""
    bad = f"a | b\n# `x` [y](http://evil) **z** {HOSTILE}"
    beam = plain("stage-beam", {"n": 2})
    cells = {digest(beam): (bad, beam), digest("g"): ("greedy", plain("greedy"))}
    run = make_run(3, (0,), cells, bad, name=bad, command=f"ablate ``` {bad}", code=bad, model=bad)
    run = replace(run, items=tuple(replace(i, type=f"{i.type} {bad}") for i in run.items))
    run = replace(run, about={key: bad for key in ("device", "machine", "architecture")})
    run = replace(run, about=run.about | {"data": {"name": bad, "rule": bad}})
    with Store(tmp_path / "s.sqlite", create=True) as store:
        store.begin(run)
        run = store.run()
        names = ("r.0", "r.1")
        known = SelectionRecord(bad, names, ("r.0",), {"r.0": 1.0, "r.1": 0.0})
        whole = tuple(CandidateRecord(name, bad, 1.0, -1.0) for name in names)
        for problem in range(2):
            put(store, run, bad, problem, 0, answer=bad, selections=(known,), candidates=whole)
            put(store, run, "greedy", problem, 0, 0.0)
        put(store, run, bad, 2, 0, None, error=bad)
        yield store, run, analyse(store, run)


def rendered(text):
    """The Markdown's tokens, those inside of others included."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)
    return [inner for token in tokens for inner in (token, *(token.children or ()))]


def tables(text):
    """Each table of the Markdown: rows of cells, as they read."""
    found = []
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    for before, token in itertools.pairwise(tokens):
        if token.type == "tr_open":
            if before.type == "thead_open":
                found.append([])
            found[-1].append([])
        elif token.type == "inline" and before.type in ("td_open", "th_open"):
            found[-1][-1].append("".join(child.content for child in token.children))
    return found


# --- Markdown ------------------------------------------------------------------------------------


def test_the_markdown_is_the_recorded_one(made):
    check_golden("report/report.md", markdown(made[2]))


def test_every_row_of_every_table_has_a_cell_for_each_head(made, hostile):
    for found in (made[2], hostile[2]):
        made_tables = tables(markdown(found))
        assert len(made_tables) >= 6
        for table in made_tables:
            assert len({len(row) for row in table}) == 1
            assert len(table) > 1


def test_the_tables_say_what_the_findings_say(made):
    _, run, found = made
    first, derived = tables(markdown(found))[:2]
    heads = first[0]
    assert heads[:6] == [
        "cell", "accuracy (95 % interval)", "problems", "searches", "failed", "at equal compute",
    ]  # fmt: skip
    assert [row[0] for row in first[1:]] == [label for label, _ in run.cells.values()]
    assert len(first) + len(derived) - 2 == len(found.standings)
    at = {head: heads.index(head) for head in heads}
    for row, s in zip(first[1:], found.standings, strict=False):
        low, high = f"{s.accuracy.low:.3f}", f"{s.accuracy.high:.3f}"
        assert row[1] == f"{s.accuracy.estimate:.3f} ({low} to {high})"
        assert float(row[at["spent (Gflops)"]]) == pytest.approx(s.spent / 1e9, rel=0.01)
        roles = sum(float(row[at[f"{role} (Gflops)"]]) for role in ("generate", "judge"))
        assert roles == pytest.approx(s.spent / 1e9, rel=0.02)
        share = s.by_role.get("judge", 0) / s.spent
        assert float(row[at["judge's share"]]) == pytest.approx(share, abs=1e-3)
        assert judge_share(s) == pytest.approx(share)


def test_names_and_texts_are_read_and_never_obeyed(hostile):
    text = markdown(hostile[2])
    made_of = rendered(text)
    assert not {token.type for token in made_of} & {
        "html_inline", "html_block", "link_open", "image", "em_open", "strong_open", "code_inline",
    }  # fmt: skip
    headings = [t.content for t in made_of if t.type == "inline" and t.content.startswith("Ablat")]
    assert len(headings) == 1
    assert sum(token.type == "heading_open" for token in made_of) == text.count("\n## ") + 1
    assert sum(token.type == "fence" for token in made_of) == 1
    assert "http://" not in text.replace(next(t.content for t in made_of if t.type == "fence"), "")
    assert not any(char in text for char in "\x1b\x07\u202e\r")
    label = next(label for label, _ in hostile[1].cells.values())
    shown = tables(text)[0][1][0]
    assert shown.startswith("a | b # `x` [y](http://evil) **z** <script>")
    assert label.startswith("a | b\n#")


def test_a_report_without_anything_finished(tmp_path):
    with Store(tmp_path / "s.sqlite", create=True) as store:
        run = make_run(2)
        store.begin(run)
        found = analyse(store, run)
        text = markdown(found)
        assert "Preliminary: 54 of 54 searches are still missing." in text
        assert "| greedy | – | 0 | 0 | 0 |" in text
        assert "nan" not in text
        assert "nan" not in summary(found)
        json.dumps(as_json(found), allow_nan=False)


def test_the_summary_is_plain_columns(made, hostile):
    lines = summary(made[2]).split("\n")
    at = lines[0].index("problems")
    assert all(line[at - 2 : at] == "  " and line[at].isdigit() for line in lines[1:10])
    assert lines[10] == ""
    assert lines[11:16] == list(made[2].headline)
    assert all(line.startswith("Note: ") for line in lines[16:])
    assert not any(char in summary(hostile[2]) for char in "\x1b\x07\u202e\r")


# --- JSON ----------------------------------------------------------------------------------------


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value


def test_the_json_is_the_recorded_one(made):
    found = rounded(as_json(made[2]))
    check_golden("report/report.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def test_the_json_has_every_field_and_its_words(made):
    _, run, found = made
    told = json.loads(json.dumps(as_json(found), allow_nan=False))
    assert told.pop("schema") == 1
    assert list(told) == [f.name for f in fields(values.Findings)]
    for key, kind in {
        "standings": values.Standing,
        "comparisons": values.Comparison,
        "curves": values.Curve,
        "headrooms": values.Headroom,
        "types": values.TypeRow,
        "cards": JudgeCard,
    }.items():
        assert len(told[key]) == len(getattr(found, key)) > 0
        assert list(told[key][0]) == [f.name for f in fields(kind)], key
    assert list(told["comparisons"][0]["paired"]) == [f.name for f in fields(Paired)]
    assert told["standings"][0]["accuracy"]["estimate"] == found.standings[0].accuracy.estimate
    outcome = told["outcomes"][0]
    assert outcome["seeds"]["greedy"] == [0, 1]
    assert set(outcome) == {f.name for f in fields(values.ItemOutcome)} - {"keys"} | {"seeds"}
    assert told["run"]["problems"] == 6
    assert "items" not in told["run"]
    cells = [(cell["label"], cell["hash"]) for cell in told["run"]["cells"]]
    assert cells == [(label, hash) for hash, (label, _) in run.cells.items()]


def test_a_number_that_is_none_is_null(made):
    broken = replace(made[2].standings[0], spent=math.nan, seconds=math.inf)
    told = as_json(replace(made[2], standings=(broken,)))["standings"][0]
    assert told["spent"] is told["seconds"] is None


# --- CSV -----------------------------------------------------------------------------------------


def test_the_csv_is_the_rows_with_their_labels(made):
    store, run, _ = made
    file = io.StringIO()
    rows_csv(store, run, None, file)
    lines = list(csv.DictReader(io.StringIO(file.getvalue(), newline="")))
    rows = list(store.rows(run))
    assert len(lines) == len(rows) == 6 * 9 * 2 - 3
    for line, row in zip(lines, rows, strict=True):
        assert line["label"] == run.cells[row.key.cell][0]
        assert (line["cell"], line["seed"], line["item"]) == (*map(str, row.key),)
        assert line["answer"] == (row.answer or "")
    file = io.StringIO()
    rows_csv(store, run, "label = 'greedy' and seed = 1", file)
    assert len(file.getvalue().splitlines()) == 1 + 6


def test_pandas_reads_the_csv_whatever_was_answered(hostile):
    pandas = pytest.importorskip("pandas")
    store, run, _ = hostile
    file = io.StringIO()
    rows_csv(store, run, None, file)
    table = pandas.read_csv(io.StringIO(file.getvalue(), newline=""))
    rows = list(store.rows(run))
    assert list(table.label) == [run.cells[row.key.cell][0] for row in rows]
    assert list(table.answer.fillna("")) == [row.answer or "" for row in rows]
    assert table.correct.sum() == 2


def test_no_cell_of_the_csv_is_a_formula_or_splits_its_row(tmp_path):
    """What a model answered is opened in a spreadsheet by somebody."""
    answers = [
        "=1+1",
        "+1 cat",
        "-cat",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\uff1d1",
        "a\rb",
        "a\nb",
        'a"b',
    ]
    answers += ["-5", "+3.5e2", "-", "a=1", ""]
    cells = {digest("a"): ("greedy", plain("greedy"))}
    store = Store(tmp_path / "s.sqlite", create=True)
    run = make_run(len(answers), (0,), cells)
    store.begin(run)
    for number, answer in enumerate(answers):
        put(store, run, "greedy", number, 0, remaining=-2.5, answer=answer)
    file = io.StringIO(newline="")
    rows_csv(store, run, None, file)
    store.close()
    text = file.getvalue()
    found = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [row["answer"] for row in found] == [
        *("'=1+1", "'+1 cat", "'-cat", "'@SUM(A1)", "'\t=1", "'\r=1", "'\uff1d1"),
        *("a\rb", "a\nb", 'a"b', "-5", "+3.5e2", "'-", "a=1", ""),
    ]
    assert {row["remaining"] for row in found} == {"-2.5"}  # a number stays one
    # A reader that takes a bare CR for a line's end finds no row more.
    assert '"a\rb"' in text and '"\'\r=1"' in text
