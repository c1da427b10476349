"""One call's settings: names and options resolved to parts, checked before a model is asked."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from typing import Any

from cot_engine import plugins
from cot_engine.core.problem import Problem
from cot_engine.core.requests import Sampling
from cot_engine.core.stages import Plan
from cot_engine.errors import ConfigError, InputError, UnknownNameError, shown
from cot_engine.images.load import Image, load_image
from cot_engine.judging.profile import Profile
from cot_engine.judging.protocol import Judge
from cot_engine.options.config import RunConfig, check_question
from cot_engine.search.budget import parse_budget
from cot_engine.search.loop import Named
from cot_engine.search.session import Settings
from cot_engine.search.strategy import Strategy
from cot_engine.search.tournament import TOURNAMENTS

_ENGINES = ("model", "device", "dtype", "quantize", "in_flight")
"""Fields of RunConfig that an engine is made with: a call cannot change them."""
_CALLS = tuple(f.name for f in fields(RunConfig) if f.name not in _ENGINES)


class Run:
    """A RunConfig with its names resolved to parts, checked before any model is asked."""

    def __init__(self, profile: Profile, config: RunConfig | None, options: dict[str, Any]) -> None:
        if config is not None and not isinstance(config, RunConfig):
            raise ConfigError(f"config is a {type(config).__name__}.", "Give a RunConfig.")
        config = config or RunConfig()
        for key in options:
            if key in _ENGINES:
                raise ConfigError(
                    f"{key} is an option of the engine, which cannot change it for one call.",
                    f"Give it where the engine is made: Engine.from_pretrained({key}=...).",
                )
        parts = {key: options[key] for key in ("strategy", "judge") if key in options}
        own = {key: options[key] for key in options if key in _CALLS and key not in parts}
        rest = {key: options[key] for key in options if key not in _CALLS}
        named = {key: value for key, value in parts.items() if isinstance(value, str)}
        if "strategy" in parts and "parameters" not in own:
            own["parameters"] = {}  # those of the config belong to its own strategy
        config = replace(config, **own, **named)
        self._check_known(rest, parts.get("strategy", config.strategy))
        self.config = replace(config, parameters={**config.parameters, **rest})
        self.strategy = self._strategy(parts.get("strategy"))
        self.judge = self._judge(parts.get("judge"), profile)
        c = self.config
        if c.tournament not in TOURNAMENTS:
            raise UnknownNameError("tournament", c.tournament, TOURNAMENTS)
        plan = c.plan if isinstance(c.plan, Plan) else Plan.from_toml(c.plan)
        self.mode = None if c.mode == "auto" else c.mode
        self.settings = Settings(
            plan=plan,
            detail=c.detail,
            sampling=Sampling(c.temperature, c.top_p, c.top_k),
            seed=c.seed,
            budget=parse_budget(c.budget) if c.budget else None,
            tournament=c.tournament,
            orders=c.orders,
            judge_image=c.judge_image,
        )

    @staticmethod
    def _check_known(rest: dict[str, Any], strategy: Any) -> None:
        """What is no option must be a parameter of the strategy: a slip is likelier the former."""
        named = isinstance(strategy, str)
        known = plugins.parameters("strategy", strategy) if named else []
        for key in rest:
            if key not in known:
                kind = "option" + (f", or parameter of the strategy {strategy}," if named else "")
                raise UnknownNameError(f"{kind} called", key, [*_CALLS, *known])

    def _strategy(self, part: Any) -> Named:
        if part is None or isinstance(part, str):
            name = self.config.strategy
            return Named(name, plugins.make("strategy", name, self.config.parameters))
        if self.config.parameters:
            raise ConfigError(
                f"A strategy object was given beside {', '.join(self.config.parameters)}.",
                "The object carries its own; leave these out.",
            )
        if not isinstance(part, Strategy):
            raise ConfigError(
                f"{shown(part)} is not a strategy.", "It needs a method search(task)."
            )
        return Named(type(part).__name__, part)

    def _judge(self, part: Any, profile: Profile) -> Named:
        if part is None or isinstance(part, str):
            name = self.config.judge
            return Named(profile.name_of(name), profile.make_judge(name))
        if not isinstance(part, Judge):
            raise ConfigError(
                f"{shown(part)} is not a judge.", "It needs `symmetric` and async compare()."
            )
        return Named(type(part).__name__, part)

    def problem(self, image: Any, question: str | None = None) -> Problem:
        """A Problem from what the user gave, if it is none already. Its id is then a digest of
        question and images."""
        if isinstance(image, Problem) and question is None:
            return check_problem(image)
        question = check_question(question)  # type: ignore[arg-type]
        if image is None:
            given: list[Any] = []
        else:
            given = list(image) if isinstance(image, (list, tuple)) else [image]
        images = tuple(load_image(item, allow_url=self.config.allow_url) for item in given)
        text = "|".join([question, *(image.digest for image in images)])
        return Problem(hashlib.sha256(text.encode()).hexdigest()[:12], question, images)

    def judge_images(self, problem: Problem) -> tuple[Image, ...]:
        """What the judge sees: the images, or the controls that show whether it looks."""
        match self.settings.judge_image:
            case "blank":
                return tuple(grey(image.size) for image in problem.images)
            case "swap":
                return tuple(other(image, k) for k, image in enumerate(problem.images))
            case _:
                return problem.images


def check_problem(problem: Problem) -> Problem:
    """The problem as it came, if it can be solved. Raises InputError."""
    if not isinstance(problem.id, str) or not problem.id:
        raise InputError(f"A problem's id is a {type(problem.id).__name__}.", "Give a text.")
    check_question(problem.question)
    if not isinstance(problem.images, tuple):
        raise InputError(
            f"The images of problem {shown(problem.id)} are a {type(problem.images).__name__}.",
            "Give a tuple of what load_image() returns.",
        )
    for image in problem.images:
        if not isinstance(image, Image):
            raise InputError(
                f"An image of problem {shown(problem.id)} is a {type(image).__name__}.",
                "Read it with load_image(), or give the image and the question as a pair.",
            )
    return problem


def grey(size: tuple[int, int]) -> Image:
    """A picture that shows nothing."""
    from PIL import Image as Pillow

    return load_image(Pillow.new("RGB", size, (128, 128, 128)))


def other(image: Image, index: int) -> Image:
    """A scene that has nothing to do with `image`, at its size; the same one every time."""
    from cot_engine import scenes

    seed = int(image.digest[:8], 16)
    return load_image(scenes.sample(seed, index, "val").image.resize(image.size))
