"""Rows of a name and what is said of it, in two columns."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Collection

from cot_engine.escape import terminal


def show(rows: Collection[tuple[str, list[str]]]) -> None:
    """Print each row's texts behind its name, as wide as the terminal."""
    indent = max((len(name) for name, _ in rows), default=0) + 2
    for name, said in rows:
        first, *others = [line for text in said for line in _wrapped(terminal(text), indent)]
        print(f"{terminal(name):<{indent}}{first}")
        for line in others:
            print(f"{'':<{indent}}{line}")


def _wrapped(text: str, indent: int) -> list[str]:
    """Lines that fit the terminal; one line where there is none."""
    if not sys.stdout.isatty():
        return [text]
    columns = max(20, shutil.get_terminal_size().columns - indent)
    return textwrap.wrap(text, columns, break_long_words=False, break_on_hyphens=False) or [""]
