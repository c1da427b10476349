"""Pairs of candidates: labelled by the truth, kept whatever happens to the process, none twice."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cot_engine import Engine, RunConfig
from cot_engine.ablation.worth import SENTENCE, WHOLE
from cot_engine.core.grammar import conclusion, read
from cot_engine.core.requests import GREEDY, Generate, Prompt, Segment
from cot_engine.core.stages import DEFAULT_PLAN
from cot_engine.errors import InputError, ModelError, StoreError
from cot_engine.questions.data import load_data, scene_item
from cot_engine.scenes import grade, grade_caption, sample
from cot_engine.testing import ScriptedBackend, staged_reply
from cot_engine.training.pairs import Candidate, Done, Pair, PairsFile
from cot_engine.training.sampling import Sampler, check_enough, sample_pairs, sampled

RECIPE = {"model": "m", "n": 4}
STAGES = ("SUMMARY", "REASONING", WHOLE)


def questions(folder, n=6, answer="0"):
    path = folder / "questions.jsonl"
    rows = [{"id": f"q{i}", "question": f"How many? ({i})", "answer": answer} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_data("questions.jsonl", folder=folder).items


def sampler(stages=STAGES, **more):
    return Sampler(RunConfig(seed=3, mode="trained"), stages, **more)


def one(backend, item, how, index=0):
    return asyncio.run(sampled(Engine(backend), item, index, how))


# --- labels --------------------------------------------------------------------------------------


def ends(backend, item, text):
    """What the likeliest continuation of a turn scores, asked for outside of any search."""
    prompt = Prompt(item.question)
    until = __import__("cot_engine.core.boundaries", fromlist=["Until"]).Until(
        (DEFAULT_PLAN.last.close,)
    )
    request = Generate("alone", prompt, (Segment(text),), until, (0,), 500, GREEDY)
    written = asyncio.run(backend.generate(request)).generations[0].text
    return item.grade(conclusion(text + written, DEFAULT_PLAN))


def follows(request, seed):
    """Ends in the number of its reasoning, so that what a reasoning is worth differs."""
    text = staged_reply(request, seed)
    written = "".join(s.text for s in request.prefix) + text
    said = read(written, DEFAULT_PLAN).contents.get("REASONING", "About reasoning 0.")
    number = said.removesuffix(".").split(" ")[-1]
    start, found, _ = text.partition("<CONCLUSION>")
    return f"{start}<CONCLUSION>{number}</CONCLUSION>" if found else text


def test_labels_are_those_of_each_candidate_continued_by_itself(tmp_path):
    backend = ScriptedBackend(follows)
    kinds = set()
    for index, item in enumerate(questions(tmp_path)):
        done = one(backend, item, sampler(per_problem=50, n=6), index)
        assert not done.error
        for pair in done.pairs:
            kinds.add(pair.stage)
            for each in (pair.first, pair.second):
                text = pair.shared + each.text
                if pair.stage == WHOLE:
                    assert pair.shared == ""
                    assert each.label == item.grade(conclusion(text, DEFAULT_PLAN))
                else:
                    assert each.label == ends(backend, item, text)
                    assert pair.stage in read(text, DEFAULT_PLAN).contents
                    assert pair.stage not in read(pair.shared, DEFAULT_PLAN).contents
            assert pair.first.label != pair.second.label and pair.first.text != pair.second.text
            assert pair.better == int(pair.second.label > pair.first.label)
    assert kinds == {"REASONING", WHOLE}  # a summary decides nothing here


def test_likelihoods_and_texts_are_those_of_the_search(tmp_path):
    [item] = questions(tmp_path, 1)
    done = one(ScriptedBackend(follows), item, sampler(("REASONING",), per_problem=50, n=6))
    assert done.pairs
    for pair in done.pairs:
        first, second = pair.chains()
        assert first.likelihood(1) == pytest.approx(pair.first.logprob / pair.first.tokens)
        assert first.text == pair.shared + pair.first.text and second.text != first.text
        assert pair.first.tokens == len(pair.first.text.split())


def test_a_problem_gives_at_most_so_many_pairs_and_the_stages_take_turns(tmp_path):
    [item] = questions(tmp_path, 1)
    backend = ScriptedBackend(follows)
    every = one(backend, item, sampler(("REASONING", WHOLE), per_problem=1000, n=8))
    stages = [pair.stage for pair in every.pairs]
    assert min(stages.count("REASONING"), stages.count(WHOLE)) >= 3
    some = one(backend, item, sampler(("REASONING", WHOLE), per_problem=5, n=8))
    assert [p.stage for p in some.pairs] == ["REASONING", WHOLE, "REASONING", WHOLE, "REASONING"]
    assert {(p.first.text, p.second.text) for p in some.pairs} <= {
        (p.first.text, p.second.text) for q in every.pairs for p in (q, q.swapped())
    }


def test_which_of_a_pair_stands_first_says_nothing(tmp_path):
    items = questions(tmp_path, 40)
    backend = ScriptedBackend(follows)
    better = [
        pair.better
        for index, item in enumerate(items)
        for pair in one(backend, item, sampler((WHOLE,), n=4), index).pairs
    ]
    assert len(better) > 60 and 0.3 < sum(better) / len(better) < 0.7


def test_sentences_are_pairs_too(tmp_path):
    [item] = questions(tmp_path, 1)
    done = one(ScriptedBackend(follows), item, sampler((SENTENCE,), n=6, per_problem=99))
    assert {pair.stage for pair in done.pairs} == {SENTENCE}
    assert {pair.question for pair in done.pairs} == {"REASONING"}  # the one that decides ends it


def test_faulty_and_equal_candidates_are_left_out(tmp_path):
    def faulty(request, seed):
        text = follows(request, seed)
        return (
            text.replace("</REASONING>", "</REASONING><REASONING>x</REASONING>")
            if seed % 2
            else text
        )

    [item] = questions(tmp_path, 1)
    done = one(ScriptedBackend(faulty), item, sampler((WHOLE,), n=8, per_problem=99))
    texts = [c.text for pair in done.pairs for c in (pair.first, pair.second)]
    assert texts and not any("<REASONING>x" in text for text in texts)
    n, _, different = done.seen[WHOLE]
    assert n == 8 and different <= 8
    assert len({frozenset((p.first.text, p.second.text)) for p in done.pairs}) == len(done.pairs)


def test_captions_of_scenes_count_by_their_facts():
    scene = sample(0, 1, "train")
    item = scene_item(scene)
    truth = scene.staged["CAPTION"]
    claims = truth.split(". ") if ". " in truth else truth.split(", ")
    short = truth.replace(claims[-1], "").strip()
    captions = {0: truth, 1: short or "x", 2: "nothing at all", 3: truth + " "}

    def says(request, seed):
        text = staged_reply(request, seed)
        before, _, after = text.partition("<CAPTION>")
        if not after:
            return text
        return f"{before}<CAPTION>{captions[seed % 4]}</CAPTION>{after.partition('</CAPTION>')[2]}"

    for graded in (True, False):
        how = Sampler(RunConfig(mode="trained"), ("CAPTION",), 16, 99, graded)
        done = one(ScriptedBackend(says), item, how)
        assert done.pairs, done
        for pair in done.pairs:
            for each in (pair.first, pair.second):
                said = read(each.text, DEFAULT_PLAN).contents["CAPTION"]
                right, there = grade_caption(said, scene.objects)
                assert each.label == right / there
            assert pair.first.label != pair.second.label
            assert graded or 1.0 in (pair.first.label, pair.second.label)
        assert done.seen["CAPTION"][0] == 16
    assert len(done.images) == 1
    captions = dict.fromkeys(range(4), truth)
    assert one(ScriptedBackend(says), item, how).seen["CAPTION"] == (16, 16.0, 1)


def test_marks_are_the_claims_of_the_text():
    from cot_engine.scenes.corruption import corrupt
    from cot_engine.training.sampling import scene_marks

    rng, seen = random.Random(0), set()
    for index in range(60):
        scene = sample(0, index, "train")
        for about in ("CAPTION", "REASONING", "whole"):
            made = corrupt(rng, scene, about)
            worse = list(scene_marks(made.worse, scene))
            assert not all(true for _, _, true in worse)
            for text in (made.better, made.worse):
                marks = list(scene_marks(text, scene))
                inside = "".join(text[start:end] for start, end, _ in marks)
                contents = read(text, DEFAULT_PLAN).contents
                wanted = "".join(contents.get(tag, "") for tag in ("CAPTION", "REASONING"))
                assert inside.replace(" ", "") == wanted.replace(" ", "")
            assert made.values[0] > made.values[1]
            if about == "CAPTION":
                contents = read(made.better, DEFAULT_PLAN).contents["CAPTION"]
                right, there = grade_caption(contents, scene.objects)
                assert made.values[0] == right / there
                seen.add(made.values[0] == 1)
            if about == "whole":
                said = [conclusion(t, DEFAULT_PLAN) for t in (made.better, made.worse)]
                assert [grade(s, scene.answer) for s in said] == [True, False]
    assert seen == {True, False}, "the better caption is not always without mistakes"


def test_what_is_wrong_with_a_problem_is_kept_and_a_broken_model_stops_all(tmp_path):
    items = questions(tmp_path, 2)

    class Broken(ScriptedBackend):
        error: Exception = InputError("too long")

        async def generate(self, request):
            raise self.error

    done = one(Broken(), items[0], sampler())
    assert "too long" in done.error and not done.pairs
    Broken.error = ModelError("out of memory")
    with pytest.raises(ModelError):
        one(Broken(), items[0], sampler())


# --- the file ------------------------------------------------------------------------------------


def pair(label=1.0, text="a\u2028é\ud83d"):
    marks = ((0, 1, True),)
    return Pair("CAPTION", "<SUMMARY>s</SUMMARY>", Candidate(text, label, -1.5, 3, marks),
                Candidate("b", 0.0, -2.0, 4), "CAPTION")  # fmt: skip


def test_what_is_written_is_read_again(tmp_path):
    first = Done("p", 4, ("d",), {"CAPTION": (4, 1.5, 3)}, (pair(), pair(0.5, "c")))
    second = Done("q", 2, error="it failed")
    with PairsFile(tmp_path / "deep" / "pairs.jsonl", RECIPE) as file:
        file.add(first)
        file.add(second)
    again = PairsFile(tmp_path / "deep" / "pairs.jsonl")
    assert again.done == {4: first, 2: second} and again.recipe == RECIPE
    with PairsFile(tmp_path / "deep" / "pairs.jsonl", RECIPE) as file:
        assert file.done == again.done


def test_every_place_where_a_kill_may_cut_the_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    done = [Done(f"p{i}", i, pairs=(pair(text="x" * i),)) for i in range(3)]
    with PairsFile(path, RECIPE) as file:
        for each in done:
            file.add(each)
    data = path.read_bytes()
    ends = [k for k, byte in enumerate(data) if byte == ord("\n")]
    near = {k + step for k in ends for step in (-1, 0, 1, 2)}
    cuts = near | set(random.Random(1).sample(range(len(data)), 40)) | {0, 1}
    for cut in sorted(cuts):
        path.write_bytes(data[:cut])
        with PairsFile(path, RECIPE) as file:
            kept = file.done
            assert list(kept.values()) == done[: len(kept)]
            whole = data[:cut].count(b"\n")
            assert len(kept) == max(0, whole - 1)
            for each in done[len(kept) :]:
                file.add(each)
        assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"hello\n", "no pairs file"),
        (b'{"pairs": "pairs-0", "recipe": {}}\n', "pairs-0"),
        (b'{"pairs": "pairs-1", "recipe": {"model": "m", "n": 4}}\n{"problem": 1}\n', "no pairs"),
        (b"\xff\xfe\n", "no pairs file"),
        (b"[]\n", "no pairs file"),
    ],
)
def test_a_file_that_is_none_is_left_alone(tmp_path, content, said):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=said):
        PairsFile(path, RECIPE)
    assert path.read_bytes() == content


def test_another_recipe_is_named(tmp_path):
    PairsFile(tmp_path / "p.jsonl", RECIPE).close()
    with pytest.raises(InputError, match=r"n 4 \(now 8\)"):
        PairsFile(tmp_path / "p.jsonl", RECIPE | {"n": 8})


def test_one_process_at_a_time(tmp_path):
    with (
        PairsFile(tmp_path / "p.jsonl", RECIPE),
        pytest.raises(StoreError, match=f"Process {os.getpid()} on .* is writing to the pairs"),
    ):
        PairsFile(tmp_path / "p.jsonl", RECIPE)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        PairsFile(tmp_path / "file" / "pairs.jsonl", RECIPE)


DYING = """
    import asyncio, os, signal, sys
    from pathlib import Path
    from test_pairs import RECIPE, follows, questions, sampler
    from cot_engine import Engine
    from cot_engine.testing import ScriptedBackend
    from cot_engine.training.pairs import PairsFile
    from cot_engine.training.sampling import sample_pairs

    class Dying(ScriptedBackend):
        left = int(sys.argv[2])

        async def generate(self, request):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return await super().generate(request)

    folder = Path(sys.argv[1])
    items = questions(folder, 30)
    with PairsFile(folder / "pairs.jsonl", RECIPE) as file:
        sample_pairs(Engine(Dying(follows), in_flight=4), items, range(30), sampler(n=3), file)
"""


def test_killed_anywhere_it_comes_to_the_same_pairs(tmp_path):
    items = questions(tmp_path, 30)
    with PairsFile(tmp_path / "whole.jsonl", RECIPE) as file:
        sample_pairs(Engine(ScriptedBackend(follows)), items, range(30), sampler(n=3), file)
    script = tmp_path / "dying.py"
    script.write_text(textwrap.dedent(DYING))
    env = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}"}
    left = []
    for calls in (1, 23, 60, 0):  # the last one lives
        command = [sys.executable, str(script), str(tmp_path), str(calls)]
        code = subprocess.run(command, env=env, timeout=120).returncode
        assert code == (-signal.SIGKILL if calls else 0)
        left.append((tmp_path / "pairs.jsonl").read_bytes().count(b"\n"))
    assert left == sorted(left) and left[0] < left[2] < left[3] == 31  # each went on
    made, whole = ((tmp_path / name).read_bytes() for name in ("pairs.jsonl", "whole.jsonl"))
    assert made.split(b"\n")[0] == whole.split(b"\n")[0]
    assert sorted(made.split(b"\n")) == sorted(whole.split(b"\n"))


def test_it_stops_when_it_is_told_to_and_goes_on(tmp_path):
    items = questions(tmp_path, 12)
    engine = Engine(ScriptedBackend(follows), in_flight=2)
    with PairsFile(tmp_path / "pairs.jsonl", RECIPE) as file:
        sample_pairs(engine, items, range(12), sampler(), file, stop=lambda: len(file.done) >= 5)
        assert 5 <= len(file.done) <= 7
        had = dict(file.done)
        seen = []
        sample_pairs(engine, items, range(12), sampler(), file, on_done=seen.append)
        assert len(file.done) == 12 and not had.keys() & {done.index for done in seen}


# --- no pairs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ((40, 39.0, 30), "too good"),
        ((40, 1.0, 30), "too bad"),
        ((40, 20.0, 4), "only 4 were different"),
        ((40, 20.0, 30), "whole selections at a time"),
    ],
)
def test_without_any_pair_it_says_why_and_what_to_do(seen, said):
    done = [Done("p", 0, seen={"CAPTION": seen})]
    with pytest.raises(InputError, match=said) as caught:
        check_enough(done, ["CAPTION"], "training")
    assert "temperature" in caught.value.hint


def test_a_stage_without_pairs_is_noted():
    done = [Done("p", 0, seen={"CAPTION": (4, 2.0, 4), WHOLE: (4, 4.0, 4)}, pairs=(pair(),))]
    [note] = check_enough(done, ["CAPTION", WHOLE], "training")
    assert "whole" in note and "too good" in note
    with pytest.raises(InputError, match="All 1 problems failed, the first thus: no"):
        check_enough([Done("p", 0, error="no")], ["CAPTION"], "training")
