"""What judges are asked, word for word; that a trained judge's prompt costs next to nothing."""

from __future__ import annotations

import asyncio

import pytest
import torch
from golden import check_golden
from tiny_models import enliven, picture

from cot_engine import prompts
from cot_engine.backends.local import LocalBackend
from cot_engine.boundaries import Until
from cot_engine.errors import ConfigError
from cot_engine.judges import Case, SelfJudge
from cot_engine.stages import DEFAULT_PLAN
from cot_engine.testing import check_judge
from cot_engine.types import Chain, Choose, Generate, Problem, Prompt, Segment, Step

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
    with LocalBackend.load(bundled_shape, device="cpu") as backend:
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
        whole = len(backend._turn(Prompt(head.text + tail, images)).ids)
    assert first.encodes == 0 and first.cached == read
    assert first.prefilled == whole - read
    assert turned.cached > read  # "Compare:" too
