"""cot-engine: staged reasoning for vision-language models, searched stage by stage.

    from cot_engine import Engine

    with Engine.from_pretrained() as engine:
        print(engine.solve("scene.png", "How many red circles are there?"))

Importing this package loads neither torch nor transformers; names load when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "answers": ("majority", "normalise_answer"),
    "backends": ("Backend", "BackendInfo", "Headway"),
    "boundaries": ("Until", "sentence_end"),
    "budget": ("Budget", "parse_budget"),
    "checks": ("check_extra", "check_range", "spread"),
    "config": ("RunConfig",),
    "engine": ("Engine",),
    "errors": (
        "BudgetError",
        "ConfigError",
        "CotEngineError",
        "ImageError",
        "InputError",
        "ModelError",
        "StrategyError",
        "TraceError",
        "UnknownNameError",
    ),
    "events": ("Event", "Progress", "Trace", "TraceFile"),
    "images": ("Image", "load_image"),
    "judges": (
        "Ask",
        "Case",
        "Judge",
        "LikelihoodScorer",
        "OracleJudge",
        "RandomJudge",
        "RationaleJudge",
        "Scorer",
        "ScorerJudge",
        "SelfJudge",
        "SelfLikelihoodJudge",
    ),
    "profile": ("Profile",),
    "stages": ("DEFAULT_PLAN", "Plan", "Stage", "conclusion", "read"),
    "strategy": ("Expand", "Score", "Search", "Select", "Strategy", "Task"),
    "types": (
        "Answer",
        "Beam",
        "Chain",
        "Choose",
        "Chosen",
        "Generate",
        "Generated",
        "Generation",
        "Match",
        "Problem",
        "Prompt",
        "Sampling",
        "Segment",
        "Step",
        "Usage",
        "Verdict",
    ),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cot_engine' has no attribute {name!r}")
    value = getattr(import_module(f"cot_engine.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if TYPE_CHECKING:
    from cot_engine.engine import Engine as Engine
    from cot_engine.stages import Plan as Plan
