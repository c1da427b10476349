"""What the local backend measures at the places of dialogues equals plain transformers: the model's
own template applied by it, the stock model's forward without a cache."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace

import pytest
import torch
from near import largest
from test_local_exact import scratch
from tiny_models import build, picture

from cot_engine.backends.local import loading
from cot_engine.backends.local.backend import LocalBackend
from cot_engine.backends.replicas import Replicas
from cot_engine.core.boundaries import Until
from cot_engine.core.requests import Dialogue, Generate, Measure, Piece, Prompt, Segment, Turn
from cot_engine.errors import InputError

TOLERANCE = 1e-4
LOOK = picture(3)


def said(text: str, mark: bool = False) -> Piece:
    return Piece(text, False, mark)


def steps(*texts: str) -> Dialogue:
    """Each step a user's turn, the verdict at the assistant's place: as VisualPRM is asked."""
    turns = []
    for at, text in enumerate(texts):
        head = (Piece("Question: ", True), said("how many ")) if at == 0 else ()
        turns.append(Turn("user", (*head, said(text)), (LOOK,) if at == 0 else ()))
        turns.append(Turn("assistant", (Piece("", True, True), Piece("+", True))))
    return Dialogue(tuple(turns))


@pytest.fixture(scope="module", params=["qwen2_5_vl", "llava_onevision", "mllama"])
def loaded(request, tmp_path_factory):
    return loading.load(build(request.param, tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture
def backend(loaded):
    with LocalBackend(loaded) as opened:
        yield opened


def by_template(backend, dialogue: Dialogue) -> list[int]:
    """The dialogue's ids as the tokenizer's own chat template and call make them."""
    tokenizer, tag = backend.text.tokenizer, backend.text.image_tag
    messages = [
        {
            "role": turn.speaker,
            "content": [{"type": "image"}] * len(turn.images)
            + [{"type": "text", "text": turn.text}],
        }
        for turn in dialogue.turns
    ]
    text = tokenizer.apply_chat_template(
        messages,
        chat_template=backend.text.template,
        add_generation_prompt=dialogue.opens,
        tokenize=False,
    )
    for image in dialogue.images:
        text = text.replace(tag, backend._prepared(image).text, 1)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.inference_mode()
def stock_states(backend, sequence) -> torch.Tensor:
    """Final hidden states [tokens, width] by the stock model, without any cache."""
    model = backend.adapter.model
    ids = torch.tensor([list(sequence.ids)])
    inputs = backend.adapter.stock_inputs(ids, [sequence]) if sequence.images else {}
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None
    out = model(input_ids=ids, use_cache=False, output_hidden_states=True, **inputs)
    return out.hidden_states[-1][0].float()


def apart(one, other) -> float:
    """How far two tables of numbers are apart."""
    rows = zip(one, other, strict=True)
    return largest(a - b for x, y in rows for a, b in zip(x, y, strict=True))


def measured(backend, *dialogues, choices=("+", "-"), scope="s"):
    return asyncio.run(backend.measure(Measure(scope, dialogues, choices)))


def test_log_probabilities_at_the_places_of_a_dialogue_are_those_of_plain_transformers(backend):
    dialogue = steps("red circle", "one two three", "so the answer is two")
    sequence, places = backend._dialogue(dialogue)
    assert list(sequence.ids) == by_template(backend, dialogue)
    plus = backend.text.tokenizer("+", add_special_tokens=False)["input_ids"][0]
    assert [sequence.ids[place] for place in places] == [plus] * 3
    answer = measured(backend, dialogue)
    choices = backend.dialogues.first(("+", "-"))
    logprobs = scratch(backend, sequence)
    want = [[logprobs[place - 1, c].item() for c in choices] for place in places]
    assert apart(answer.numbers[0], want) < TOLERANCE
    off = [[logprobs[place, c].item() for c in choices] for place in places]
    assert apart(answer.numbers[0], off) > 1e-2  # a place off by one is seen
    assert answer.usage.prefilled == len(sequence.ids) and answer.usage.encodes == 1
    # Again, and a shorter one: what is there is not computed again, and gives the same.
    again = measured(backend, dialogue)
    assert again.numbers == answer.numbers and again.usage.prefilled <= 1
    shorter = measured(backend, steps("red circle", "one two three"))
    assert apart(shorter.numbers[0], want[:2]) < TOLERANCE
    assert shorter.usage.prefilled < 12


def test_the_final_state_is_that_of_plain_transformers(backend):
    turns = (Turn("user", (said("which?"),), (LOOK,)), Turn("assistant", (said("red"),)))
    dialogue = Dialogue(turns)
    ((state,),) = measured(backend, dialogue, choices=()).numbers
    sequence, places = backend._dialogue(dialogue)
    assert list(sequence.ids) == by_template(backend, dialogue) and places == [len(sequence.ids)]
    want = stock_states(backend, sequence)
    assert apart([state], [want[-1].tolist()]) < TOLERANCE
    assert apart([state], [want[-2].tolist()]) > 1e-2


def test_places_in_what_was_computed_before_without_them(backend):
    """The reply was written by a search: its middle has no state yet."""
    dialogue = Dialogue((Turn("user", (said("which red"),), (LOOK,)),), True)
    sequence, _ = backend._dialogue(dialogue)
    segment = (Segment(" red circle is one two three"),)
    asyncio.run(
        backend.generate(Generate("s", Prompt("which red", (LOOK,)), segment, Until(), (1,), 2))
    )
    marked = Dialogue((Turn("user", (said("which", True), said(" red")), (LOOK,)),), True)
    request = Measure("s", (marked, dialogue), ("A", "B"))
    bound = backend.estimate(request)
    answer = asyncio.run(backend.measure(request))
    assert 0 < answer.usage.prefilled <= bound.prefilled and answer.usage.flops <= bound.flops
    logprobs = scratch(backend, sequence)
    where = [backend._dialogue(marked)[1][0], len(sequence.ids)]
    choices = backend.dialogues.first(("A", "B"))
    want = [[logprobs[place - 1, c].item() for c in choices] for place in where]
    assert apart([answer.numbers[0][0], answer.numbers[1][0]], want) < TOLERANCE


def test_many_at_once_cost_and_give_what_they_do_alone(loaded):
    """In one batch with others, and through replicas; never more than was estimated."""
    each = [steps(*"abc"[: 1 + k % 3], "the end" * k) for k in range(6)]
    with contextlib.ExitStack() as opened:
        alone = [opened.enter_context(LocalBackend(loaded)) for _ in range(2)]
        want = [measured(alone[0], d, scope=f"{k}") for k, d in enumerate(each)]
        both = Replicas([alone[1]])

        async def all_of_them():
            asked = [Measure(f"{k}", (d,), ("+", "-")) for k, d in enumerate(each)]
            bounds = [both.estimate(request) for request in asked]
            return bounds, await asyncio.gather(*map(both.measure, asked))

        bounds, given = asyncio.run(all_of_them())
    for one, other, bound in zip(want, given, bounds, strict=True):
        assert apart(one.numbers[0], other.numbers[0]) < TOLERANCE
        plain = replace(one.usage, seconds=0.0)
        assert plain == replace(other.usage, seconds=0.0)
        assert (plain.prefilled, plain.flops, plain.encodes) == (
            *(bound.prefilled, bound.flops, bound.encodes),
        )


def test_special_tokens_are_such_in_the_words_of_who_asks_and_text_in_data(backend):
    def ids(own):
        piece = Piece("one<|im_end|>", own, True)
        return backend._dialogue(Dialogue((Turn("user", (said("so "), piece, said(" two"))),)))

    (data, at_data), (own, at_own) = ids(False), ids(True)
    special = backend.text.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert own.ids.count(special) == data.ids.count(special) + 1
    assert own.ids[at_own[0] - 1] == special != data.ids[at_data[0] - 1]


def test_what_cannot_be_measured_is_said(backend):
    with pytest.raises(InputError, match="begin with the same token"):
        measured(backend, steps("a"), choices=("red", "red circle"))
    with pytest.raises(InputError, match="picture"):
        tag = Piece(backend.text.image_tag, True)
        measured(backend, Dialogue((Turn("user", (tag,)),)))
    with pytest.raises(InputError, match="at least one dialogue"):
        measured(backend)
    with pytest.raises(InputError, match="2048"):
        measured(backend, steps("a b " * 2048))
