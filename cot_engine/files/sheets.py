"""Lines of CSV and TSV that spreadsheets open, harmless to them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from typing import Any

_FORMULA = re.compile(r"[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def sheet_line(cells: Iterable[Any], delimiter: str = ",") -> str:
    """One line of a table, with its end. A text that a spreadsheet would take for a formula has an
    apostrophe before it; numbers stay as they are, also those that are texts."""
    line = io.StringIO()
    # With this end of a line, a line feed and a carriage return alone are quoted.
    writer = csv.writer(line, delimiter=delimiter, lineterminator="\r\n")
    writer.writerow(map(_harmless, cells))
    return line.getvalue().removesuffix("\r\n") + "\n"


def without_apostrophe(cell: str) -> str:
    """The text that `sheet_line` wrote a cell for."""
    return cell[1:] if cell.startswith("'") and _harmless(cell[1:]) == cell else cell


def _harmless(cell: Any) -> Any:
    formula = isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell)
    return f"'{cell}" if formula else cell
