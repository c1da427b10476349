"""What the strategy "auto" stands for: the row of the model's profile for the budget of the call.

It has no search of its own, so it is no plug-in but a name: `resolve` puts the strategy that was
chosen in its place, with a sentence that says which and why, and traces record that one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from cot_engine import plugins
from cot_engine.core.stages import Plan
from cot_engine.errors import ConfigError, UnknownNameError
from cot_engine.judging.profile import Profile
from cot_engine.judging.rows import Row
from cot_engine.options.config import RunConfig
from cot_engine.search.budget import Budget

ABOUT = "Whichever strategy pays at the call's budget, by the model's profile; it says which."
"""What `list strategies` says of it."""
STOP = 0.8
"""The share at which a vote is over where no profile says better."""
MOST = 32
"""Responses of a vote whose number was only estimated, at most."""
_VOTE = "weighted-vote"


@dataclass(frozen=True, slots=True)
class Choice:
    """The strategy that was chosen, its parameters without those of the call, and why."""

    strategy: str
    parameters: dict[str, Any]
    why: str

    def with_given(self, given: dict[str, Any]) -> Choice:
        """The same with the call's own parameters, which go before these. Raises UnknownNameError
        for one that the strategy does not have."""
        known = plugins.parameters("strategy", self.strategy)
        if unknown := sorted(given.keys() - set(known)):
            kind = f"parameter of {self.strategy}, which auto chose here, called"
            raise UnknownNameError(kind, unknown[0], known)
        return replace(self, parameters={**self.parameters, **given})

    @property
    def said(self) -> str:
        """The sentence about it."""
        own = [f"{name}={value}" for name, value in self.parameters.items()]
        return f"auto: {' '.join([self.strategy, *own])}, {self.why}."


def is_auto(strategy: Any) -> bool:
    """Whether a strategy is "auto", with parameters or without."""
    return isinstance(strategy, str) and plugins.spelled(strategy)[0] == plugins.AUTO


def given_to(config: RunConfig) -> dict[str, Any]:
    """The parameters that a call gives beside "auto", or in it. Raises ConfigError for one that is
    given twice."""
    _, own = plugins.spelled(config.strategy)
    if twice := sorted(own.keys() & config.parameters.keys()):
        raise ConfigError(f"{config.strategy!r} has {twice[0]}, which is also given beside it.")
    return {**config.parameters, **own}


def choose(profile: Profile, budget: Budget | None, plan: Plan, config: RunConfig) -> Choice:
    """What "auto" stands for in a call with this budget, its own parameters left aside."""
    if not profile.auto:
        return _without_rows(profile, budget, plan, config)
    row, why = _row(profile, budget)
    name, own = plugins.spelled(row.strategy)
    return Choice(name, {**row.parameters, **own}, why)


def _row(profile: Profile, budget: Budget | None) -> tuple[Row, str]:
    last = profile.auto[-1]
    if budget is None:
        return last, "the last row of the model's profile; there is no budget"
    if (worth := _worth(profile, budget)) is None:
        why = "the last row of the model's profile, which does not say what a response costs in"
        return last, f"{why} {budget.unit}; the search ends where the budget does"
    for row in profile.auto:
        if worth <= row.upto:
            why = f"the profile's row for up to {_samples(row.upto)}"
            return row, f"{why}; the budget is worth {worth:.3g}"
    return last, f"the profile's last row; the budget is worth {_samples(worth)}"


def _worth(profile: Profile, budget: Budget) -> float | None:
    """The budget in multiples of what one response costs; None where nobody has measured that."""
    cost = (profile.sample or {}).get(budget.unit)
    return None if cost is None else budget.amount / cost


def _samples(count: float) -> str:
    return f"{count:.3g} sample{'' if count == 1 else 's'}"


def _without_rows(profile: Profile, budget: Budget | None, plan: Plan, config: RunConfig) -> Choice:
    """A vote that stops when it knows, where a verifier gives the weights; without one a vote of as
    many as the budget is known to pay for; else what is searched with by default."""
    missing = "since the model's profile has no table of strategies"
    if (verifier := _verifier(profile, config)) is not None:
        named = {} if verifier == profile.verifier else {"verifier": verifier}
        return Choice(_VOTE, {"stop": STOP, **named}, f"{missing} but a verifier, {verifier}")
    if budget is not None and (found := _affordable(profile, budget, plan)) is not None:
        n, of = found
        why = f"{missing} and no verifier: as many as {budget} pay for at {of}"
        return Choice(_VOTE, {"n": n, "verifier": "likelihood"}, why)
    default = RunConfig()
    if budget is None:
        why = f"{missing} and no verifier, and there is no budget to go by"
    else:
        why = f"{missing} and no verifier, and what a response costs in {budget.unit} is not known"
    return Choice(default.strategy, {}, why)


def _verifier(profile: Profile, config: RunConfig) -> str | None:
    """Who gives weights: the profile's verifier, or the probe that reads the model's states."""
    probe = config.probe not in ("auto", "none") or (config.probe == "auto" and profile.probe)
    if profile.verifier is not None and (profile.verifier != "states" or probe):
        return profile.verifier
    return "states" if probe else None


def _affordable(profile: Profile, budget: Budget, plan: Plan) -> tuple[int, str] | None:
    """How many responses a budget pays for, and what one was taken to cost; None: nobody knows."""
    if (worth := _worth(profile, budget)) is not None:
        count, of = worth, "what the profile says of one"
    elif budget.unit == "calls":
        count, of = budget.amount, "a call each"
    elif budget.unit == "new tokens":
        most = sum(stage.length for stage in plan)
        count, of = budget.amount / most, f"{most:,} each, the most that all stages may have"
    else:
        return None
    return max(1, min(MOST, int(count))), of


def possible(profile: Profile, config: RunConfig) -> Iterator[RunConfig]:
    """All that "auto" may come to with this profile, whatever the budget: for what results are
    filed by. A parameter that a row's strategy does not have is left out there."""
    rows = [(row.strategy, row.parameters) for row in profile.auto]
    rows = rows or [(_VOTE, {}), (RunConfig().strategy, {})]
    given = given_to(config)
    for strategy, parameters in rows:
        name, own = plugins.spelled(strategy)
        known = plugins.parameters("strategy", name)
        more = {key: value for key, value in given.items() if key in known}
        yield replace(config, strategy=name, parameters={**parameters, **own, **more})
