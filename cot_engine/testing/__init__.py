"""For tests, ours and yours: a backend made of arithmetic, and the suites every part must pass.

from cot_engine.testing import check_strategy
check_strategy(MyStrategy(n=3))
"""

from cot_engine.backends.scripted import ScriptedBackend, staged_reply
from cot_engine.testing.backends import check_backend, check_exact
from cot_engine.testing.judges import check_judge, check_scorer
from cot_engine.testing.searches import alike, solve_scripted
from cot_engine.testing.strategies import check_strategy

__all__ = [
    "ScriptedBackend",
    "alike",
    "check_backend",
    "check_exact",
    "check_judge",
    "check_scorer",
    "check_strategy",
    "solve_scripted",
    "staged_reply",
]
