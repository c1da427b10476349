"""A cell that holds a list of texts, as benchmarks write it into TSV, CSV and JSON texts.

    ['2', 'two']    ["2", "two"]    ['2' 'two']    ['2', 2]

Python's and JSON's spelling, and numpy's, which pandas writes for a column of arrays: there
texts stand side by side, and Python itself would join them. Nothing is evaluated.
"""

from __future__ import annotations

import re

MOST = 1000
"""Entries; more is no list of answers or pictures."""

_TEXT = r"u?'(?:[^'\\]|\\.)*'|u?\"(?:[^\"\\]|\\.)*\""
_ENTRY = re.compile(rf"\s*({_TEXT}|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)", re.DOTALL)
_NEXT = re.compile(r"\s*,\s*|\s+(?=[u'\"])|\s*(?=\]\Z)")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|['\"\\/nrtbf\n])")
_PLAIN = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f", "\n": ""}


def is_bracketed(cell: str) -> bool:
    """Does the cell look like a list, whether or not it is one?"""
    return cell.startswith("[") and cell.endswith("]")


def entries(cell: str) -> list[str] | None:
    """The texts of a cell that holds a list of them, each as it is meant; numbers among them as
    they are written. None for what is no such list: another text, a list in a list, other
    things in it, more than MOST entries, or numbers alone. Those are one answer: benchmarks whose
    answers are vectors write them so, and a list of spellings has texts in it."""
    cell = cell.strip()
    if not is_bracketed(cell):
        return None
    found: list[str] = []
    at, texts = 1, False
    while at < len(cell) - 1 or not found:
        entry = _ENTRY.match(cell, at)
        if entry is None or len(found) == MOST:
            return None
        word = entry[1].removeprefix("u")
        if word[0] in "'\"":
            texts = True
            word = _unescaped(word[1:-1])
        found.append(word)
        after = _NEXT.match(cell, entry.end())
        if after is None:
            return None
        at = after.end()
    return found if texts and at == len(cell) - 1 else None


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text

    def one(match: re.Match[str]) -> str:
        name = match[1]
        return chr(int(name[1:], 16)) if name[0] in "ux" and name[1:] else _PLAIN.get(name, name)

    text = _ESCAPE.sub(one, text)
    # JSON writes what is beyond U+FFFF as two halves. One alone stays: the row is refused for it.
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
