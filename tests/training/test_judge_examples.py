"""What a judge learns from: the ids, labels, marks and loss are those that they should be."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import made_pairs
import pytest
import torch
import torch.nn.functional as F
from made_pairs import candidate, pairs_of
from tiny_models import BUILDERS, build

import cot_engine.bundled
from cot_engine import Engine
from cot_engine.ablation.worth import SENTENCE, WHOLE
from cot_engine.backends.local import loading
from cot_engine.backends.local.backend import LocalBackend
from cot_engine.core.stages import DEFAULT_PLAN
from cot_engine.judging.judges import SelfJudge
from cot_engine.questions.data import load_data
from cot_engine.training.examples import IGNORE, Encoder
from cot_engine.training.judge_config import parse_judge_config
from cot_engine.training.judge_data import JudgedPair, JudgeEncoder, JudgeSteps, load_problems
from cot_engine.training.judge_measure import Asking
from cot_engine.training.judge_train import HEAD, learn_judging, marks_layer
from cot_engine.training.network import prepare
from cot_engine.training.pairs import Candidate, Done, Pair

make, world = made_pairs.make, made_pairs.world
BUNDLED = Path(cot_engine.bundled.__file__).parent


# --- what is trained is what is asked ------------------------------------------------------------


class Kept(Asking):
    """Remembers the requests."""

    def __init__(self, engine, scope):
        super().__init__(engine, scope)
        self.requests = []

    async def choose(self, prompt, tails, choices, prefix=""):
        from cot_engine.core.requests import Choose

        self.requests.append(Choose(self.scope, prompt, tuple(tails), tuple(choices), prefix))
        return await super().choose(prompt, tails, choices, prefix)


@pytest.mark.parametrize("form", ["brief", "full"])
@pytest.mark.parametrize("architecture", list(BUILDERS))
def test_ids_and_margins_of_training_are_those_of_asking(tmp_path, world, architecture, form):
    folder = build(architecture, tmp_path / "model")
    item = load_data("questions.jsonl", folder=world).items[0]
    problem = item.problem()
    plan = DEFAULT_PLAN.fit(len(problem.images))
    rng = random.Random(1)
    caption = [
        Candidate(f"<CAPTION>a{word} circle </s> é</CAPTION>", label)
        for word, label in ((" red", 1.0), (" blue", 0.0))
    ]
    pairs = [
        Pair("CAPTION", "<SUMMARY>one two</SUMMARY>", *caption, "CAPTION"),
        *pairs_of(3, each=1),
        Pair(SENTENCE, "<SUMMARY>so</SUMMARY><CAPTION>a", Candidate(" red.", 1.0),
             Candidate(" blue.", 0.0)),
        Pair(SENTENCE, "<SUMMARY>so</SUMMARY>", candidate(rng, "REASONING", False),
             candidate(rng, "REASONING", True), "REASONING"),
    ]  # fmt: skip
    loaded = loading.load(folder, "cpu", "float32")
    encoder = JudgeEncoder(Encoder(loaded), form, 3.0)
    judged = [JudgedPair(item, pair, plan) for pair in pairs]
    rows = [row for each in judged for row in encoder.rows(each)]
    with Engine(LocalBackend(loaded)) as engine:
        ask = Kept(engine, "asked")

        async def everything():
            return [
                verdict
                for pair in pairs
                for verdict in await SelfJudge(prompt=form).compare(
                    [pair.chains(), pair.chains()[::-1]], pair.case(problem, plan), ask
                )
            ]

        verdicts = asyncio.run(everything())
        sent = [s for request in ask.requests for s in engine.backend._questions(request)]
        firsts = {tuple(engine.backend._first_tokens(request)) for request in ask.requests}
    assert firsts == {encoder.choices}
    assert [row.example.ids[:-1] for row in rows] == [list(s.ids) for s in sent]
    right = [encoder.choices[each] for p in pairs for each in (p.better, 1 - p.better)]
    assert [row.example.ids[-1] for row in rows] == right
    table = parse_judge_config(
        {"output": "x", "model": {"path": "x"}, "train": {"steps": 1}}, world
    ).judge
    learn_judging(loaded.adapter, table, encoder.choices)
    network = loaded.adapter.model.eval()
    batch = encoder.batch(rows, len(rows)) | {"totals": torch.ones(3)}
    with torch.no_grad():
        margins = network(**batch)["margins"].flatten().tolist()
    assert margins == pytest.approx([v.margin for v in verdicts], abs=2e-4)
    assert len({round(margin, 3) for margin in margins}) > 4, "or the test shows nothing"


def test_marks_lie_on_the_tokens_of_their_claims(world):
    loaded = loading.load(world / "llava", "cpu", "float32")
    item = load_data("questions.jsonl", folder=world).items[0]
    plan = DEFAULT_PLAN.fit(1)
    first = "<CAPTION>a red circle. the blue square. 2.</CAPTION>"
    claims = [("a red circle. ", True), ("the blue square. ", False), ("2.", True)]
    marks, at = [], len("<CAPTION>")
    for text, true in claims:
        marks.append((at, at + len(text), true))
        at += len(text)
    second = "<CAPTION>2</CAPTION>"
    two = Candidate(first, 0.5, marks=tuple(marks)), Candidate(second, 0.0, marks=((9, 10, False),))
    for form in ("brief", "full"):
        encoder = JudgeEncoder(Encoder(loaded), form, 3.0)
        pair = Pair("CAPTION", "<SUMMARY>s 2</SUMMARY>", *two, "CAPTION")
        rows = encoder.rows(JudgedPair(item, pair, plan))
        for row in rows:
            pieces = [(loaded.text._decode([row.example.ids[k]]), w) for k, w in row.marks]
            true = "".join(piece for piece, w in pieces if w == 1)
            false = [piece for piece, w in pieces if w == -3]
            assert true.replace(" ", "") == "aredcircle.2."
            assert sorted(piece.strip() for piece in false) == sorted(["square", ".", "2"])
    outcome = Pair("CAPTION", "", Candidate(first, 1.0), Candidate(second, 0.0), "CAPTION")
    [row, swapped] = JudgeEncoder(Encoder(loaded), "brief", 3.0).rows(
        JudgedPair(item, outcome, plan)
    )
    for each in (row, swapped):
        good = "".join(loaded.text._decode([each.example.ids[k]]) for k, w in each.marks if w > 0)
        bad = "".join(loaded.text._decode([each.example.ids[k]]) for k, w in each.marks if w < 0)
        assert good.strip() == first[9:-10] and bad.strip() == "2"


def test_a_label_is_not_taken_for_a_candidate(world):
    """The candidate "2" behind its label "2: " is marked, not the label."""
    loaded = loading.load(world / "llava", "cpu", "float32")
    item = load_data("questions.jsonl", folder=world).items[0]
    pair = Pair("CONCLUSION", "<SUMMARY>s</SUMMARY>", Candidate("<CONCLUSION>1</CONCLUSION>", 1.0),
                Candidate("<CONCLUSION>2</CONCLUSION>", 0.0), "CONCLUSION")  # fmt: skip
    for form in ("brief", "full"):
        encoder = JudgeEncoder(Encoder(loaded), form, 3.0)
        for row in encoder.rows(JudgedPair(item, pair, DEFAULT_PLAN.fit(1))):
            assert len(row.marks) == 2
            for token, _ in row.marks:
                before = loaded.text._decode(row.example.ids[:token])
                assert before.endswith((": ", ":", ":\n")), before[-12:]


# --- the loss ------------------------------------------------------------------------------------


def steps_of(config, loaded, **more):
    problems = load_problems(config)
    done = [Done(f"q{i}", i, pairs=pairs_of(i)) for i in problems.training]
    encoder = JudgeEncoder(Encoder(loaded), config.judge.prompt, config.judge.false_weight)
    more = {"micro": config.sft.train.batch, "limit": 2048} | more
    return JudgeSteps(config, encoder, DEFAULT_PLAN, problems.train, done, **more)


def test_the_loss_is_what_the_documentation_says(make, world):
    config = make(judge__consistency=0.3, judge__marks=0.7, judge__keep_weight=0.5)
    loaded = loading.load(world / "llava", "cpu", "float32")
    steps = steps_of(config, loaded)
    [batch] = steps.micro_batches(0)
    learn_judging(loaded.adapter, config.judge, steps.encoder.choices)
    network = loaded.adapter.model.train()
    head = getattr(network, HEAD)
    with torch.no_grad():
        head.weight.normal_(generator=torch.Generator().manual_seed(0))
        got = network(**batch)["loss"].item()
        layer = marks_layer(None, 3)
        inputs = {
            k: v for k, v in batch.items() if k not in ("labels", "judged", "marks", "totals")
        }
        out = network.model(**inputs, use_cache=False, output_hidden_states=True)
        logits = network.lm_head(out.last_hidden_state).float()
        ids, n = batch["input_ids"], batch["judged"]
        assert n == 12 and len(ids) == 14  # 6 pairs in both orders, 2 answers
        verdict, both, margins = 0.0, 0.0, []
        for row in range(n):
            [at] = (batch["labels"][row] != IGNORE).nonzero()[:, 0].tolist()
            verdict += F.cross_entropy(logits[row, at - 1], ids[row, at]).item() / n
            one, two = steps.encoder.choices
            margins.append((logits[row, at - 1, one] - logits[row, at - 1, two]).item())
        for first, second in zip(margins[::2], margins[1::2], strict=True):
            both += (first + second) ** 2 / (n / 2)
        states = out.hidden_states[layer]
        marks, total, weights = 0.0, batch["marks"], 0.0
        for row, at in total.nonzero().tolist():
            w = total[row, at].item()
            score = (states[row, at] @ head.weight + head.bias).item()
            marks += abs(w) * F.softplus(torch.tensor(-score if w > 0 else score)).item()
            weights += abs(w)
        learnt = batch["labels"][n:] != IGNORE
        kept = F.cross_entropy(logits[n:, :-1][learnt[:, 1:]], ids[n:][learnt]).item()
    assert weights > 50
    assert got == pytest.approx(verdict + 0.3 * both + 0.7 * marks / weights + 0.5 * kept, rel=1e-4)


def test_micro_batches_and_processes_add_up_to_the_step(make, world):
    config = make()
    loaded = loading.load(world / "llava", "cpu", "float32")
    whole = steps_of(config, loaded)
    network = prepare(loaded, config.sft).train()
    learn_judging(loaded.adapter, config.judge, whole.encoder.choices)

    def gradient(batches):
        network.zero_grad()
        for batch in batches:
            network(**batch)["loss"].backward()
        return network.lm_head.weight.grad.clone()

    wanted = gradient(whole.micro_batches(1))
    small = steps_of(config, loaded, micro=2)
    assert len(small.micro_batches(1)) == 4
    assert torch.allclose(gradient(small.micro_batches(1)), wanted, atol=1e-5)
    shared = [steps_of(config, loaded, micro=2, rank=r, world=2) for r in range(2)]
    parts = [batch for each in shared for batch in each.micro_batches(1)]
    assert torch.allclose(gradient(parts), wanted, atol=1e-5)


def test_steps_follow_from_their_number_and_stages_take_turns(make, world):
    config = make(judge__keep=0.0)
    loaded = loading.load(world / "llava", "cpu", "float32")
    first, second = (steps_of(config, loaded) for _ in range(2))
    alone = second.micro_batches(11)[0]  # without any of those before
    for step in range(11):
        first.micro_batches(step)
    assert torch.equal(first.micro_batches(11)[0]["input_ids"], alone["input_ids"])
    drawn = [j for step in range(20) for j in first._of_step(step)]
    stages = [j.pair.stage for j in drawn]
    assert stages.count("REASONING") == stages.count(WHOLE) == 80
    texts = [j.pair.first.text for j in drawn if j.pair.stage == WHOLE]
    assert len(set(texts)) >= 78  # all 80 pairs once, before any comes again


def test_captions_come_first_and_then_the_mixture():
    table = {
        "output": "unused",
        "model": {"path": "bundled"},
        "pairs": {"data": "scenes/train", "problems": 4, "held_out": 2},
        "judge": {"corruptions": 0.5, "captions_first": 3, "keep": 0.0},
        "train": {"steps": 6, "batch": 8},
    }
    config = parse_judge_config(table)
    problems = load_problems(config)
    done = [Done(f"q{i}", i, pairs=pairs_of(i)) for i in problems.training]
    encoder = JudgeEncoder(Encoder(loading.load(BUNDLED, "cpu", "float32")), "brief", 3.0)
    steps = JudgeSteps(config, encoder, DEFAULT_PLAN, problems.train, done, micro=8, limit=2048)
    own = {pair.first.text for each in done for pair in each.pairs}
    for step in range(6):
        drawn = steps._of_step(step)
        sampled = [j for j in drawn if own & {j.pair.first.text, j.pair.second.text}]
        assert len(drawn) == 8 and len(sampled) == (0 if step < 3 else 4)
        if step < 3:
            assert {j.pair.stage for j in drawn} == {"CAPTION"}
    stages = {j.pair.stage for step in range(3, 30) for j in steps._of_step(step)}
    assert stages == {"CAPTION", "REASONING", WHOLE}
    kinds = Counter(
        j.item.type
        for step in range(3, 60)
        for j in steps._of_step(step)
        if j.pair.stage != "CAPTION" and not own & {j.pair.first.text, j.pair.second.text}
    )
    searched = [kinds[kind] for kind in ("twins", "shared", "rank", "above")]
    summed = [kinds[kind] for kind in ("pair-sum", "pair-gap", "triple-sum")]
    assert len(kinds) > 10 and sum(searched) > 3 * sum(summed) > 0


def test_sound_leaves_out_what_was_right_by_luck():
    """A false claim counts where it is reasoned with, not where it is only seen."""
    caption, reasoning = "<CAPTION>a. b.</CAPTION>", "<REASONING>c. d.</REASONING>"
    text = caption + reasoning
    at = [text.index(word) for word in ("a.", "b.", "c.", "d.")]

    def pair(stage, true):
        marks = tuple((i, i + 2, t) for i, t in zip(at, true, strict=True))
        better, worse = (
            Candidate(text, 1.0, marks=marks),
            Candidate("e", 0.0, marks=((0, 1, False),)),
        )
        return Pair(stage, "", better, worse, "")

    honest = pair(WHOLE, (True, True, True, True))
    blurred = pair(WHOLE, (False, True, True, True))
    lucky = pair(WHOLE, (True, True, False, True))
    captions = pair("CAPTION", (False, True, True, True))
    unmarked = Pair(WHOLE, "", Candidate("x", 1.0), Candidate("y", 0.0), "")
    pairs = (honest, blurred, lucky, lucky.swapped(), captions, unmarked)
    for sound, kept in ((False, pairs), (True, (honest, blurred, captions, unmarked))):
        table = {
            "output": "unused",
            "model": {"path": "bundled"},
            "pairs": {"data": "scenes/train", "problems": 4, "held_out": 2},
            "judge": {"keep": 0.0, "sound": sound},
            "train": {"steps": 6, "batch": 8},
        }
        config = parse_judge_config(table)
        encoder = JudgeEncoder(Encoder(loading.load(BUNDLED, "cpu", "float32")), "brief", 3.0)
        steps = JudgeSteps(
            config, encoder, DEFAULT_PLAN, [], [Done("q", 0, pairs=pairs)], micro=8, limit=2048
        )
        found = [pair for some in steps.by_stage.values() for _, pair in some]
        assert sorted(map(repr, found)) == sorted(map(repr, kept))
