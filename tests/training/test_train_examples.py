"""What is learnt: which tokens have labels, in every architecture's chat format, and that a padded
batch of unlike examples gives the loss of its examples one by one."""

from __future__ import annotations

import pytest
import torch
from tiny_models import BUILDERS, build, picture

from cot_engine.backends.local import loading
from cot_engine.core.stages import DEFAULT_PLAN
from cot_engine.errors import ModelError
from cot_engine.training.examples import IGNORE, Encoder, reworded
from cot_engine.training.judge_config import JudgeTable
from cot_engine.training.judge_train import learn_judging
from cot_engine.training.trainer import learn_answers

RESPONSE = (
    "<SUMMARY>the</SUMMARY><CAPTION>a red circle</CAPTION>"
    "<REASONING>so one</REASONING><CONCLUSION>one</CONCLUSION>"
)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """(loaded model, encoder) by architecture; the weights are never changed."""
    made = {}

    def get(architecture):
        if architecture not in made:
            folder = build(architecture, tmp_path_factory.mktemp("models") / architecture)
            loaded = loading.load(folder, device="cpu")
            loaded.adapter.model.set_attn_implementation("sdpa")
            learn_answers(loaded.adapter.model)
            made[architecture] = loaded, Encoder(loaded)
        return made[architecture]

    return get


def learnt(batch, row=0):
    """The ids that have labels, which must be the row's own and in one piece."""
    labels = batch["labels"][row]
    at = (labels != IGNORE).nonzero().flatten()
    assert at.tolist() == list(range(at[0], at[-1] + 1))
    assert torch.equal(labels[at], batch["input_ids"][row][at])
    return labels[at].tolist(), int(at[0])


@pytest.mark.parametrize("architecture", BUILDERS)
def test_the_answer_and_the_end_of_the_turn_are_learnt(models, architecture):
    loaded, encoder = models(architecture)
    pixels = picture(1).pixels
    batch = encoder.batch([encoder.example("how many?", RESPONSE, [pixels])])
    ids, start = learnt(batch)
    assert loaded.text.tokenizer.decode(ids) == RESPONSE + "</s>"
    # Before it stands, to the token, what the local backend sends.
    expanded = loaded.adapter.prepare(pixels, "").text
    sent = loaded.text.turn("how many?", (expanded,))
    assert batch["input_ids"][0, :start].tolist() == sent
    assert encoder.length("how many?", RESPONSE, [pixels.size]) == len(sent) + len(ids)


@pytest.mark.parametrize("architecture", BUILDERS)
def test_every_answer_of_a_conversation_is_learnt_after_all_that_was_said(models, architecture):
    """Two pictures, three questions; to the token what the chat template writes for them."""
    loaded, encoder = models(architecture)
    pixels = [picture(1).pixels, picture(2, 28, 64).pixels]
    later = (("what colour?", "red"), ("a </s> b?", "two"))
    example = encoder.example("how many?", RESPONSE, pixels, later)
    labels = encoder.batch([example])["labels"][0].tolist()
    decode = loaded.text.tokenizer.decode
    pieces, asked = [[]], []
    for token, label in zip(example.ids, labels, strict=True):
        (asked if label == IGNORE else pieces[-1]).append(token)
        if label == IGNORE and pieces[-1]:
            pieces.append([])
    assert [decode(piece) for piece in pieces] == [f"{x}</s>" for x in (RESPONSE, "red", "two")]
    assert sum(map(len, pieces)) == example.learnt
    images = [loaded.adapter.prepare(each, "", 2).text for each in pixels]
    assert example.ids[: example.prompt] == loaded.text.turn("how many?", tuple(images))
    assert example.ids.count(loaded.text.tokenizer.eos_token_id) == 3
    sizes = [each.size for each in pixels]
    assert encoder.length("how many?", RESPONSE, sizes, later) == len(example.ids)
    short = example.cut(len(example.ids) - 1)
    assert len(short.ids) == len(example.ids) - 1 and short.learnt == example.learnt - 1
    assert example.cut(example.asked[0][0] + 1).learnt == len(pieces[0])
    written = encoder._conversation(2, 1).partition("0cot0answer0")[2]
    written = written.partition("0cot0answer01")[0].replace("0cot0text01", "what colour?")
    assert decode(asked).removeprefix(decode(example.ids[: example.prompt])).startswith(written)


@pytest.mark.parametrize("architecture", BUILDERS)
def test_a_padded_batch_has_the_loss_of_its_examples(models, architecture):
    loaded, encoder = models(architecture)
    examples = [
        encoder.example("how many red circle are there?", RESPONSE, [picture(1).pixels]),
        encoder.example("how many?", "<CONCLUSION>two</CONCLUSION>"),
        encoder.example("a b", RESPONSE + " a", [picture(2, 28, 64).pixels]),
        encoder.example("a", "b", [picture(n).pixels for n in (4, 5)], [("what colour?", "red")]),
    ]
    network = loaded.adapter.model

    def loss(*examples):
        if hasattr(network.model, "rope_deltas"):
            network.model.rope_deltas = None
        with torch.no_grad():
            return network(**encoder.batch(examples))["loss"].item()

    each = [loss(example) for example in examples]
    assert loss(*examples) == pytest.approx(sum(each), rel=1e-5)
    assert loss(*examples[::-1]) == pytest.approx(sum(each), rel=1e-5)
    blind = encoder.example("how many red circle are there?", RESPONSE, [picture(3).pixels])
    assert loss(blind) != pytest.approx(each[0], rel=1e-4)  # the pictures are looked at


def test_a_judges_batch_of_unlike_rows_has_the_loss_of_its_examples(models):
    """Mllama's rows with fewer pictures than another's would look at empty tiles."""
    loaded, encoder = models("mllama")
    network = loaded.adapter.model
    pixels = [picture(n).pixels for n in (1, 2)]
    examples = [encoder.example("how many?", RESPONSE, pixels[:n]) for n in (1, 0, 2)]
    learn_judging(loaded.adapter, JudgeTable(marks=0), (10, 11))
    try:

        def loss(*examples):
            batch = encoder.batch(examples)
            batch |= {"marks": torch.zeros(batch["labels"].shape), "totals": torch.ones(3)}
            with torch.no_grad():
                return network(**batch, judged=0)["loss"].item()

        each = [loss(example) for example in examples]
        assert loss(*examples) == pytest.approx(sum(each), rel=1e-5)
        assert len({round(one, 2) for one in each}) == 3, "or the test shows nothing"
    finally:
        learn_answers(network)


def test_the_loss_is_the_stock_models(models):
    loaded, encoder = models("llava")
    example = encoder.example("how many?", RESPONSE, [picture(1).pixels])
    batch = encoder.batch([example])
    network = loaded.adapter.model
    with torch.no_grad():
        ours = network(**batch, num_items_in_batch=len(example.ids) - example.prompt)["loss"]
        stock = type(network).forward(network, **batch).loss
    assert ours.item() == pytest.approx(stock.item(), rel=1e-5)


def with_template(loaded, template):
    """The encoder of the same model under another chat template."""
    from dataclasses import replace

    from cot_engine.backends.local.text import ChatText

    text = ChatText(loaded.text.tokenizer, loaded.text.image_tag, template, set(loaded.text.eos))
    return Encoder(replace(loaded, text=text))


CONTENT = "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
CONTENT += "{{ '<image>' if c.type == 'image' else c.text }}{% endfor %}{% endif %}"
SPACED = (
    "{% for m in messages %}{{ m.role }}: " + CONTENT + " {% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TURNS = (
    "{% for m in messages %}<s>{{ m.role }}\n" + CONTENT + "</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "decoded"),
    [
        # LLaVA 1.5: a space before and after the answer, and no end of turn.
        (
            SPACED,
            " a red</s>",
        ),
        # The end of the turn is written, and something after it.
        (
            TURNS,
            "a red</s>",
        ),
        # No template.
        (None, " a red</s>"),
    ],
)
def test_where_the_answer_begins_and_ends_is_the_templates_business(models, template, decoded):
    loaded, _ = models("llava")
    batch = (encoder := with_template(loaded, template)).batch([encoder.example("how?", "a red")])
    assert loaded.text.tokenizer.decode(learnt(batch)[0]) == decoded


@pytest.mark.parametrize(
    ("template", "written"),
    [
        # LLaVA 1.5: nothing ends the answer but the token that is learnt.
        (
            SPACED,
            "user: how? assistant: a red</s> user: what? assistant: two</s>",
        ),
        # The end of the turn is written, and something after it.
        (
            TURNS,
            "<s>user\nhow?</s>\n<s>assistant\na red</s>\n<s>user\nwhat?</s>\n<s>assistant\ntwo</s>",
        ),
        (None, "USER: how? ASSISTANT: a red</s> USER: what? ASSISTANT: two</s>"),
    ],
)
def test_how_a_second_question_follows_is_the_templates_business(models, template, written):
    loaded, _ = models("llava")
    encoder = with_template(loaded, template)
    example = encoder.example("how?", "a red", (), (("what?", "two"),))
    assert loaded.text.tokenizer.decode(example.ids).removeprefix("<s>") == written.removeprefix(
        "<s>"
    )
    (labels,) = encoder.batch([example])["labels"].tolist()
    taught = loaded.text.tokenizer.decode([token for token in labels if token != IGNORE])
    assert taught.replace(" ", "") == "ared</s>two</s>"


def test_a_template_of_one_question_refuses_a_second(models):
    loaded, _ = models("llava")
    one = "{% if messages | length > 2 %}{{ raise_exception('one question') }}{% endif %}"
    encoder = with_template(loaded, one + "{% for m in messages %}" + CONTENT + "{% endfor %}")
    encoder.example("how?", "a red")
    with pytest.raises(ModelError, match="does not write a second question"):
        encoder.example("how?", "a red", (), (("what?", "two"),))


def test_a_template_that_changes_the_prompt_is_refused(models):
    loaded, _ = models("llava")
    template = "{% for m in messages %}" + CONTENT + "{% endfor %}"
    template = "{{ messages | length }}" + template
    with pytest.raises(ModelError, match=r"another way when an answer follows: .1.* becomes .2"):
        with_template(loaded, template)


def test_special_tokens_in_the_data_stay_text(models):
    loaded, encoder = models("llava")
    example = encoder.example("is <image> a </s>?", "no </s> here", [])
    assert loaded.adapter.placeholder not in example.ids
    assert example.ids.count(2) == 1 and example.ids[-1] == 2
    assert loaded.text.tokenizer.decode(example.ids[example.prompt :]) == "no </s> here</s>"


def test_formats():
    def said(format, answer=None, text=RESPONSE):
        return reworded(text, format, DEFAULT_PLAN, answer)

    assert said("staged") == RESPONSE
    assert said("no-tags") == "the\n\na red circle\n\nso one\n\none"
    assert said("direct") == "one"
    assert said("direct", "1") == "1"
    assert said("direct", text="just that") == said("no-tags", text="just that") == "just that"


def test_the_bundled_format_ends_as_the_bundled_model_was_trained():
    from cot_engine.engine.facade import model_path

    loaded = loading.load(model_path("bundled"))
    encoder = Encoder(loaded)
    example = encoder.example("How many?", RESPONSE, [picture(1, 64, 64).pixels])
    decode = loaded.text.tokenizer.decode
    assert decode(example.ids[example.prompt :]) == RESPONSE + "</s>"
    assert decode(example.ids[: example.prompt]) == "<s>" + 16 * "<image>" + "How many?\n"
