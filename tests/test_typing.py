"""The public names as a type checker sees them: mypy, once, in its strictest mode."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import cot_engine

ROOT = Path(__file__).parent.parent
HERE = ROOT / "tests" / "typing"


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, set[tuple[int, str]]]:
    """What mypy says of each file here and of README's programs, as (line, code) by file name."""
    folder = tmp_path_factory.mktemp("typing")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    for number, block in enumerate(blocks):
        (folder / f"readme_{number}.py").write_text(block, "utf-8")
    package = Path(cot_engine.__file__).parents[1]
    # Where the package is installed mypy finds it, and its py.typed, by itself: as a user's does.
    path = {} if package.name == "site-packages" else {"MYPYPATH": str(package)}
    files = [*sorted(folder.glob("*.py")), *sorted(HERE.glob("*.py"))]
    # No public name has a type of these, and reading them is most of a minute.
    (folder / "mypy.ini").write_text(
        "[mypy]\n[mypy-torch.*,transformers.*]\nfollow_imports = skip\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-pretty"]
    run = subprocess.run(
        [*command, "--config-file=mypy.ini", f"--cache-dir={folder / 'cache'}", *map(str, files)],
        env=os.environ | path,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode in (0, 1) and "Found" in run.stdout, run.stdout + run.stderr
    said = defaultdict(set)
    for name, line, code in re.findall(
        r"^(?:.*[/\\])?(\w+\.py):(\d+): error: .*\[([\w-]+)\]$", run.stdout, re.MULTILINE
    ):
        said[name].add((int(line), code))
    assert sum(map(len, said.values())) >= 10, run.stdout
    assert {f"readme_{k}.py" for k in range(2)} <= {file.name for file in files}
    return said


def test_a_program_on_the_public_names_passes(found):
    assert not found["client.py"]


def test_every_mistake_is_reported_and_nothing_else(found):
    lines = (HERE / "mistakes.py").read_text("utf-8").splitlines()
    marked = [(at, line.partition("# wrong: ")[2]) for at, line in enumerate(lines, 2)]
    assert found["mistakes.py"] == {(at, code) for at, code in marked if code and " " not in code}


def test_the_programs_of_the_readme_pass(found):
    assert not {name: errors for name, errors in found.items() if name.startswith("readme")}


def test_what_is_ignored_has_a_code_and_a_reason():
    sources = [*Path(cot_engine.__file__).parent.rglob("*.py")]
    lines = [line for path in sources for line in path.read_text("utf-8").splitlines()]
    ignored = [line for line in lines if "# type: ignore" in line]
    reason = re.compile(r"# type: ignore\[[a-z-]+\]  # \w.{8}")
    assert len(lines) > 10_000 and not [line for line in ignored if not reason.search(line)]
