"""Whatever a backend answers or raises."""

from __future__ import annotations

from dataclasses import replace

import pytest
from beams import Beam
from broken_parts import RAISED, REPLIES, Lost, Raising, broken, changed, names, solved

from cot_engine import Engine
from cot_engine.core.events import Failed
from cot_engine.errors import ConfigError, ModelError, StrategyError
from cot_engine.judging.judges import SelfJudge
from cot_engine.search.budget import Budget
from cot_engine.search.session import Settings
from cot_engine.testing import ScriptedBackend


@pytest.mark.parametrize("said", REPLIES)
def test_what_a_backend_answers_is_checked(said):
    bad = {"backend": changed(*REPLIES[said]), "judge": SelfJudge()}
    text = broken(said, ModelError, strategy=Beam(3), **bad)
    assert "The backend Bad" in text


@pytest.mark.parametrize("error", [e for e in RAISED if not isinstance(e, ModelError)], ids=names)
def test_whatever_a_backend_raises_is_an_error_of_the_model(error):
    class Failing(Lost):
        pass

    Failing.error = error
    if isinstance(error, (ConfigError, StrategyError)):
        return  # raised on purpose, in our words
    broken(f"The backend Failing raised {names(error)}", ModelError, backend=Failing(),
           judge=SelfJudge())  # fmt: skip


def test_a_backend_whose_estimates_are_no_usage():
    class Guessing(ScriptedBackend):
        def estimate(self, request):
            return None

    settings = Settings(budget=Budget(1e12, "flops"))
    broken("gave None as usage", ModelError, backend=Guessing(), settings=settings)


def test_a_backend_that_cannot_forget_hides_no_other_error():
    class Holding(ScriptedBackend):
        def release(self, scope):
            super().release(scope)
            raise OSError("held")

    error, heard, _, _ = solved(backend=Holding(), judge=Raising(ValueError("odd")))
    assert isinstance(error, StrategyError) and "odd" in str(error)
    error, heard, _, _ = solved(backend=Holding())
    assert isinstance(error, ModelError) and isinstance(heard[-1], Failed)


def test_a_backend_that_breaks_at_the_first_question_of_all():
    """The one that finds out the mode, which no search has asked."""

    class Crashing(ScriptedBackend):
        async def generate(self, request):
            raise RuntimeError("a defect")

    empty = changed("generate", lambda r: replace(r, generations=()))
    for backend, said in ((Crashing(), "raised RuntimeError: a def"), (empty, "gave 0 replies")):
        with Engine(backend) as engine, pytest.raises(ModelError, match=said):
            engine.solve(None, "How many?")
        assert all(scope.startswith("probe") for scope in backend.released)
