"""Values are values: equal by content, frozen, without room for more; the rest is known by name."""

from __future__ import annotations

from dataclasses import is_dataclass

import pytest

from cot_engine import statistics
from cot_engine.core import answers, chain, match, problem, requests, stages, usage
from cot_engine.judging import judges
from cot_engine.search import (
    budget,
    rejudge,
    session,
    strategy,
)
from cot_engine.search import (
    expand as growth,
)
from cot_engine.search import (
    fill as filling,
)
from cot_engine.search import (
    loop as search,
)
from cot_engine.search import (
    select as arena,
)

STATEFUL = {"Arena", "Growth", "MeteredAsk", "Meter", "Session", "_AsSearched"}
OTHER = {"Continuation", "_Asking", "_NoBackend"}
MODULES = (arena, budget, filling, growth, judges, rejudge)
MODULES += (search, session, stages, statistics, strategy)
MODULES += (answers, chain, match, problem, requests, usage)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_value_is_frozen_and_slotted(module):
    own = [k for k in vars(module).values() if getattr(k, "__module__", "") == module.__name__]
    for kind in own:
        other = not isinstance(kind, type) or issubclass(kind, (Exception, tuple))
        if other or getattr(kind, "_is_protocol", False) or kind.__name__ in OTHER:
            continue
        assert is_dataclass(kind), kind
        frozen = kind.__dataclass_params__.frozen
        assert (frozen and "__slots__" in vars(kind)) == (kind.__name__ not in STATEFUL), kind
