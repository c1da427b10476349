"""What a table would cost, before anything is loaded: `ablate TABLE --dry-run`.

Estimates, by what is said with them: nobody knows how much a model will write.
"""

from __future__ import annotations

import json as _json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cot_engine.backends.local.needs import PICTURE, PROMPT, read_needs
from cot_engine.backends.opening import backend_of
from cot_engine.cli.table_text import aligned

if TYPE_CHECKING:
    from cot_engine.ablation.grid import Ablation, Cell
    from cot_engine.ablation.table_choice import Chosen
    from cot_engine.ablation.table_data import Asked

RESPONSE = 512
"""Tokens that a whole response is taken to have."""
_SAID = (
    f"Estimates: a response of {RESPONSE} tokens, a prompt of {PROMPT} and its pictures"
    f" ({PICTURE[0]} x {PICTURE[1]}); of n candidates n - 1 matches, each read in both orders;"
    " a matched row what its reference takes; two floating-point operations a token and parameter."
    " The store has what searches did take, once some are done."
)


def estimate(cell: Cell, grid: Ablation, picture: int) -> float:
    """Tokens that one search computes: prefilled and written, judging included."""
    if cell.match is not None:
        if cell.match.unit in ("tokens", "new tokens") and cell.match.amount is not None:
            return cell.match.amount
        if grid.reference is not None:
            return estimate(grid.cell(grid.reference), grid, picture)
    n = cell.n or 1
    judged = 0 if cell.config.strategy == "majority" else 4 * (n - 1) * RESPONSE
    return PROMPT + picture + n * RESPONSE + judged


def show_cost(chosen: Chosen, asked: Mapping[str, Asked], json: bool) -> None:
    """Print it."""
    told = [_checkpoint(name, grids, asked) for name, grids in chosen.grids.items()]
    if json:
        found = {"checkpoints": told, "left_out": list(chosen.left_out), "assumed": _SAID}
        print(_json.dumps(found, indent=2))
        return
    body = [
        [each["checkpoint"], line["row"], line["benchmark"], f"{line['searches']:,}",
         f"{line['tokens']:.3g}", _flops(line["flops"])]
        for each in told for line in each["lines"]
    ]  # fmt: skip
    for each in told:
        sums = (f"{each['searches']:,}", f"{each['tokens']:.3g}", _flops(each["flops"]))
        body.append([each["checkpoint"], "all", "all", *sums])
    heads = ["checkpoint", "row", "benchmark", "searches", "tokens", "flops"]
    print("\n".join([*aligned(heads, body), "", _SAID, *chosen.left_out]))


def _flops(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _checkpoint(
    name: str, grids: Mapping[str, Ablation], asked: Mapping[str, Asked]
) -> dict[str, Any]:
    config = next(iter(grids.values())).run
    parameters, picture = _size(config.model)
    lines = []
    for benchmark, grid in grids.items():
        for cell in grid.cells:
            searches = len(asked[benchmark].data.items) * len(grid.seeds)
            tokens = searches * estimate(cell, grid, picture)
            flops = None if parameters is None else 2 * parameters * tokens
            lines.append(
                {"row": cell.label, "benchmark": benchmark, "searches": searches}
                | {"tokens": tokens, "flops": flops}
            )
    known = [line["flops"] for line in lines if line["flops"] is not None]
    return {
        "checkpoint": name,
        "model": config.model,
        "parameters": parameters,
        "searches": sum(line["searches"] for line in lines),
        "tokens": sum(line["tokens"] for line in lines),
        "flops": sum(known) if len(known) == len(lines) else None,
        "lines": lines,
    }


def _size(model: str) -> tuple[int | None, int]:
    """How many parameters it has, None where nobody says; and tokens of a picture."""
    if backend_of(model) != "local":
        return None, PROMPT
    found = read_needs(model)
    return None if found.packed else found.numbers, found.places(PICTURE) or PROMPT
