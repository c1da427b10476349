"""`cot-engine score` as its users meet it."""

import base64
import csv
import io
import json

import PIL.Image
import pytest
from command_line import cli, two_lines  # noqa: F401
from golden import check_golden

from cot_engine.testing import ScriptedBackend

HEAD = "index\tquestion\tA\tB\tanswer\tcategory\tprediction\n"
STAGED = (
    "<SUMMARY> Plan. </SUMMARY> <REASONING> A dog. </REASONING>"
    " <CONCLUSION> It is blue. </CONCLUSION>"
)
ROWS = (
    "1\tWhich?\tred\tblue\tA\tmath\tA\n"
    "2\tWhich?\tred\tblue\tB\tmath\tA dog sits on a lawn\n"
    f"3\tWhich?\tred\tblue\tB\tinstance reasoning\t{STAGED}\n"
    "4\tWhich?\tred\tblue\tB\tinstance reasoning\tred or blue\n"
    "5\tWhich?\tred\tblue\tB\tscience & technology\tB \x1b[31m\n"
    "6\tWhich?\tred\tblue\tB\tlogical reasoning\tB\n"
)


_file = io.BytesIO()
PIL.Image.new("RGB", (8, 8), "red").save(_file, "PNG")
PNG = _file.getvalue()


@pytest.fixture
def predictions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.tsv").write_text(HEAD + ROWS)
    return "p.tsv"


@pytest.mark.parametrize("show", [None, "disagreements", "unresolved", "items"])
def test_what_it_prints(cli, predictions, show):  # noqa: F811
    more = ["--show", show] if show else []
    done = cli("score", "MMStar", predictions, "--rules", "vlmevalkit-2024", *more)
    assert (done.returncode, done.stderr) == (0, "")
    check_golden(f"score/{show or 'tables'}.txt", done.stdout)


def test_why_two_sets_differ_is_said_only_where_it_is_so(cli, predictions, tmp_path):  # noqa: F811
    rows = [
        ("A dog sits on a lawn", "The A that they take"),
        (
            "A dog is on it, and so B it is as I said",
            "",
        ),  # which 2024 leaves open, with two letters
        ("<REASONING>Red?</REASONING><CONCLUSION>B</CONCLUSION>", "They read the reasoning too"),
    ]
    head = HEAD + "".join(
        f"{k}\tWhich?\tred\tblue\tB\tmath\t{said}\n" for k, (said, _) in enumerate(rows)
    )
    (tmp_path / "p.tsv").write_text(head)
    done = cli(
        "score",
        "MMStar",
        predictions,
        "--rules",
        "vlmevalkit-2024",
        "--json",
        "--show",
        "disagreements",
    )
    found = json.loads(done.stdout)["disagreements"]
    assert len(found) == 3
    for each, (_, why) in zip(found, rows, strict=True):
        assert each["why"].startswith(why) and bool(each["why"]) == bool(why)


def test_json_has_everything(cli, predictions):  # noqa: F811
    done = cli("score", "MMStar", predictions, "--json", "--rules", "vlmevalkit-2024")
    found = json.loads(done.stdout)
    assert found["rules"]["name"] == "vlmevalkit-2024" and "e42058a1" in found["rules"]["source"]
    assert (found["predictions"], found["unscored"], found["unresolved"]) == (6, 1, ["4"])
    assert found["score"]["score"] == 0.6 and found["score"]["scored"] == 5
    assert found["score"]["all_wrong"] == 0.5 and found["score"]["all_right"] == 4 / 6
    subset = found["tables"][-1]["cells"][0]
    assert subset["name"] == "MMStar-R" and subset["score"] == 0.625
    done = cli("score", "MMStar", predictions, "--json", "--show", "disagreements")
    found = json.loads(done.stdout)
    assert found["against"]["name"] == "conclusion"
    assert [each["conclusion"]["id"] for each in found["disagreements"]] == ["3"]


def test_rows_with_faults_make_it_exit_with_3(cli, predictions, tmp_path):  # noqa: F811
    (tmp_path / "p.tsv").write_text(HEAD + ROWS + "7\tWhich?\tred\tblue\tB\tmath\tnan\n")
    done = cli("score", "MMStar", predictions)
    assert done.returncode == 3
    assert "MMStar: 100.00 %" in done.stdout and ", 4 unscored" in done.stdout.splitlines()[0]
    assert "line 8, column prediction: is 'nan'" in done.stderr
    assert "Faults in the predictions: 1;" in done.stderr
    (tmp_path / "p.tsv").write_text(HEAD + ROWS + ROWS.splitlines()[0] + "\n")
    done = cli("score", "MMStar", predictions)
    assert done.returncode == 0 and "is there twice" in done.stderr  # and says the same


def test_a_grader_is_opened_and_its_verdicts_are_kept(cli, predictions, monkeypatch, tmp_path):  # noqa: F811
    opened = []

    def model(name, **_):
        opened.append(ScriptedBackend(script=lambda request, seed: "B"))
        return opened[-1]

    monkeypatch.setattr("cot_engine.backends.opening.open_backend", model)
    base = ["score", "MMStar", predictions, "--rules", "conclusion"]
    done = cli(*base, "--grader", "m", "--json", "-q")
    assert done.returncode == 0 and done.stderr == ""
    assert json.loads(done.stdout)["unscored"] == 0 and opened[0].closed
    assert len(opened[0].requests) == 2
    kept = tmp_path / "p.tsv.verdicts.jsonl"
    assert len(kept.read_text().splitlines()) == 2
    done = cli(*base, "--grader", "m")
    assert not opened[1].requests and "2 were decided by scripted@0." in done.stdout
    assert cli(*base, "--verdicts", kept).stdout == done.stdout and len(opened) == 2
    assert "unscored" in cli(*base).stdout.splitlines()[0]
    said = two_lines(cli(*base, "--verdicts", predictions))
    assert "would write over the predictions" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["MMStars", "p.tsv"], "no benchmark 'MMStars'"),
        (["MMStar", "q.tsv"], "cannot be read"),
        (["MMStar", "p.tsv", "--rules", "2024"], "no set of rules '2024'"),
        (["MMStar", "p.tsv", "--rules", "official"], "say nothing about MMStar"),
        (["MMStar", "p.tsv", "--show", "all"], "no listing called 'all'"),
        (["MMStar", "p.tsv", "--rules", "conclusion", "--rules", "vlmevalkit-2024"], "2 sets"),
        (["MMBench", "p.tsv"], "several benchmarks 'MMBench'"),
    ],
)
def test_what_will_not_do_is_two_lines(cli, predictions, arguments, said):  # noqa: F811
    assert said in two_lines(cli("score", *arguments))


def test_the_list_of_benchmarks(cli):  # noqa: F811
    rows = json.loads(cli("list", "benchmarks", "--json").stdout)
    names = [row["name"] for row in rows]
    assert {"MMStar", "MMVet", "HallusionBench", "AI2D_TEST_NO_MASK", "MMBench_TEST_CN_V11"} < {
        *names
    }
    assert next(r for r in rows if r["name"] == "MathVista_MINI")["rules"][2] == "official"


@pytest.mark.parametrize("end", [".jsonl", ".csv"])
def test_what_answer_wrote_is_scored(cli, predictions, tmp_path, end):  # noqa: F811
    """Its question is the prompt, and in a sheet a text like a formula has an apostrophe."""
    colour = base64.b64encode(PNG).decode()
    (tmp_path / "q.tsv").write_text(
        "index\tquestion\tA\tB\thint\tanswer\tcategory\timage\n"
        f"7\tHow many?\t0\t1\tLook.\tA\tmath\t{colour}\n8\tHow many?\t0\t-x\t\tB\tmath\t7\n"
    )
    out = tmp_path / f"p{end}"
    done = cli("answer", "q.tsv", "--out", out, "-q")
    assert done.returncode == 0, done.stderr
    done = cli("score", "MMStar", out, "--against", "q.tsv", "--json", "--show", "items")
    found = json.loads(done.stdout)
    assert (done.returncode, found["predictions"], found["troubles"]) == (0, 2, [])
    assert all(item["prediction"].isdigit() for item in found["items"])
    if end == ".csv":
        rows = list(csv.DictReader(out.read_text().splitlines(True)))
        rows[-1]["prediction"] = "'-x"
        with out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        done = cli("score", "MMStar", out, "--against", "q.tsv", "--json", "--show", "items")
        assert "-x" in [item["prediction"] for item in json.loads(done.stdout)["items"]]
