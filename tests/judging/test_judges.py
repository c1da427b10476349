"""What judges are asked, word for word; that a trained judge's prompt costs next to nothing."""

from __future__ import annotations

import asyncio
import math

import pytest
import torch
from golden import check_golden
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import enliven, picture

from cot_engine import plugins
from cot_engine.backends.local.opener import Local
from cot_engine.core.boundaries import Until
from cot_engine.core.chain import Chain, Step
from cot_engine.core.problem import Problem
from cot_engine.core.requests import Choose, Generate, Prompt, Segment
from cot_engine.core.stages import DEFAULT_PLAN
from cot_engine.errors import ConfigError
from cot_engine.judging import prompts
from cot_engine.judging.judges import SelfJudge, SelfLikelihoodJudge
from cot_engine.judging.protocol import Case
from cot_engine.search.select import combine
from cot_engine.testing import check_judge

QUESTION = "How many red circles are there?"
SUMMARY = "<SUMMARY>I count the red circles.</SUMMARY>"
CAPTIONS = (
    "<CAPTION>A red circle at A1. A blue square at B2.</CAPTION>",
    "<CAPTION>A red circle at A1. A red circle at C3.</CAPTION>",
)
SENTENCES = (" A blue square at B2.", " A red circle at C3.")
ENDS = (
    "<REASONING>One of them is red.</REASONING><CONCLUSION>1</CONCLUSION>",
    "<REASONING>Both are red.</REASONING><CONCLUSION>2</CONCLUSION>",
)


def chain(*texts: str, likelihood: float = -1.0, index: int = 0) -> Chain:
    """A chain of one step for each text, as a search would have grown it."""
    grown = Chain()
    for k, text in enumerate(texts):
        stage = text.rpartition("<")[2].strip("/>") if "</" in text else "CAPTION"
        step = Step(text, (Segment(text),), stage, likelihood * 4, 4, "stop")
        grown = grown.grow(index if k == len(texts) - 1 else 0, step, False)
    return grown


def asked(what: str, images: tuple = ()) -> tuple[Case, tuple[Chain, Chain]]:
    plan = DEFAULT_PLAN.fit(len(images))
    texts = {
        "step": [(SUMMARY, text) for text in CAPTIONS],
        "first step": [(text,) for text in (SUMMARY, "<SUMMARY>I look.</SUMMARY>")],
        "sentence": [(SUMMARY, "<CAPTION>A red circle at A1.", text) for text in SENTENCES],
        "rest": [(SUMMARY, CAPTIONS[0], end) for end in ENDS],
        "whole": [(SUMMARY + c + end,) for c, end in zip(CAPTIONS, ENDS, strict=True)],
    }[what]
    if not images and what != "first step":
        texts = [tuple(t.replace("CAPTION", "REASONING") for t in each) for each in texts]
        texts = [tuple(t.replace("REASONING><REASONING", "REASONING><") for t in e) for e in texts]
    stage = {"step": plan.stages[1], "first step": plan.stages[0]}.get(what)
    about = "whole" if what == "whole" else "step"
    first, second = (chain(*each, index=k) for k, each in enumerate(texts))
    return Case(Problem("p", QUESTION, images), plan, about, stage, images), (first, second)


@pytest.mark.parametrize("form", prompts.FORMS)
def test_the_words_of_both_forms(form):
    said = []
    for images in ((picture(0),), ()):
        for what in ("first step", "step", "sentence", "rest", "whole"):
            if not images and what in ("rest", "whole"):
                continue  # as with images, but for a word that the others show
            case, pair = asked(what, images)
            head, tail = prompts.judge_turn(case, pair, form)
            assert head.images == images
            said.append(f"=== {what}, {len(images)} images\n{head.text}|{tail}|\n")
    check_golden(f"judges/{form}.txt", "".join(said))


@pytest.mark.parametrize("form", prompts.FORMS)
@pytest.mark.parametrize("what", ["step", "sentence", "rest", "whole"])
def test_the_other_order_swaps_the_two_and_nothing_else(form, what):
    case, (first, second) = asked(what, (picture(0),))
    head, tail = prompts.judge_turn(case, (first, second), form)
    turned, back = prompts.judge_turn(case, (second, first), form)
    assert turned == head and tail != back
    assert sorted(tail.replace("\n", " ").split()) == sorted(back.replace("\n", " ").split())


def test_a_form_that_does_not_exist():
    with pytest.raises(ConfigError, match=r"breif.*full or brief"):
        SelfJudge(prompt="breif")


@pytest.mark.parametrize("form", prompts.FORMS)
def test_the_self_judge_keeps_its_contract(form):
    check_judge(SelfJudge(prompt=form))


# --- verdict and likelihood together --------------------------------------------------------------


class Asked:
    """An Ask whose answers are given: the log-odds of "1" for each tail, in order, by `margins`."""

    def __init__(self, margins, mass=1.0):
        self.margins, self.mass = list(margins), mass

    async def choose(self, prompt, tails, choices, prefix=""):
        rows = []
        for _ in tails:
            odds = math.exp(self.margins.pop(0))
            rows.append((math.log(self.mass * odds / (1 + odds)), math.log(self.mass / (1 + odds))))
        return rows


def combined(judge, margins, likelihoods, mass=1.0):
    """The verdicts on (a, b) and on (b, a), and each order's part that likelihood has in it."""
    case, _ = asked("step")
    pair = [
        chain(SUMMARY, CAPTIONS[k], likelihood=each, index=k) for k, each in enumerate(likelihoods)
    ]
    pairs = [tuple(pair), tuple(pair[::-1])]
    verdicts = asyncio.run(judge.compare(pairs, case, Asked(margins, mass)))
    own = asyncio.run(SelfJudge().compare(pairs, case, Asked(margins, mass)))
    return verdicts, [v.margin - o.margin for v, o in zip(verdicts, own, strict=True)]


NUMBERS = st.floats(-5, 5)


LOGS = st.floats(-5, 0)


@given(st.tuples(NUMBERS, NUMBERS), st.tuples(LOGS, LOGS), NUMBERS)
def test_the_margin_is_the_verdict_and_the_weighed_likelihood(margins, likelihoods, weight):
    verdicts, parts = combined(SelfLikelihoodJudge(weight=weight), margins, likelihoods)
    expected = weight * (likelihoods[0] - likelihoods[1])
    assert parts == pytest.approx([expected, -expected], abs=1e-9)  # turned with the order
    for verdict, margin, part in zip(verdicts, margins, parts, strict=True):
        assert verdict.readable and verdict.margin == pytest.approx(margin + part, abs=1e-6)
    outcome = combine(verdicts)
    signs = [(v.margin > 0) - (v.margin < 0) for v in verdicts]
    assert outcome == {(1, -1): "first", (-1, 1): "second"}.get(tuple(signs), "tie")


def test_orders_that_disagree_are_a_tie_until_likelihood_outweighs_the_place():
    biased = (2.0, 1.0)  # names the first, whichever stands there
    weak, _ = combined(SelfLikelihoodJudge(weight=0.5), biased, (-1.0, -2.0))
    strong, _ = combined(SelfLikelihoodJudge(weight=3.0), biased, (-1.0, -2.0))
    assert combine(weak) == "tie" and combine(strong) == "first"


def test_what_cannot_be_read_is_not_made_readable_by_likelihood():
    verdicts, _ = combined(SelfLikelihoodJudge(weight=3.0), (1, -1), (-1.0, -2.0), mass=1e-5)
    assert [v.outcome for v in verdicts] == ["tie", "tie"] and not any(v.readable for v in verdicts)


def test_weight_zero_is_the_self_judge_and_a_weight_is_needed():
    verdicts, parts = combined(SelfLikelihoodJudge(weight=0.0), (1.5, -0.5), (-1.0, -3.0))
    assert parts == [0, 0] and combine(verdicts) == "first"
    with pytest.raises(ConfigError, match="weight is nan"):
        SelfLikelihoodJudge(weight=math.nan)
    with pytest.raises(ConfigError, match=r"needs weight"):
        plugins.make("judge", "self+likelihood", {})


@pytest.mark.parametrize("form", prompts.FORMS)
@pytest.mark.parametrize("weight", [-1.0, 0.0, 2.5])
def test_the_combined_judge_keeps_its_contract(form, weight):
    check_judge(SelfLikelihoodJudge(prompt=form, weight=weight))


# --- what it costs -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled_shape(tmp_path_factory):
    """An untrained model of the bundled one's architecture, chat format and tokenizer."""
    from cot_engine.scenes.model import build_model, build_processor

    folder = tmp_path_factory.mktemp("shape")
    processor = build_processor()
    model = build_model(len(processor.tokenizer)).eval()
    enliven(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("what", ["first step", "step", "sentence", "rest", "whole"])
@pytest.mark.parametrize("images", [(), (picture(0, 64, 64),)], ids=["text", "image"])
def test_a_brief_judge_reads_nothing_again_that_was_read_for_the_answer(
    bundled_shape, what, images
):
    torch.set_num_threads(1)
    case, pair = asked(what, images)
    shared = 0 if what == "whole" else prompts.common_steps(*pair)
    before = tuple(Segment(step.text) for step in pair[0].steps[:shared])
    answer = Prompt(QUESTION, images)
    head, tail = prompts.judge_turn(case, pair, "brief")
    with Local(device="cpu").open(bundled_shape) as backend:
        writing = Generate("s", answer, before, Until(), (1, 2), 4)

        async def search():
            await backend.generate(writing)
            tails = (tail, prompts.judge_turn(case, pair[::-1], "brief")[1])
            return [
                (await backend.choose(Choose("s", head, (each,), prompts.VERDICTS))).usage
                for each in tails
            ]

        first, turned = asyncio.run(search())
        read = len(backend._reply(writing).ids)
        whole = len(backend._sequence(Prompt(head.text + tail, images), []).ids)
    assert first.encodes == 0 and first.cached == read
    assert first.prefilled == whole - read
    assert turned.cached > read  # "Compare:" too
