"""The README is what a new user has: its commands and its code run as they stand."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import forked
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text("utf-8")


def test_ci_runs_the_second_command():
    solve, test = blocks("sh")[0].strip(), blocks("sh")[1].strip()
    assert "cot-engine solve" in solve and test.endswith("-m pytest")
    assert test in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()


def test_the_first_command_answers_as_promised():
    command = shlex.split(blocks("sh")[0].strip().rpartition("&&")[2])
    promised = re.search(r"It prints `(.+?)`", README).group(1)
    run = subprocess.run(
        [sys.executable, "-m", "cot_engine", *command[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"{promised}\n"


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_examples_run(number, tmp_path):
    script = tmp_path / "example.py"
    script.write_text(blocks("python")[number], "utf-8")
    run = forked.run(script, cwd=ROOT)
    assert run.returncode == 0, run.stderr


def test_the_plan_example_is_a_plan(tmp_path):
    from cot_engine import Plan

    path = tmp_path / "plan.toml"
    path.write_text(blocks("toml", page("plans.md"))[0], "utf-8")
    assert [stage.tag for stage in Plan.from_toml(path)] == ["LOOK", "ANSWER"]


def test_the_ablation_example_is_a_grid(tmp_path):
    from cot_engine.ablation.grid import load_ablation
    from cot_engine.questions.data import load_data

    path = tmp_path / "grid.toml"
    path.write_text(blocks("toml", page("ablation.md"))[0], "utf-8")
    ablation = load_ablation(path)
    assert ablation.reference in {cell.label for cell in ablation.cells}
    assert sum(cell.match is not None for cell in ablation.cells) == 3
    (tmp_path / "questions.jsonl").write_text(blocks("json", page("ablation.md"))[0], "utf-8")
    (tmp_path / "scene-1.png").write_bytes((ROOT / "examples/images/scene-1.png").read_bytes())
    assert load_data(**ablation.data, folder=tmp_path).items[0].grade("2") == 1


def test_every_example_picture_is_answered_right():
    from cot_engine import Engine, scenes

    listed = tomllib.loads((ROOT / "examples/images/questions.toml").read_text("utf-8"))["picture"]
    asked = [
        (ROOT / "examples/images" / picture["image"], q["question"], q["answer"])
        for picture in listed
        for q in picture["questions"]
    ]
    with Engine.from_pretrained() as engine:
        answers = engine.solve_many((image, question) for image, question, _ in asked)
        wrong = [
            (question, answer.text, right)
            for answer, (_, question, right) in zip(answers, asked, strict=True)
            if not scenes.grade(answer.text, right)
        ]
    assert not wrong


def test_links_lead_somewhere():
    import cot_engine

    package = Path(cot_engine.__file__).parent  # the wheel's, where the wheel is tested
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text("utf-8")):
            inside = target.removeprefix("../").removeprefix("cot_engine/")
            ours = "cot_engine/" in target
            assert (package / inside if ours else path.parent / target).exists(), target


def test_it_is_short():
    assert README.count("\n") < 250
