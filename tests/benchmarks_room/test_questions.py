"""A benchmark's questions: their pictures stay in the file until they are needed."""

import base64
import io
import tracemalloc
from dataclasses import replace

import PIL.Image
import pytest

from cot_engine.benchmarks.questions import read_questions
from cot_engine.errors import ImageError, InputError
from cot_engine.questions.data import load_data


def picture(colour, size=(8, 8)):
    file = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def colours(question):
    return [image.pixels.getpixel((0, 0)) for image in question.problem().images]


RED, BLUE = (255, 0, 0), (0, 0, 255)


def layout(tmp_path, end):
    """One file of the VLMEvalKit layout, as TSV or JSONL, with all that may stand in a cell."""
    import json

    rows = [
        ["0", "Which\nway?", "up", "down", "Look.", "A", "easy", "dev", picture("red")],
        ["1", "And now?", "up", "None", "", "B", "hard", "dev", "0"],
        [
            "2",
            "Both?",
            "",
            "",
            "",
            "['2', 'two']",
            "hard",
            "test",
            f"['{picture('red')}', '{picture('blue')}']",
        ],
        ["3", "None?", "", "", "", "no", "hard", "test", ""],
    ]
    names = "index question A B hint answer category split image".split()
    path = tmp_path / f"q{end}"
    if end == ".jsonl":
        path.write_text("\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows))
    else:
        import csv

        with path.open("w", newline="") as file:
            csv.writer(file, delimiter="\t").writerows([names, *rows])
    return path


@pytest.mark.parametrize("end", [".tsv", ".jsonl"])
def test_everything_that_a_row_may_hold(tmp_path, end):
    troubles = []
    one, two, three, four = read_questions(layout(tmp_path, end), troubles)
    assert not troubles
    assert one.question == "Which\nway?" and one.options == {"A": "up", "B": "down"}
    assert (one.hint, one.letter, one.of("category"), one.of("split")) == (
        "Look.",
        "A",
        "easy",
        "dev",
    )
    assert one.prompt.startswith("Hint: Look.\nQuestion: Which\nway?\nOptions:\nA. up\nB. down")
    assert colours(one) == colours(two) == [RED] and two.options["B"] == "None"
    assert colours(three) == [RED, BLUE] and three.answers == ("2", "two")
    with pytest.raises(InputError, match="'C' is no option"):
        replace(one, answers=("C",)).item()
    assert replace(one, answers=()).item().answer == ""
    assert not four.pictures and four.problem().images == ()
    assert three.item().grade("It is two.") == 0.0 and three.item().grade("two") == 1.0


def test_items_are_those_of_other_data_sets(tmp_path):
    """The same file read by `ablate`'s reader: the same digests, so that results are the same."""
    path = layout(tmp_path, ".tsv")
    items = load_data(path).items
    assert [question.item().digest for question in read_questions(path, [])] == [
        item.digest for item in items
    ]


def test_pictures_that_are_not_there_are_named(tmp_path):
    head = "index\tquestion\tanswer\timage\n"
    path = tmp_path / "q.tsv"
    good = picture("red")
    path.write_text(
        f"{head}0\tIs it?\tyes\t{good}\n1\tIs it?\tyes\t9\n2\tIs it?\tyes\t3\n3\tIs it?\tyes\t2\n"
        f"4\tIs it?\tyes\t{good[:70]}!!\n5\tIs it?\tyes\t{'QUJD' * 30}\n0\tAgain?\tyes\t{good}\n"
    )
    troubles = []
    questions = read_questions(path, troubles)
    assert [str(each) for each in troubles] == [
        "line 8, column index: '0' is that of line 2, too.",
        "line 3, column image: there is no row '9', which it names.",
        "line 4, column image: it goes round in a circle: 2 -> 3 -> 2.",
        "line 5, column image: it goes round in a circle: 3 -> 2 -> 3.",
    ]
    assert colours(questions[0]) == [RED]
    for at, said in ((4, "line 6, column image: no readable base64"), (5, "line 7, column image")):
        with pytest.raises(ImageError, match=said):
            questions[at].problem()
    path.write_text(head)
    with pytest.raises(ImageError, match="has changed"):
        questions[0].problem()
    with pytest.raises(InputError, match="holds no questions"):
        read_questions(path, [])
    path.write_text("number\ttext\n1\tx\n")
    with pytest.raises(InputError, match="no column question and no column index"):
        read_questions(path, [])


def test_pictures_in_files(tmp_path):
    PIL.Image.new("RGB", (8, 8), "blue").save(tmp_path / "b.png")
    path = tmp_path / "q.csv"
    path.write_text("index,question,answer,image_path\n0,Is it?,no,b.png\n1,Is it?,no,c.png\n")
    paths = tmp_path / "q.jsonl"
    paths.write_text('{"id": 1, "question": "Is it?", "answer": "no", "image": "b.png"}')
    assert colours(*read_questions(paths, [])) == [BLUE]
    troubles = []
    one, two = read_questions(path, troubles)
    assert colours(one) == [BLUE] and not two.pictures
    assert str(troubles[0]) == "line 3, column image: the picture 'c.png' is not there."
    path.write_text(
        f"index,question,answer,image_path\n0,Is it?,no,{'x' * 300}\n1,Is it?,no,b.png\n"
    )
    assert [each.id for each in read_questions(path, troubles) if each.pictures] == ["1"]
    assert "line 2, column image: the picture 'xxx" in str(troubles[1])  # and the rest is read
    assert "cannot be read: " in troubles[1].said


def test_a_large_file_takes_the_memory_of_a_row(tmp_path):
    """30 MB of pictures; `benchmarks/large_table.py` does it with 3 GB."""
    path = tmp_path / "q.tsv"
    cell = picture("red") + "A" * 4 * 75_000
    with path.open("w") as file:
        file.write("index\tquestion\tanswer\timage\n")
        file.writelines(f"{i}\tIs it?\tyes\t{cell}\n" for i in range(100))
    tracemalloc.start()
    questions = read_questions(path, [])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(questions) == 100 and path.stat().st_size > 30_000_000 and peak < 4_000_000
