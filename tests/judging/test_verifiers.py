"""Verifiers: what they ask, how it is read, who pays, and what is said of what will not do.

On the scripted model; `test_recipes.py` has real ones.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from cot_engine import (
    Chain,
    Engine,
    HeadVerifier,
    Problem,
    Profile,
    ScorerJudge,
    Segment,
    Step,
    TextJudge,
    TextVerifier,
    TokenJudge,
    TokenVerifier,
    Verifier,
    plugins,
)
from cot_engine.core.events import Finished, Notice, Scored, Selected
from cot_engine.core.requests import Measure
from cot_engine.core.stages import DEFAULT_PLAN
from cot_engine.errors import (
    BackendGone,
    ConfigError,
    InputError,
    ModelError,
    StrategyError,
)
from cot_engine.judging.judges import SelfJudge
from cot_engine.judging.protocol import Case
from cot_engine.judging.verifiers.files import recipes
from cot_engine.judging.verifiers.words import steps_of
from cot_engine.search.strategy import Expand, Score
from cot_engine.testing import ScriptedBackend, check_judge, check_scorer
from cot_engine.testing.judges import MadeAsk

PLAN = DEFAULT_PLAN.fit(0)
SUMMARY = "<SUMMARY>One two.\n\nThree.</SUMMARY>"
REASONING = "<REASONING>First. So second.</REASONING>"


def chain(*texts: str) -> Chain:
    made = Chain()
    for at, text in enumerate(texts):
        step = Step(text, (Segment(text, (1,)),), "SUMMARY", -1.0, 1, "stop")
        made = made.grow(at, step, False)
    return made


def case(about: str = "whole", stage: str = "") -> Case:
    return Case(Problem("p", "How many?"), PLAN, about, PLAN[stage] if stage else None, ())


class Told(MadeAsk):
    """Keeps what it was asked, and gives the numbers of a function of place and dialogue."""

    def __init__(self, numbers=None, **more):
        super().__init__(**more)
        self.numbers, self.dialogues, self.prompts = numbers, [], []

    async def measure(self, dialogues, choices=()):
        self.dialogues += dialogues
        if self.numbers is None:
            return await super().measure(dialogues, choices)
        return [tuple(self.numbers(at) for at in range(d.places)) for d in dialogues]

    async def write(self, prompt, tails, *rest):
        self.prompts += tails
        return await super().write(prompt, tails, *rest)


def score(verifier, *chains, ask=None, about="whole", stage=""):
    return asyncio.run(verifier.score(chains, case(about, stage), ask or Told()))


# --- the contract --------------------------------------------------------------------------------


@pytest.fixture
def head(tmp_path):
    save_file(
        {
            "v_head.summary.weight": np.array([[2.0, 0.5]], np.float32),
            "v_head.summary.bias": np.array([0.25], np.float32),
        },
        tmp_path / "head.safetensors",
    )
    return str(tmp_path / "head.safetensors")


def test_all_kinds_keep_the_contract(head):
    check_scorer(TokenVerifier())
    check_scorer(TokenVerifier(number="logit"))
    check_scorer(HeadVerifier(head=head, centre=3.0, spread=2.0))
    check_scorer(TextVerifier(missing=50))
    check_judge(TokenJudge())
    check_judge(TextJudge())
    check_judge(ScorerJudge(TokenVerifier()))


# --- what is asked -------------------------------------------------------------------------------


def test_each_step_is_a_turn_and_the_verdict_the_assistants_place():
    verifier = Verifier.recipe("vl-prm", model="")
    one = chain(SUMMARY, REASONING)
    ask = Told(lambda at: (np.log(0.1 * (1 + at)), np.log(1 - 0.1 * (1 + at))))
    (value,) = score(verifier, one, ask=ask)
    assert value == pytest.approx((0.1 + 0.2 + 0.3) / 3)
    (dialogue,) = ask.dialogues
    assert [turn.speaker for turn in dialogue.turns] == ["system", *["user", "assistant"] * 3]
    assert [turn.text for turn in dialogue.turns[1::2]] == [
        "### Question:\nHow many?\n\n### Solution Process:\nOne two.",
        "Three.",
        "First. So second.",
    ]
    assert {turn.text for turn in dialogue.turns[2::2]} == {"+"} and dialogue.places == 3
    assert not dialogue.opens
    # Where a step is what counts, only what the last growth brought does.
    assert score(verifier, one, ask=ask, about="step") == [pytest.approx(0.3)]
    for aggregate, wanted in (("min", 0.1), ("last", 0.3), ("product", 0.006)):
        assert score(replace(verifier, aggregate=aggregate), one, ask=ask) == [
            pytest.approx(wanted)
        ]


def test_steps():
    one = chain(SUMMARY, "<REASONING>First. So ", "second.")
    texts = {by: [text for _, text in steps_of(one, PLAN, by)[0]] for by in ("stage", "sentence")}
    assert texts["stage"] == ["One two.\n\nThree.", "First. So second."]
    assert texts["sentence"] == ["One two.", "Three.", "First.", "So second."]
    assert steps_of(one, PLAN, "sentence")[1] == 1 and steps_of(one, PLAN, "stage")[1] == 1
    assert [t for _, t in steps_of(one, PLAN, "search")[0]][1:] == ["First. So", "second."]
    bare = chain("It is so.", "Two.")
    assert [text for _, text in steps_of(bare, PLAN, "stage")[0]] == ["It is so.", "Two."]


def test_what_a_model_wrote_is_data_and_braces_in_it_are_no_fields():
    verifier = TokenVerifier(ask="{{literal}} <own> Right? {sentence}", sentence="Is it?")
    ask = Told()
    score(verifier, chain("{question} <|im_end|>"), ask=ask)
    pieces = ask.dialogues[0].turns[0].pieces
    assert "{question} <|im_end|>" in [piece.text for piece in pieces if not piece.own]
    assert pieces[-1].own is False and pieces[-1].text == "Is it?"
    assert any("{literal} <own>" in piece.text for piece in pieces if piece.own)


def test_a_stage_has_its_sentence():
    ask = Told()
    score(Verifier.recipe("yes-no"), chain(SUMMARY), ask=ask, about="step", stage="SUMMARY")
    assert "Does this summary fit the question?" in ask.dialogues[0].turns[0].text


def test_numbers(head):
    one = chain(SUMMARY)
    logs = (np.log(0.06), np.log(0.02))
    told = Told(lambda at: logs)
    assert score(TokenVerifier(), one, ask=told) == [pytest.approx(0.75)]
    assert score(TokenVerifier(number="logit"), one, ask=told) == [pytest.approx(np.log(3))]
    rated = TokenVerifier(values=(1, 5), low=1, high=5)
    assert score(rated, one, ask=told) == [pytest.approx(0.25)] and rated.scale == "probability"
    state = Told(lambda at: (3.0, 1.0))
    assert score(HeadVerifier(head=head), one, ask=state) == [pytest.approx(6.75)]
    scaled = HeadVerifier(head=head, centre=2.75, spread=2.0)
    assert score(scaled, one, ask=state) == [pytest.approx(2.0)] and scaled.scale == "logit"
    assert HeadVerifier().scale == "any"
    assert score(HeadVerifier(output=1), one, ask=state) == [1.0]
    assert TextVerifier().parse("Well. Score: 80. Or rather, score is **75**.") == 75.0
    assert TextVerifier().parse(" 64 ") == 64.0
    assert score(TextVerifier(), one, ask=Told(reply="Score: 25")) == [0.25]
    assert TextVerifier().parse("Score: .5, of course. Score: 1e9") == 0.5
    assert TextVerifier().parse("Score: 8/100") == TextVerifier().parse("8/100") == 8.0


def test_verdicts_in_writing():
    judge = TextJudge()
    said = {
        "Choice: 1": "first",
        "answer 2": "second",
        "Choice: 1. Choice: 2.": "tie",
        "2": "second",
    }
    for reply, outcome in said.items():
        assert judge.parse(reply).outcome == outcome, reply
    scores = TextJudge(pattern=r"(\d+) and (\d+)")
    assert scores.parse("They get 8 and 3.").margin == 5.0 and not scores.parse("").readable
    pair = Verifier.recipe("llava-critic-pair", model="")
    assert pair.parse("The second response is better, as it counts.").outcome == "second"
    assert pair.parse("They are equally good.").outcome == "tie"
    assert pair.parse("They are equally good.").readable and not pair.parse("Hm.").readable


# --- what will not do ----------------------------------------------------------------------------

BAD = {
    "text without a score": (TextVerifier(), Told(reply="It is fine."), InputError, "no score"),
    "a score of another range": (
        *(TextVerifier(), Told(reply="Score: 140"), InputError, "its range is 0 to 100"),
    ),
    "out of another range": (
        *(TextVerifier(), Told(reply="Score: 8 out of 10"), InputError, "8 of 10, and its range"),
    ),
    "a part of a number": (TextVerifier(), Told(reply="Score: 1,000"), InputError, "no score"),
    "more than a number": (
        *(TextVerifier(ask="?"), Told(reply="Score: " + "9" * 500), InputError, "inf, which is no"),
    ),
    "NaN": (HeadVerifier(), Told(lambda at: (float("nan"),)), InputError, "no score"),
    "not answering": (
        *(
            TokenVerifier(least_mass=0.5),
            Told(lambda at: (-5.0, -5.0)),
            InputError,
            "not answering",
        ),
    ),
    "a stage that is not there": (
        *(TokenVerifier(ask="{REASONING}?"), Told(), InputError, "no such stage"),
    ),
    "another output": (HeadVerifier(output=2), Told(lambda at: (1.0,)), ConfigError, "output is 2"),
    "other weights": (HeadVerifier(digest="abc"), Told(), ConfigError, "weights abc"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_said(name):
    verifier, ask, kind, match = BAD[name]
    with pytest.raises(kind, match=match):
        score(verifier, chain(SUMMARY), ask=ask)


def test_nothing_written_has_no_steps():
    with pytest.raises(InputError, match="no step to verify"):
        score(Verifier.recipe("vl-prm", model=""), Chain())


def test_a_head_of_another_width_is_refused(head):
    with pytest.raises(ConfigError, match="reads states of 2 numbers; the model's have 3"):
        score(HeadVerifier(head=head), chain(SUMMARY), ask=Told(lambda at: (1.0, 2.0, 3.0)))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('kind = "tokens"', "Did you mean token"),
        ('kind = "head"\npairwise = true', "not pairwise"),
        ('kind = "token"\nhead = "x.safetensors"', "no key of .verifier of kind token"),
        ('kind = "head"\nhead = "gone.safetensors"', "is not there"),
        ('kind = "token"\n[[turns]]\ntext = "{anwser}"', "Did you mean answer"),
        ('kind = "token"\n[[turns]]\ntext = "{step}"', "each = true"),
        ('kind = "text"\n[[turns]]\ntext = "a"\n[[turns]]\ntext = "b"', "2 turns"),
        ('kind = "text"\nlow = 5\nhigh = 1', "smaller end"),
        (
            'kind = "token"\nmodel = "http://x/v1"\n[options]\nkey_env = "HOME"',
            "COT_ENGINE_API_KEY",
        ),
        ('kind = "token"\nchoices = ["yes"]', "at least two"),
        ("kind = ", "not valid TOML"),
        ('kind = "token"\nmodel = 5', "model is 5"),
        ('kind = "head"\nhead = "v.toml"', "is no safetensors file"),
    ],
)
def test_a_file_that_will_not_do_is_named(tmp_path, text, match):
    path = tmp_path / "v.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=match) as caught:
        Verifier.from_toml(path)
    assert "v.toml" in str(caught.value)


# --- names and files -----------------------------------------------------------------------------


def test_a_verifier_may_be_named_wherever_a_scorer_or_a_judge_may(tmp_path):
    (tmp_path / "models" / "m").mkdir(parents=True)
    path = tmp_path / "mine.toml"
    path.write_text('kind = "token"\nmodel = "models/m"\n[options]\ndevice = "cpu"', "utf-8")
    found = Verifier.from_toml(path)
    assert found.bindings[0].model == str(tmp_path / "models" / "m")
    assert found.bindings[0].parameters == (("device", "cpu"),)
    assert plugins.make("scorer", str(path)) == found
    assert plugins.make("judge", str(path)) == ScorerJudge(found)
    assert plugins.make("judge", "yes-no") == ScorerJudge(plugins.make("scorer", "yes-no"))
    own = plugins.make("judge", 'token(pairwise=true, ask="Which, 1 or 2?", least_mass=0)')
    assert isinstance(own, TokenJudge) and own.ask == "Which, 1 or 2?"
    (tmp_path / "cot_engine.json").write_text(json.dumps({"judge": "mine.toml"}), "utf-8")
    assert Profile.of(tmp_path).make_judge() == ScorerJudge(found)
    with pytest.raises(ConfigError, match="compares pairs"):
        plugins.make("scorer", "llava-critic-pair")
    assert not plugins.reaches_out("yes-no") and plugins.reaches_out("yes-no(model=x)")


def test_every_recipe_that_ships_can_be_made(tmp_path):
    save_file({"w": np.zeros((1, 4), np.float32)}, tmp_path / "value_head.safetensors")
    for name in recipes():
        verifier = Verifier.recipe(name, model=str(tmp_path))
        assert verifier.bindings[0].model == str(tmp_path)
    assert {"yes-no", "skywork-vl", "vl-prm", "visualprm", "llava-critic", "ixc"} <= set(recipes())


# --- in a search ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class BestBy:
    """Samples n whole responses and takes what a verifier gives the highest number."""

    verifier: str = "yes-no"
    n: int = 3
    probability: bool = True

    def search(self, task):
        grown = yield Expand(task.start, until="end", n=self.n)
        numbers = yield Score(grown, self.verifier, "whole", self.probability)
        return grown[numbers.index(max(numbers))]


def longest(text: str) -> float:
    return len(text) / 50


def test_a_verifier_of_the_same_model_is_metered_in_its_own_role():
    backend = ScriptedBackend(prefer=longest)
    with Engine(backend) as engine:
        answer = engine.solve(None, "How many?", strategy=BestBy(), seed=3)
    (scored,) = [event for event in answer.trace if isinstance(event, Scored)]
    assert set(answer.usage) == {"generate", "verify"} and scored.verified == scored.usage
    assert answer.usage["verify"] == scored.usage and scored.usage.calls == 3
    assert max(scored.scores, key=scored.scores.get) == answer.chain.id
    assert all(0 <= number <= 1 for number in scored.scores.values())
    assert answer.trace.fold().usage == answer.usage


def test_a_judge_bound_to_another_model_is_metered_there_and_closed_by_who_made_it():
    own, other = ScriptedBackend(), ScriptedBackend(prefer=longest)
    judge = TokenVerifier(model=other, choices=("yes", "no"))
    with Engine(own, judge=judge) as engine:
        answer = engine.solve(None, "How many?", strategy="stage-beam", n=3)
        list(engine.solve_many([(None, "How many?")] * 2, strategy="stage-beam", n=3))
    measured = [request for request in other.requests if isinstance(request, Measure)]
    assert measured and all(not isinstance(r, Measure) for r in own.requests)
    assert set(answer.usage) == {"generate", "verify"} and answer.usage["verify"].flops > 0
    chosen = [event for event in answer.trace if isinstance(event, Selected) and event.matches]
    assert chosen and all(event.verified == event.usage for event in chosen)
    assert len(other.released) == 3 and not other.closed


def test_a_budget_counts_verifiers_and_stops_before_them():
    """The whole never costs more, whatever is left for verifying."""
    for tokens in (120, 200, 400, 900):
        backend, other = ScriptedBackend(), ScriptedBackend()
        judge = TokenVerifier(model=other)
        with Engine(backend) as engine:
            answer = engine.solve(
                None,
                "How many?",
                strategy="stage-beam",
                n=3,
                judge=judge,
                budget=f"{tokens} tokens",
            )
        spent = sum(used.tokens for used in answer.usage.values())
        assert spent <= tokens and answer.left == tokens - spent
    assert "verify" in answer.usage


def test_what_a_verifier_cannot_score_is_scored_by_likelihood_and_said():
    with Engine(ScriptedBackend()) as engine:
        strategy = BestBy("text(length=40)")  # the scripted model writes stages, and no score
        answer = engine.solve(None, "How many?", strategy=strategy)
    said = [event.text for event in answer.trace if isinstance(event, Notice)]
    assert any("Scored by likelihood" in text and "no score" in text for text in said)
    assert isinstance(answer.trace.events[-1], Finished)


class Mute(ScriptedBackend):
    """A backend of before there was anything to measure."""

    measure = None


@dataclass
class Dying(ScriptedBackend):
    """Answers some requests, and then never again; or numbers that are none."""

    lives: int = 2
    broken: bool = False

    async def measure(self, request):
        self.lives -= 1
        if self.lives < 0:
            raise BackendGone("The server at http://x does not answer.", "Is it running?")
        found = await super().measure(request)
        if not self.broken:
            return found
        nan = tuple(tuple((float("nan"),) * len(p) for p in places) for places in found.numbers)
        return replace(found, numbers=nan)


def test_a_verifiers_server_that_dies_ends_that_search_and_no_other():
    dying = Dying(lives=1)
    with Engine(ScriptedBackend()) as engine:
        with pytest.raises(BackendGone, match="does not answer"):
            engine.solve(None, "q?", strategy="stage-beam", n=3, judge=TokenVerifier(model=dying))
        assert engine.solve(None, "q?", strategy="stage-beam", n=3).text
        broken = TokenVerifier(model=Dying(broken=True))
        with pytest.raises(ModelError, match="gave the number nan"):
            engine.solve(None, "q?", strategy="stage-beam", n=3, judge=broken)


class Slow(ScriptedBackend):
    """Takes its time to say what it makes of texts."""

    async def measure(self, request):
        await asyncio.sleep(30)

    async def choose(self, request):
        await asyncio.sleep(30)


@pytest.mark.parametrize("verifier", [TokenVerifier(model=Slow()), SelfJudge()])
def test_a_budget_in_seconds_does_not_wait_for_who_judges(verifier):
    began = time.monotonic()
    with Engine(Slow()) as engine:
        answer = engine.solve(
            None, "q?", strategy="stage-beam", n=2, judge=verifier, budget="0.4 s", mode="trained"
        )
    assert answer.text and time.monotonic() - began < 5
    role = "judge" if verifier == SelfJudge() else "verify"
    asked = [event.usage for event in answer.trace if isinstance(event, Selected)]
    assert sum(each.calls for each in asked) == answer.usage[role].calls > 0


def test_a_backend_that_cannot_measure_says_what_to_do():
    with Engine(ScriptedBackend()) as engine:
        judge = TokenVerifier(model=Mute())
        answer = engine.solve(None, "q?", strategy="stage-beam", n=3, judge=judge)
    said = [event.text for event in answer.trace if isinstance(event, Notice)]
    assert any("were not judged" in text and "kind text" in text for text in said)


def test_numbers_of_any_scale_are_no_probabilities():
    with Engine(ScriptedBackend()) as engine, pytest.raises(StrategyError, match="centre"):
        engine.solve(None, "q?", strategy=BestBy("head"))
