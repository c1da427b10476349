"""Tiny files in the layouts of six public benchmarks, for tests."""

import base64
import io

from PIL import Image


def picture(colour):
    file = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def write(path, columns, rows):
    lines = ["\t".join(columns), *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def six(folder):
    """The six files: of each benchmark some questions, in all categories that its subset is of."""
    red = picture("red")
    cats = ("instance reasoning", "logical reasoning", "math", "science & technology", "other")
    options = ("red", "blue")
    write(
        folder / "MMStar.tsv",
        ("index", "question", "A", "B", "answer", "category", "image"),
        [
            (k, f"Which {k}?", *options, "AB"[k % 2], cats[k], red if k == 0 else 0)
            for k in range(5)
        ],
    )
    skills = ("attribute_reasoning", "logic_reasoning", "relation_reasoning")
    turns = []
    for turn in range(2):
        for k in range(3):
            index = k + 1 + turn * 1_000_000
            turned = [*options[turn:], *options[:turn]]
            right = "AB"[turned.index("blue" if k % 2 else "red")]
            turns.append((index, f"What {k}?", *turned, right, "dev", skills[k], red))
    write(
        folder / "MMBench_DEV_EN_V11.tsv",
        ("index", "question", "A", "B", "answer", "split", "l2-category", "image"),
        turns,
    )
    write(
        folder / "MMVet.tsv",
        ("index", "question", "answer", "category", "image"),
        [(k, f"Say {k}?", "blue<OR>navy" if k % 2 else "red", "spat,math", red) for k in range(3)],
    )
    write(
        folder / "MathVista_MINI.tsv",
        (
            *("index", "question", "answer", "question_type", "answer_type", "precision"),
            *("choices", "task", "skills", "image"),
        ),
        [
            (
                k,
                f"How many {k}?",
                7 if k % 2 else 8,
                "free_form",
                "integer",
                0,
                "",
                "vqa",
                "[]",
                red,
            )
            for k in range(2)
        ],
    )
    write(
        folder / "AI2D_TEST.tsv",
        ("index", "question", "A", "B", "answer", "category", "image"),
        [(k, f"Which part {k}?", "leaf", "root", "AB"[k % 2], "plants", red) for k in range(4)],
    )
    write(
        folder / "HallusionBench.tsv",
        ("index", "question", "answer", "category", "l2-category", "image"),
        [
            (f"VD_figure_0_1_{f}_{q}", f"Is it {q}?", "Yes" if f else "No", "VD", "figure", red)
            for f in range(2)
            for q in range(2)
        ],
    )
