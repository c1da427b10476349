"""Golden files: compare with what is stored, keep the actual output beside it when it differs.

`UPDATE_GOLDEN=1 pytest ...` writes the files anew; read the diff before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"


def check_golden(name: str, actual: str) -> None:
    path = FOLDER / name
    if os.environ.get("UPDATE_GOLDEN") == "1":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(actual, "utf-8")
    expected = path.read_text("utf-8") if path.exists() else None
    if actual != expected:
        kept = path.with_suffix(".actual" + path.suffix)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(actual, "utf-8")
    assert expected is not None, f"{path} does not exist; UPDATE_GOLDEN=1 writes it"
    assert actual == expected, f"differs from {path}; the actual output is kept beside it"
