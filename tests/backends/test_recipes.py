"""The recipes that ship, each on a tiny random model of the right architecture and template, in a
search: what it gives is what plain transformers give on the same words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from near import largest
from safetensors.torch import load_file, save_file
from test_local_exact import scratch
from test_measure import by_template, stock_states
from tiny_models import build, picture

from cot_engine import Engine, TextVerifier, TokenVerifier, Verifier
from cot_engine.backends.local.opener import Local
from cot_engine.core.events import Grown, Notice, Scored
from cot_engine.core.requests import Dialogue, Piece, Turn
from cot_engine.errors import CotEngineError, StrategyError
from cot_engine.search.strategy import Expand, Score
from cot_engine.testing import ScriptedBackend

LOOK = picture(5)
QUESTION = "how many red circles"
CPU = {"device": "cpu", "dtype": "float32"}


@dataclass(frozen=True)
class Both:
    """Two whole responses, scored as they are."""

    verifier: str

    def search(self, task):
        grown = yield Expand(task.start, until="end", n=2)
        yield Score(grown, self.verifier, "whole")
        return grown[0]


def searched(toml: Path, backend=None):
    """The numbers of the two responses, with their texts; what the search cost; what was said."""
    with Engine(backend or ScriptedBackend(), profile=None) as engine:
        answer = engine.solve(LOOK, QUESTION, strategy=Both(str(toml)), seed=1)
    (scored,) = [event for event in answer.trace if isinstance(event, Scored)]
    said = [event.text for event in answer.trace if isinstance(event, Notice)]
    texts = {c.id: c.text for e in answer.trace if isinstance(e, Grown) for c in e.chains}
    return [(texts[id], number) for id, number in scored.scores.items()], answer.usage, said


def of_stages(text: str) -> list[str]:
    """What the stages of a scripted reply hold."""
    return [part.split("</")[0] for part in text.split(">")[1::2] if not part.startswith("<")]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A reward model's folder: the base of Skywork-VL-Reward and VL-PRM, and a value head."""
    folder = build("qwen2_5_vl", tmp_path_factory.mktemp("qwen"))
    torch.manual_seed(3)
    head = {"v_head.summary.weight": torch.randn(1, 64), "v_head.summary.bias": torch.randn(1)}
    save_file({k: v.bfloat16() for k, v in head.items()}, folder / "value_head.safetensors")
    return folder


@pytest.fixture(scope="module")
def model(qwen):
    with Local(**CPU).open(qwen) as opened:
        yield opened


def toml(folder: Path, recipe: str, model, **changed) -> Path:
    """The recipe as a user's own file, bound to a folder."""
    import tomllib

    from cot_engine.judging.verifiers.files import FOLDER

    text = (FOLDER / f"{recipe}.toml").read_text("utf-8")
    own = "".join(f"{k} = {v!r}\n" for k, v in {"model": str(model), **changed}.items())
    lines = [x for x in text.splitlines() if x.split(" =")[0] not in ("model", *changed)]
    at = next((i for i, line in enumerate(lines) if line.startswith("[")), len(lines))
    made = "\n".join([*lines[:at], own, *lines[at:]])
    made += '\n[options]\ndevice = "cpu"\ndtype = "float32"\n' if model else ""
    path = folder / f"{recipe}.toml"
    path.write_text(made, "utf-8")
    tomllib.loads(made)
    return path


def stock_ids(model, turns, opens=False):
    """A conversation as the model's own template and tokenizer make it, and its pictures."""
    pictured = next(i for i, (speaker, _) in enumerate(turns) if speaker == "user")
    made = tuple(
        Turn(speaker, (Piece(text),), (LOOK,) if i == pictured else ())
        for i, (speaker, text) in enumerate(turns)
    )
    dialogue = Dialogue(made, opens)
    return by_template(model, dialogue), model._dialogue(dialogue)[0]


def test_vl_prm_reads_all_steps_as_plain_transformers_do(qwen, model, tmp_path):
    path = toml(tmp_path, "vl-prm", qwen)
    system = Verifier.from_toml(path).turns[0].text
    found, usage, said = searched(path)
    assert not any("likelihood" in text for text in said) and usage["verify"].calls == 2
    tokenizer = model.text.tokenizer
    plus, minus = (tokenizer(t, add_special_tokens=False)["input_ids"][0] for t in "+-")
    for text, number in found:
        steps, turns = of_stages(text), [("system", system)]
        for at, step in enumerate(steps):
            head = f"### Question:\n{QUESTION}\n\n### Solution Process:\n" if at == 0 else ""
            turns += [("user", head + step), ("assistant", "+")]
        ids, sequence = stock_ids(model, turns)
        assert tuple(ids) == sequence.ids
        logprobs = scratch(model, sequence)
        start = tokenizer.convert_tokens_to_ids("<|im_start|>")
        turns_at = [i for i, each in enumerate(ids) if each == start]
        # The verdict stands where the assistant's own text begins: the last token of each such turn
        # but the end of the turn and the line feed behind it.
        places = [i for i, each in enumerate(ids) if each == plus and ids[i + 1] == start + 1]
        assert len(places) == len(steps) and len(turns_at) == 1 + 2 * len(steps)
        each = [(logprobs[p - 1, plus].exp(), logprobs[p - 1, minus].exp()) for p in places]
        want = sum(float(p / (p + m)) for p, m in each) / len(each)
        assert largest([number - want]) < 1e-4
        wrong = sum(float(m / (p + m)) for p, m in each) / len(each)
        assert largest([number - wrong]) > 1e-3
    assert usage["verify"].flops > 0 and usage["verify"].encodes == 1


def test_skywork_vl_reads_its_head_on_the_last_state(qwen, model, tmp_path):
    found, usage, _ = searched(toml(tmp_path, "skywork-vl", qwen))
    head = load_file(qwen / "value_head.safetensors")
    weight, bias = (head[f"v_head.summary.{name}"].float() for name in ("weight", "bias"))
    for text, number in found:
        turns = [("user", QUESTION), ("assistant", "\n\n".join(of_stages(text)))]
        ids, sequence = stock_ids(model, turns)
        assert tuple(ids) == sequence.ids
        last = stock_states(model, sequence)[-1]
        assert largest([number - float(weight[0] @ last + bias)]) < 1e-3
        turned = float(weight[0].flip(0) @ last + bias)  # the same numbers in another order
        assert largest([number - turned]) > 1e-2
    assert usage["verify"].encodes == 1 and usage["verify"].decoded == 0


def test_a_head_of_another_model_is_refused_by_name(qwen, tmp_path):
    save_file({"w": torch.randn(1, 48)}, tmp_path / "other.safetensors")
    path = toml(tmp_path, "skywork-vl", qwen, head=str(tmp_path / "other.safetensors"))
    with pytest.raises(StrategyError, match="reads states of 48 numbers; the model's have 64"):
        searched(path)


def test_yes_or_no_of_the_same_model(model, tmp_path):
    path = toml(tmp_path, "yes-no", "")
    path.write_text(path.read_text("utf-8").replace("model = ''", ""), "utf-8")
    verifier = Verifier.from_toml(path)
    found, usage, said = searched(path, Kept(model))
    assert not any("likelihood" in text for text in said) and set(usage) == {"generate", "verify"}
    for text, number in found:
        told = "\n\n".join(of_stages(text)) or text
        asked = f"{verifier.sentence} Reply with yes or no, and nothing else."
        words = f"Question: {QUESTION}\n\nResponse:\n{told}\n\n{asked}"
        ids, sequence = stock_ids(model, [("user", words)], True)
        assert tuple(ids) == sequence.ids
        last = scratch(model, sequence)[-1]
        yes, no = (model.text.tokenizer(t)["input_ids"][0] for t in ("yes", "no"))
        want = 1 / (1 + math.exp(float(last[no] - last[yes])))
        assert largest([number - want]) < 1e-4


class Kept:
    """A backend whose replies are the scripted ones and whose numbers a real model's."""

    def __init__(self, model) -> None:
        self.model, self.script = model, ScriptedBackend()

    def __getattr__(self, name):
        return getattr(self.script, name)

    @property
    def info(self):
        return self.script.info

    def estimate(self, request):
        return self.script.estimate(request)

    async def generate(self, request):
        return await self.script.generate(request)

    async def choose(self, request):
        return await self.script.choose(request)

    async def measure(self, request):
        return await self.model.measure(request)

    def release(self, scope):
        self.model.release(scope)

    def close(self):
        self.script.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded(TextVerifier):
    """Keeps what the model wrote."""

    replies: tuple = ()

    def parse(self, reply: str) -> float:
        object.__setattr__(self, "replies", (*self.replies, reply))
        return 50.0


def test_llava_critic_writes_what_plain_transformers_write(tmp_path):
    folder = build("llava_onevision", tmp_path / "m")
    own = Verifier.recipe("llava-critic", model=str(folder), options=CPU, length=6)
    from dataclasses import fields

    kept = Recorded(**{f.name: getattr(own, f.name) for f in fields(own) if f.init})
    with Engine(ScriptedBackend(), judge=kept) as engine:
        answer = engine.solve(LOOK, QUESTION, strategy="best-of-n", n=2, seed=1)
        model = next(iter(engine._bound._open))
        assert answer.usage["verify"].decoded > 0 and len(kept.replies) == 2
        texts = {c.text for e in answer.trace if isinstance(e, Grown) for c in e.chains}
        want = set()
        for text in texts:
            response = "\n\n".join(of_stages(text))
            words = own.turns[0].text.format(question=QUESTION, response=response)
            ids, sequence = stock_ids(model, [("user", words)], True)
            assert tuple(ids) == sequence.ids
            more: list[int] = []
            while len(more) < 6:
                token = int(scratch(model, sequence, more)[-1].argmax())
                if token in model.text.eos:
                    break
                more.append(token)
            more = more[: model.text.whole(sequence.ids, more)]  # no half characters
            want.add(model.text.added(sequence.ids, more))
    assert set(kept.replies) == want


def test_a_model_that_is_not_there_is_said_before_the_search(tmp_path):
    judge = TokenVerifier(model=str(tmp_path / "gone"))
    with Engine(ScriptedBackend()) as engine, pytest.raises(CotEngineError, match="gone"):
        engine.solve(None, "q?", strategy="stage-beam", n=3, judge=judge)
