"""What cells are called: their strategy, its parameters, and what differs within the grid."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from cot_engine.ablation.matching import has, part_of
from cot_engine.core.options import about, options_of
from cot_engine.errors import ConfigError
from cot_engine.options.config import RunConfig


@dataclass(frozen=True, slots=True)
class CellDraft:
    """A cell before its label and budget are known. `axes` are what its entry varies."""

    config: RunConfig
    name: str = ""
    axes: tuple[str, ...] = ()
    matched: bool = False
    rollouts: int | None = None
    plan: str = "default plan"  # what a label calls it
    added: bool = False  # a baseline that the grid did not name


LABELLED = {
    each.name: about(each).label or f"{each.name}={{}}"
    for each in (
        *options_of(RunConfig, "judging", "sampling"),
        *reversed([*options_of(RunConfig, "writing")]),  # an order that stored labels have
    )
    if each.name not in ("seed", "plan")  # of which the grid says more
}
"""What cells can differ in beside strategy and parameters, and how a label tells it."""


def labelled(drafts: list[CellDraft]) -> list[tuple[str, CellDraft]]:
    """A label for each: its name or strategy, its parameters, and the settings that differ within
    the grid. Raises ConfigError for two cells that are the same."""
    usual = {
        key: _most_frequent([getattr(d.config, key) for d in _showing(key, drafts)])
        for key in LABELLED
    }
    usual_plan = _most_frequent([d.plan for d in _showing("plan", drafts)])
    labels: dict[str, CellDraft] = {}
    for draft in drafts:
        parts = [draft.name or draft.config.strategy]
        parameters = _shown(draft.config)
        if draft.name:
            parameters = {k: v for k, v in parameters.items() if k in draft.axes}
        if (
            draft.matched
            and "n" in parameters
            and "n" not in draft.axes
            and has(draft.config, "fill")
        ):
            parameters.pop("n")  # as many as what is allotted pays for
        parts += [f"{key}={value}" for key, value in parameters.items()]
        for key, form in LABELLED.items():
            value = getattr(draft.config, key)
            if value != usual[key] and _shows(draft, key):
                parts.append(form.format(value))
        if draft.plan != usual_plan and _shows(draft, "plan"):
            parts.append(draft.plan)
        if draft.matched:
            parts.append("(matched)")
        label = " ".join(parts)
        if label in labels:
            raise ConfigError(
                f"Two cells of the grid are both {label!r}.",
                "Remove one, or tell them apart by name = ...",
            )
        labels[label] = draft
    return list(labels.items())


def _shows(draft: CellDraft, key: str) -> bool:
    """Whether its label tells this setting: a name says it all, but for what its entry varies."""
    return not draft.name or key in draft.axes


def _showing(key: str, drafts: list[CellDraft]) -> list[CellDraft]:
    """Those whose labels tell it: greedy, which has no judge, has no say in which is usual."""
    return [draft for draft in drafts if _shows(draft, key)] or drafts


def _shown(config: RunConfig) -> dict[str, Any]:
    """The parameters that a label shows: n, and those that are not at their default."""
    part = part_of(config)
    if not is_dataclass(part):
        return dict(config.parameters)
    values = {f.name: (getattr(part, f.name), f.default) for f in fields(part)}
    return {
        name: value
        for name, (value, default) in values.items()
        if name == "n" or (value != default and name != "fill")
    }


def _most_frequent(values: list[Any]) -> Any:
    return max(values, key=values.count)
