"""Predictions with faults: each named with row and column, the rest scored."""

import json
import re
import zipfile

import pytest

from cot_engine.benchmarks.catalogue import benchmark
from cot_engine.benchmarks.predictions import read_cases
from cot_engine.benchmarks.rulesets import default, rule_set
from cot_engine.benchmarks.scoring import score
from cot_engine.errors import ConfigError, InputError, UnknownNameError

HEAD = "index\tquestion\tA\tB\tanswer\tcategory\tprediction\n"
GOOD = "1\tWhich?\tred\tblue\tA\tmath\tA\n2\tWhich?\tred\tblue\tB\tmath\tA\n"


def scored(path, name="MMStar", rules=None, against=None):
    of = benchmark(name)
    return score(read_cases(path, of, against), of, rule_set(rules or default(of), of))


def written(folder, text, name="p.tsv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


ROWS = {
    "3\tWhich?\tred\tblue\tA\tmath\t\n": ("line 4", "prediction", "is empty"),
    "3\tWhich?\tred\tblue\tA\tmath\tnan\n": ("line 4", "prediction", "'nan'"),
    "3\tWhich?\tred\tblue\t\tmath\tA\n": ("line 4", "answer", "empty"),
    "3\tWhich?\tred\tblue\tpink\tmath\tA\n": ("line 4", "answer", "'pink' is no option"),
    "3\tWhich?\tred\t\tA\tmath\tA\n": ("line 4", "A", "fewer than two options"),
    "\tWhich?\tred\tblue\tA\tmath\tA\n": ("line 4", "index", "empty"),
    "3\tWhich?\tred\tblue\tA\tmath\n": ("line 4", "", "6 fields for 7 columns"),
    b"3\tWhich?\tred\tblue\tA\tmath\t\xc3\xa9 \xe9\n": ("line 4", "prediction", "0xe9"),
    "2\tWhich?\tred\tblue\tB\tmath\tB\n": ("line 4", "index", "'2' is there twice"),
    '3\tWhich?\tred\tblue\tA\tmath\t"A" b\n': ("line 4", "", "nothing after this line"),
}


@pytest.mark.parametrize("row", ROWS, ids=[f"{c or 'row'}-{s}" for _, c, s in ROWS.values()])
def test_a_faulty_row_is_named_and_the_rest_is_scored(tmp_path, row):
    place, column, said = ROWS[row]
    row = row if isinstance(row, bytes) else row.encode()
    found = scored(written(tmp_path, HEAD.encode() + GOOD.encode() + row))
    (trouble,) = found.troubles
    assert (trouble.place, trouble.column) == (place, column) and said in trouble.said
    assert not trouble.scored and not found.unresolved
    twice = row.startswith(b"2")
    assert len(found.unscored) + found.unread == 1
    assert found.overall.score == (1.0 if twice else 0.5)
    assert found.overall.scored == (1 if twice else 2)
    if not found.unread and not twice:
        assert found.overall.at_least == pytest.approx(1 / 3)
        assert found.overall.at_most == pytest.approx(2 / 3)


def test_the_same_prediction_twice_is_scored_once(tmp_path):
    found = scored(written(tmp_path, HEAD + GOOD + GOOD.splitlines()[0] + "\n"))
    (trouble,) = found.troubles
    assert trouble.scored and "line 2 and line 4" in trouble.said and found.overall.total == 2


def test_options_called_none_are_options_and_said(tmp_path):
    text = "1\tWhich?\tred\tNone\tB\tmath\tB\n2\tWhich?\tN/A\tred\tA\tmath\tN/A\n"
    found = scored(written(tmp_path, HEAD + text))
    assert found.overall.score == 1.0 and not found.troubles
    (note,) = found.notes[1:]
    assert (
        note.startswith("2 of 2 questions have an option called 'None'")
        and "line 2, column B" in note
    )


def test_an_answer_that_is_no_option_is_wrong_and_said(tmp_path):
    """As of two of MMStar's questions, whose first option is missing."""
    text = "1\tWhich?\t\tblue\tA\tmath\tB\n"
    found = scored(
        written(tmp_path, HEAD.replace("\tB\t", "\tB\tC\t") + text.replace("blue", "b\tc"))
    )
    assert found.overall.score == 0.0 and found.troubles[0].scored
    assert found.troubles[0].column == "answer"


def test_a_broken_file_is_an_error(tmp_path):
    for text, said in [
        ("", "holds no predictions"),
        (HEAD, "holds no predictions"),
        ("x\ty\tz\n1\t2\t3\n", "no column index or id or pid"),
        (HEAD.replace("prediction", "predicted") + GOOD, "no column prediction or response"),
        (HEAD.replace("index", "number") + GOOD, "no column index or id"),
        (HEAD.replace("answer", "solution") + GOOD, "no column answer"),
        (HEAD.replace("category", "A") + GOOD, "'A' is there twice"),
        ((HEAD + GOOD).replace("\t", ","), "separated by commas"),
        ((HEAD + GOOD).encode("utf-16"), "not in UTF-8"),
        ((HEAD + GOOD).encode("utf-16-le"), "not in UTF-8"),
    ]:
        with pytest.raises(InputError, match=said):
            scored(written(tmp_path, text))
    with pytest.raises(InputError) as error:
        scored(written(tmp_path, HEAD.replace("prediction", "Predictions") + GOOD))
    assert error.value.hint.startswith("Is 'predictions' the column prediction?")
    with pytest.raises(InputError) as error:
        scored(written(tmp_path, HEAD.replace("answer", "anwser") + GOOD))
    assert error.value.hint.startswith("Is 'anwser' the column answer?")
    assert (
        "Is 'catgory' the column category?"
        in scored(written(tmp_path, HEAD.replace("category", "catgory") + GOOD)).notes
    )
    with pytest.raises(InputError, match="must be one of"):
        scored(written(tmp_path, HEAD + GOOD, "p.txt"))
    with pytest.raises(InputError, match="cannot be read"):
        scored(tmp_path / "absent.tsv")
    with pytest.raises(InputError, match="None of the 2 questions has an answer") as error:
        rows = [f"{i}\tWhich?\tred\tblue\t\tmath\tA\n" for i in (1, 2)]
        scored(written(tmp_path, HEAD + "".join(rows)), "MMBench_TEST_EN_V11")
    assert "server" in error.value.hint


def test_names_that_are_not_there_are_near_others():
    assert benchmark("ai2d_test").name == "AI2D_TEST"
    with pytest.raises(ConfigError, match="several benchmarks 'AI2D'") as error:
        benchmark("AI2D")
    assert error.value.hint == "Say which: AI2D_TEST or AI2D_TEST_NO_MASK."
    with pytest.raises(UnknownNameError, match="no benchmark 'MMStars'"):
        benchmark("MMStars")
    with pytest.raises(UnknownNameError, match="set of rules"):
        rule_set("vlmevalkit", benchmark("MMStar"))
    with pytest.raises(ConfigError, match="say nothing about MMStar"):
        rule_set("official", benchmark("MMStar"))


def test_a_file_called_as_another_benchmark_is_said(tmp_path):
    path = written(tmp_path, HEAD + GOOD, "llava_AI2D_TEST_NO_MASK.tsv")
    said = (
        "'llava_AI2D_TEST_NO_MASK.tsv' is called as AI2D_TEST_NO_MASK is, and scored as AI2D_TEST."
    )
    assert said in scored(path, "AI2D_TEST").notes
    assert not any("called as" in note for note in scored(path, "AI2D_TEST_NO_MASK").notes)


# --- against the questions -----------------------------------------------------------------------

QUESTIONS = HEAD.replace("\tprediction", "") + "".join(
    f"{i}\tIs it {i}?\tyes\tno\tA\tmath\n" for i in range(5)
)


def test_predictions_are_paired_with_their_questions(tmp_path):
    questions = written(tmp_path, QUESTIONS, "q.tsv")
    rows = [
        {"id": 0, "prediction": "A"},
        {"id": 1.0, "prediction": "B", "question": "Is it 1?"},
        {"id": 2, "prediction": "A", "question": "Is it something else?"},
        {"id": 77, "prediction": "A"},
    ]
    lines = "\n".join(map(json.dumps, rows)) + '\n{"id": 3, "predic'
    found = scored(written(tmp_path, lines, "p.jsonl"), against=questions)
    assert [mark.score for mark in found.marks] == [1.0, 0.0, None, None, None]
    assert [mark.why for mark in found.marks[2:]] == [
        "it is about another question than line 4 of the questions",
        "there is no prediction",
        "there is no prediction",
    ]
    said = [(each.place.split("/")[-1].strip("'"), each.column) for each in found.troubles]
    assert said == [("line 5", ""), ("line 3", "question"), ("line 4", "index"), ("p.jsonl", "")]
    assert found.overall.total == 5 and found.unread == 0
    with pytest.raises(InputError, match=r"No prediction of .* is for a question of"):
        scored(written(tmp_path, '{"id": "x", "prediction": "A"}', "o.jsonl"), against=questions)


# --- circular groups -----------------------------------------------------------------------------


def circular(*rows):
    head = "index\tquestion\tA\tB\tC\tanswer\tl2-category\tprediction\n"
    return head + "".join(f"{i}\tWhich?\tx\ty\tz\t{a}\t{c}\t{p}\n" for i, a, c, p in rows)


def test_a_group_counts_if_every_turn_is_right(tmp_path):
    turn = 1_000_000
    rows = [(k, "A", "logic_reasoning", "A") for k in (7, 7 + turn, 7 + 2 * turn)]
    rows += [(8, "A", "relation_reasoning", "A"), (8 + turn, "B", "relation_reasoning", "A")]
    rows += [(8 + 2 * turn, "C", "relation_reasoning", "A or B")]  # one is wrong: that decides
    rows += [(9, "A", "attribute_reasoning", "A"), (9 + 2 * turn, "A", "attribute_reasoning", "A")]
    rows += [(6 + k * turn, "A", "coarse_perception", p) for k, p in enumerate(["A", "A", "?"])]
    found = scored(written(tmp_path, circular(*rows)), "MMBench_DEV_EN_V11")
    cells = {cell.name: cell for cell in found.tables[0].cells}
    assert cells["logic_reasoning"].score == 1.0 and cells["relation_reasoning"].score == 0.0
    assert cells["attribute_reasoning"].scored == cells["coarse_perception"].scored == 0
    (trouble,) = found.troubles
    assert trouble.place == "line 8" and trouble.said == "of the group 9 turns are missing: 1000009"
    overall = found.overall
    assert (overall.score, overall.scored, overall.total) == (0.5, 2, 4)
    assert (overall.at_least, overall.at_most) == (0.25, 0.75)
    (subset,), single = found.tables[-2].cells, found.tables[-1].cells
    assert [(c.name, c.score, c.scored, c.total) for c in single] == [
        ("all turns", 8 / 9, 9, 11),
        ("first turns", 1.0, 4, 4),
    ]
    assert subset.name == "MMBench-R" and subset.at_least == pytest.approx(1 / 3)


# --- files of other kinds ------------------------------------------------------------------------


def test_every_kind_of_file_is_read_alike(tmp_path):
    import openpyxl

    rows = [line.split("\t") for line in (HEAD + GOOD).splitlines()]
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append([int(x) if x.isdigit() else x for x in row])
    book.save(tmp_path / "p.xlsx")
    objects = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    written(tmp_path, HEAD + GOOD)
    written(tmp_path, "\ufeff" + (HEAD + GOOD).replace("\t", ","), "p.csv")
    written(tmp_path, "\n".join(map(json.dumps, objects)), "p.jsonl")
    written(tmp_path, json.dumps(objects), "p.json")
    written(
        tmp_path,
        json.dumps(
            {each.pop("index"): each | {"pid": str(n)} for n, each in enumerate(objects, 1)}
        ),
        "q.json",
    )
    for name in ("p.tsv", "p.csv", "p.jsonl", "p.json", "q.json", "p.xlsx"):
        found = scored(tmp_path / name)
        assert [(mark.id, mark.score) for mark in found.marks] == [("1", 1.0), ("2", 0.0)], name
        assert not found.troubles and [c.name for c in found.tables[0].cells] == ["math"]
    with (
        zipfile.ZipFile(tmp_path / "p.xlsx") as old,
        zipfile.ZipFile(tmp_path / "q.xlsx", "w") as new,
    ):
        for name in old.namelist():  # a program that says of every sheet that it is one cell
            new.writestr(
                name, re.sub(rb'<dimension ref="[^"]*"', b'<dimension ref="A1"', old.read(name))
            )
    assert len(scored(tmp_path / "q.xlsx").marks) == 2
    book.create_sheet("notes").append(["some"])
    book.active = 1
    book.save(tmp_path / "q.xlsx")
    with pytest.raises(InputError, match="sheet 'notes', which is the one that it opens with"):
        scored(tmp_path / "q.xlsx")
    written(tmp_path, b"PK\x03\x04 no sheet", "q.xlsx")
    with pytest.raises(InputError, match="cannot be read as a sheet"):
        scored(tmp_path / "q.xlsx")


# --- other benchmarks ----------------------------------------------------------------------------


def test_chartqa_answers_in_a_list_and_splits(tmp_path):
    text = "index\tquestion\tanswer\tsplit\tprediction\n"
    text += "1\tHow many?\t['100', 'hundred']\thuman\t103\n2\tWho?\tAnn\taugmented\tBob\n"
    found = scored(written(tmp_path, text), "ChartQA")
    assert [mark.score for mark in found.marks] == [1.0, 0.0]
    assert [(c.name, c.score) for c in found.tables[0].cells] == [("augmented", 0), ("human", 1)]


def test_open_questions_of_mmmu(tmp_path):
    text = "index\tquestion\tA\tB\tanswer\tsplit\tprediction\n"
    text += "1\tHow many?\t\t\t12\tvalidation\tIt is 12.\n2\tWhich?\tx\ty\tB\tvalidation\tB\n"
    found = scored(written(tmp_path, text), "MMMU_DEV_VAL")
    assert [(mark.wanted, mark.said.value) for mark in found.marks] == [("A", "A"), ("B", "B")]
    assert not found.troubles


def test_mmvet_without_grades_is_open_and_bad_grades_are_named(tmp_path):
    text = "index\tquestion\tanswer\tcategory\tprediction\tscore\n"
    text += "1\tWhat?\t3\tocr,math\tfour\t0.3\n2\tWhat?\t5\tspat\tfive\t\n3\tWhat?\t5\tspat\tx\t7\n"
    found = scored(written(tmp_path, text), "MMVet")
    assert [mark.score for mark in found.marks] == [0.3, None, None]
    assert [mark.id for mark in found.unresolved] == ["2", "3"]
    assert "7 is not from 0 to 1" in found.marks[2].why
    (trouble,) = found.troubles  # the grades of a file from 0 to 100 would all be left out
    assert str(trouble) == "line 4, column score: '7' is no grade from 0 to 1."


def test_a_figure_is_wrong_as_soon_as_one_answer_is(tmp_path):
    """Whatever is open; and figures of two categories are two, though numbered alike."""
    text = "index\tquestion\tanswer\tcategory\tl2-category\tprediction\n"
    for part, said in (
        ("VD_ocr", ["No", "?"]),
        ("VS_ocr", ["Yes", "?"]),
        ("VS_map", ["Yes", "Yes"]),
    ):
        for k, each in enumerate(said):
            text += f"{part}_1_0_0_{k}\tIs it?\tYes\t{part[:2]}\t{part}\t{each}\n"
    found = scored(written(tmp_path, text), "HallusionBench")
    figures = {c.name: c for c in found.tables[1].cells}
    assert found.tables[1].name == "fAcc" and figures["Overall"].total == 3
    assert [figures[name].score for name in ("VD_ocr", "VS_map")] == [0.0, 1.0]
    assert figures["VS_ocr"].scored == 0 and figures["Overall"].score == 0.5


def test_hallusionbench_names_an_index_without_its_numbers(tmp_path):
    text = "index\tquestion\tanswer\tcategory\tl2-category\tprediction\n"
    text += "VD_illusion_1_0_0_0\tIs it?\tYes\tVD\tVD_illusion\tYes.\n"
    text += "VD_illusion_1_0_0_1\tIs it?\tNo\tVD\tVD_illusion\tYes.\nx\tIs it?\tNo\tVD\tVD_x\tNo\n"
    text += "VD_illusion_1_0_1_1\tIs it?\tmaybe\tVD\tVD_illusion\tYes.\n"
    found = scored(written(tmp_path, text), "HallusionBench")
    assert [(each.place, each.column) for each in found.troubles] == [
        ("line 5", "answer"),
        ("line 4", "index"),
    ]
    measures = {table.name: {c.name: c for c in table.cells} for table in found.tables}
    assert measures["aAcc"]["VD_illusion"].score == 0.5
    assert measures["fAcc"]["VD_illusion"].score == 0.0 and measures["qAcc"]["VD"].total == 3
