"""One call's options made into parts: read, checked and resolved once, before a model is asked."""

from __future__ import annotations

from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any, Literal

from cot_engine import plugins
from cot_engine.core.options import options_of, shared
from cot_engine.core.requests import Sampling
from cot_engine.core.stages import Plan
from cot_engine.errors import ConfigError, UnknownNameError, shown
from cot_engine.judging.profile import Profile
from cot_engine.judging.protocol import Judge
from cot_engine.options.auto import Choice, choose, given_to, is_auto
from cot_engine.options.config import ENGINE, KEYS, RunConfig
from cot_engine.search.budget import Budget, parse_budget
from cot_engine.search.loop import Named
from cot_engine.search.session import Settings
from cot_engine.search.tournament import TOURNAMENTS

_CALLS = tuple(key for key in KEYS if key not in ENGINE)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A RunConfig with its names made into parts: good for any number of problems. `plan` is still
    to be fitted to each; `notes` say what was chosen, where the choice was left open."""

    config: RunConfig
    strategy: Named
    judge: Named
    plan: Plan
    budget: Budget | None
    notes: tuple[str, ...] = ()

    def plain(self, images: int) -> dict[str, Any]:
        """All options of a problem with so many pictures, as values of JSON: names for the parts,
        the plan as its tags."""
        part, c = self.strategy.part, self.config
        values = {f.name: getattr(c, f.name) for f in options_of(RunConfig)}
        own = asdict(part) if is_dataclass(part) and not isinstance(part, type) else c.parameters
        named = {"strategy": self.strategy.name, "parameters": own, "judge": self.judge.name}
        return {**values, **named, "plan": [stage.tag for stage in self.plan.fit(images)]}

    def settings(self, plan: Plan, mode: Literal["trained", "prompted"]) -> Settings:
        """How a problem is searched that `plan` was fitted to."""
        c = self.config
        sampling = Sampling(c.temperature, c.top_p, c.top_k)
        return Settings(plan=plan, mode=mode, sampling=sampling, budget=self.budget, **shared(c))


Given = RunConfig | Resolved | None
"""What a call may be given its options as."""


def resolve(
    profile: Profile,
    config: Given = None,
    options: dict[str, Any] | None = None,
) -> Resolved:
    """A call's options as parts, those of `options` going before those of `config`: fields of
    RunConfig, a strategy or a judge as an object, and parameters of the strategy.

    What is resolved already stays as it is. Raises ConfigError and UnknownNameError.
    """
    options = options or {}
    for key in options:
        if key in ENGINE:
            raise ConfigError(
                f"{key} is an option of the engine, which cannot change it for one call.",
                f"Give it where the engine is made: Engine.from_pretrained({key}=...).",
            )
    if isinstance(config, Resolved):
        if options:  # its strategy and judge may be objects, which its RunConfig does not hold
            raise ConfigError(
                f"{', '.join(options)} was given beside options that are resolved.",
                "Give it to resolve() with the others.",
            )
        return config
    if config is not None and not isinstance(config, RunConfig):
        raise ConfigError(f"config is a {type(config).__name__}.", "Give a RunConfig.")
    config = config or RunConfig()
    parts = {key: options[key] for key in ("strategy", "judge") if key in options}
    own = {key: options[key] for key in options if key in _CALLS and key not in parts}
    rest = {key: options[key] for key in options if key not in _CALLS}
    named: dict[str, Any] = {key: value for key, value in parts.items() if isinstance(value, str)}
    if "strategy" in parts and "parameters" not in own:
        own["parameters"] = {}  # those of the config belong to its own strategy
    config = replace(config, **own, **named)
    plan = config.plan if isinstance(config.plan, Plan) else Plan.from_toml(config.plan)
    budget = parse_budget(config.budget) if config.budget else None
    part = parts.get("strategy", config.strategy)
    chosen = choose(profile, budget, plan, config) if is_auto(part) else None
    _check_known(rest, part if chosen is None else chosen.strategy)
    config = replace(config, parameters={**config.parameters, **rest})
    if chosen is not None:
        chosen = chosen.with_given(given_to(config))
    strategy = _strategy(parts.get("strategy"), config, chosen)
    judge = _judge(parts.get("judge"), config, profile)
    check_tournament(config.tournament)
    notes = () if chosen is None else (chosen.said,)
    return Resolved(config, strategy, judge, plan, budget, notes)


def checked(call: Resolved) -> Resolved:
    """The call, if its strategy's `verifier` can be made: else all would be written before anybody
    is told. It may read a file: not for names that nobody knows the giver of. Raises ConfigError
    and UnknownNameError."""
    name = getattr(call.strategy.part, "verifier", None)
    if isinstance(name, str) and name != plugins.AUTO:
        plugins.make("scorer", name)
    return call


def check_tournament(name: str) -> None:
    """Raises UnknownNameError."""
    if name not in TOURNAMENTS:
        raise UnknownNameError("tournament", name, TOURNAMENTS)


def _check_known(rest: dict[str, Any], strategy: Any) -> None:
    """What is no option must be a parameter of the strategy: a slip is likelier the former."""
    named = isinstance(strategy, str)
    known = plugins.parameters("strategy", strategy) if named else []
    for key in rest:
        if key not in known:
            kind = "option" + (f", or parameter of the strategy {strategy}," if named else "")
            raise UnknownNameError(f"{kind} called", key, [*_CALLS, *known])


def _strategy(part: Any, config: RunConfig, chosen: Choice | None) -> Named:
    if chosen is not None:
        made = plugins.make("strategy", chosen.strategy, chosen.parameters)
        return Named(chosen.strategy, made)
    given = config.strategy if part is None or isinstance(part, str) else part
    made = plugins.make("strategy", given, config.parameters)
    return Named(given if isinstance(given, str) else type(given).__name__, made)


def _judge(part: Any, config: RunConfig, profile: Profile) -> Named:
    if isinstance(part, Named):
        return part
    if part is None or isinstance(part, str):
        return Named(profile.name_of(config.judge), profile.make_judge(config.judge))
    if not isinstance(part, Judge) and callable(getattr(part, "score", None)):
        return Named(type(part).__name__, plugins.make("judge", part))
    if not isinstance(part, Judge):
        raise ConfigError(
            f"{shown(part)} is not a judge.", "It needs `symmetric` and async compare()."
        )
    return Named(type(part).__name__, part)
