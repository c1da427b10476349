"""cot-engine: staged reasoning for vision-language models, searched stage by stage.

    from cot_engine import Engine

    with Engine.from_pretrained() as engine:
        print(engine.solve("scene.png", "How many red circles are there?"))

Importing this package loads neither torch nor transformers; names load when first used. They and
their homes stand in `__init__.pyi`, once for type checkers and for this.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

_HOME = {
    words[3]: words[1]
    for words in map(str.split, Path(__file__).with_suffix(".pyi").read_text("utf-8").splitlines())
    if words[:1] == ["from"]
}
__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cot_engine' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
