"""Plans, and the tag grammar: every fault by example, and any text at all."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cot_engine.core.grammar import FAULTS, conclusion, new_faults, next_stage, read, tier
from cot_engine.core.stages import DEFAULT_PLAN, DETAILS, Plan, Stage
from cot_engine.errors import ConfigError, UnknownNameError


def plan_of(*tags: str, optional: tuple[str, ...] = ()) -> Plan:
    return Plan(tuple(Stage(tag, "Write.", "Which?", optional=tag in optional) for tag in tags))


ABC = plan_of("A", "B", "C")

# text, faults while more may follow, further faults once it is complete
FAULTY = [
    ("<A>a</A><B>b</B><C>c</C>", [], []),
    ("<A>a</A>\n\n<B>b</B>\n\n<C>c</C>\n", [], []),
    ("Sure! <A>a</A><B>b</B><C>c</C>", ["stray:A"], []),
    ("<A>a</A> and <B>b</B><C>c</C>", ["stray:B"], []),
    ("<A>a</A><B>b</B><C>c</C> Bye.", [], ["stray:C"]),
    ("a</A><B>b</B><C>c</C>", ["unopened:A"], []),
    ("<A>a</A>b</B><C>c</C>", ["unopened:B"], []),
    ("<A>a</A><B>b</B><C>c", [], ["unclosed-last:C"]),
    ("<A>a</A><B>b", [], ["unclosed:B", "missing:C"]),
    ("<A>a<B>b</B><C>c</C>", ["unclosed:A"], []),
    ("<A>a</B><B>b</B><C>c</C>", ["mismatched:A"], []),
    ("<A> \n </A><B>b</B><C>c</C>", ["empty:A"], []),
    ("<A>a</A><B>b</B><C></C>", ["empty:C"], []),
    ("<A>Same  text</A><B>same\ntext</B><C>c</C>", ["echo:B"], []),
    ("<A>a</A><A>again</A><B>b</B><C>c</C>", ["repeated:A"], []),
    ("<A>a</A></A><B>b</B><C>c</C>", ["repeated:A"], []),
    ("<B>b</B><A>a</A><C>c</C>", ["skipped:A", "misplaced:A"], []),
    ("<A>a</A><C>c</C>", ["skipped:B"], []),
    ("<B>b</B><C>c</C>", ["skipped:A"], []),  # once, not again at every later stage
    ("<C>c</C>", ["skipped:A", "skipped:B"], []),
    ("<A>a</A>", [], ["missing:B", "missing:C"]),
    ("", [], ["missing:A", "missing:B", "missing:C"]),
    ("no tags", [], ["stray:C", "missing:A", "missing:B", "missing:C"]),
    ("<a>a</a><A >x</A ><D>d</D>", [], ["stray:C", "missing:A", "missing:B", "missing:C"]),
]


@pytest.mark.parametrize(("text", "at_once", "in_the_end"), FAULTY)
def test_faults_by_example(text, at_once, in_the_end):
    assert list(read(text, ABC).faults) == at_once
    assert list(read(text, ABC, complete=True).faults) == at_once + in_the_end


def test_every_fault_that_reading_finds_has_an_example():
    shown = {f.partition(":")[0] for _, now, then in FAULTY for f in (*now, *then)}
    assert shown == set(FAULTS) - {"ended"}  # which takes the model's end of turn to know


def test_contents_in_faulty_text():
    def contents(text: str) -> dict[str, str]:
        return read(text, ABC, complete=True).contents

    assert contents("<A> a </A><B>b</B><C>c</C>") == {"A": "a", "B": "b", "C": "c"}
    assert contents("a</A><B>b<C>c") == {"A": "a", "B": "b", "C": "c"}
    assert contents("<A>first</A><A>second</A>") == {"A": "first"}
    assert contents("<A>a</B>") == {"A": "a"}
    assert contents("<C>c</C><A>late</A>") == {"C": "c", "A": "late"}


def test_what_is_open():
    reading = read("<A>a</A><B>b so far", ABC)
    assert (reading.open, reading.opened) == ("B", "b so far")
    assert not reading.done(ABC)
    assert read("<A>a</A><B>b</B", ABC).open == "B"
    assert read("<A>a</A>", ABC).open is None
    assert read("<A>a</A><C>c</C>", ABC).done(ABC)
    assert read("<A>a</A><B>b", ABC, complete=True).open is None


def test_an_optional_stage_may_be_left_out():
    plan = plan_of("A", "B", "C", optional=("B",))
    assert read("<A>a</A><C>c</C>", plan, complete=True).faults == ()
    assert read("<B>b</B><C>c</C>", plan, complete=True).faults == ("skipped:A",)


def test_a_tag_that_begins_like_another_is_its_own():
    plan = plan_of("STEP", "STEP_2", "END")
    text = "<STEP>a</STEP><STEP_2>b</STEP_2><END>c</END>"
    assert read(text, plan, complete=True).faults == ()


@pytest.mark.parametrize(
    ("faults", "worst"),
    [
        ((), 0),
        (("stray:A", "unclosed-last:C"), 0),
        (("stray:A", "empty:B"), 1),
        (("missing:C", "empty:B"), 2),
    ],
)
def test_tier_is_the_worst_fault(faults, worst):
    assert tier(faults) == worst


def test_next_stage():
    def following(text: str) -> str | None:
        stage = next_stage(read(text, ABC), ABC)
        return stage and stage.tag

    assert following("") == "A"
    assert following("<A>a</A>") == "B"
    assert following("<A>open") == "B"
    assert following("<B>b</B>") == "C"  # A was skipped: not gone back to
    assert following("<C>c</C>") is None


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<A>a</A><B>b</B><C> Red. </C>", "Red."),
        ("<A>a</A><B>b</B><C>Red", "Red"),
        ("<A>a</A><B>b</B>", "b"),
        ("<A>a</A><B>b</B><C></C>", "b"),
        ("<C></C><C>late</C>", "late"),
        ("<C>first</C><C>second</C>", "first"),
        ("Just red.", "Just red."),
        ("<A></A>", ""),
        ("", ""),
    ],
)
def test_conclusion(text, answer):
    assert conclusion(text, ABC) == answer


# --- any text at all -----------------------------------------------------------------------------

PIECES = "<A> </A> <B> </B> <C> </C> <D> </D> < > </ <A </A A> <AA> text Text <image> </s>".split()
PIECES += [" ", "\n", "text", "more text", "é\u2028"]
SOUP = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=5)), max_size=14).map("".join)


@given(SOUP)
def test_any_text_is_read(text):
    for complete in (False, True):
        reading = read(text, ABC, complete)
        assert set(reading.contents) <= {"A", "B", "C"}
        assert all(content == content.strip() for content in reading.contents.values())
        for fault in reading.faults:
            name, _, tag = fault.partition(":")
            assert name in FAULTS and ABC[tag]
        assert (reading.open is None) or (not complete and reading.open in "ABC")
        assert all(reading.faults.count(f) == 1 for f in reading.faults if "skipped" in f)
    whole = read(text, ABC, complete=True)
    accounted = {f.partition(":")[2] for f in whole.faults if "missing" in f or "skipped" in f}
    assert {"A", "B", "C"} - set(whole.contents) <= accounted


@given(SOUP)
@example("<A>a")
def test_a_fault_once_found_stays(text):
    """What a prefix shows is what the whole shows first, so faults can be told apart by step."""
    whole = read(text, ABC)
    for cut in range(len(text) + 1):
        before = read(text[:cut], ABC)
        assert whole.faults[: len(before.faults)] == before.faults
        assert before.faults + new_faults(before, whole) == whole.faults
        assert before.contents.items() <= whole.contents.items()


@given(SOUP)
def test_an_answer_is_what_the_model_wrote(text):
    answer = conclusion(text, ABC)
    assert answer in text and answer == answer.strip()
    bare = text
    for stage in ABC:
        bare = bare.replace(stage.open, "\n").replace(stage.close, "\n")
    assert bool(answer) == bool(bare.strip())


CONTENT = st.text(max_size=20).filter(lambda s: s.strip() and "<" not in s)


@given(
    st.lists(CONTENT, min_size=4, max_size=4, unique_by=lambda s: " ".join(s.casefold().split()))
)
def test_a_well_formed_reply_is_read_back_without_faults(contents):
    plan = DEFAULT_PLAN
    text = "\n\n".join(f"{s.open}{c}{s.close}" for s, c in zip(plan, contents, strict=True))
    reading = read(text, plan, complete=True)
    assert reading.faults == ()
    assert list(reading.contents.items()) == [
        (stage.tag, content.strip()) for stage, content in zip(plan, contents, strict=True)
    ]
    assert conclusion(text, plan) == contents[-1].strip()
    assert reading.done(plan) and next_stage(reading, plan) is None


# --- plans ---------------------------------------------------------------------------------------


def test_the_default_plan_without_an_image_has_no_caption():
    assert [s.tag for s in DEFAULT_PLAN.fit(1)] == "SUMMARY CAPTION REASONING CONCLUSION".split()
    assert [s.tag for s in DEFAULT_PLAN.fit(0)] == "SUMMARY REASONING CONCLUSION".split()


def test_detail_sets_lengths_within_the_limit():
    brief, normal, full = (DEFAULT_PLAN.fit(1, detail) for detail in DETAILS)
    for b, n, f in zip(brief, normal, full, strict=True):
        assert (b.length, f.length) == (n.length / 2, n.length * 2)
    assert Plan((Stage("A", "", "", length=16_384),)).fit(0, "full").last.length == 16_384
    assert Plan((Stage("A", "", "", length=1),)).fit(0, "brief").last.length == 1


@pytest.mark.parametrize("tag", ["", "a", "1A", "A B", "A-B", "A" * 33, "Ä", "A>", "A\n"])
def test_tags_that_are_refused(tag):
    with pytest.raises(ConfigError, match="tag"):
        Stage(tag, "", "")


@pytest.mark.parametrize(
    "values", [{"length": 0}, {"length": 16_385}, {"width": 0}, {"width": 1025}, {"width": -1}]
)
def test_numbers_that_are_refused(values):
    with pytest.raises(ConfigError, match=str(next(iter(values.values())))):
        Stage("A", "", "", **values)


def test_plans_that_are_refused():
    with pytest.raises(ConfigError, match="no stages"):
        Plan(())
    with pytest.raises(ConfigError, match="more than once"):
        plan_of("A", "B", "A")
    with pytest.raises(ConfigError, match="last stage, B"):
        plan_of("A", "B", optional=("B",))
    with pytest.raises(ConfigError, match="last stage, A"):
        Plan((Stage("A", "", "", needs_image=True),))


def test_a_stage_is_found_by_its_tag():
    assert DEFAULT_PLAN["CAPTION"].needs_image
    assert DEFAULT_PLAN.index("REASONING") == 2
    with pytest.raises(UnknownNameError, match="SUMMARY"):
        DEFAULT_PLAN["SUMARY"]


STAGE = '[[stage]]\ntag = "A"\npurpose = "Think."\nquestion = "Which?"\n'


def test_a_plan_from_toml(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(
        STAGE + "length = 7\nwidth = 3\noptional = true\n" + STAGE.replace('"A"', '"B"')
    )
    plan = Plan.from_toml(path)
    assert plan["A"] == Stage("A", "Think.", "Which?", 7, 3, True)
    assert plan.last == Stage("B", "Think.", "Which?")


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("", r"no \[\[stage\]\]|no stages"),
        ("stage = 3", "stage"),
        ("stage = [3]", "stage"),
        ("[stage]\ntag = 'A'", "stage"),
        ("other = 1\n" + STAGE, "other"),
        (STAGE + "lenght = 3", "length"),
        (STAGE + "length = '3'", "whole number"),
        (STAGE + "length = true", "whole number"),
        (STAGE + "optional = 1", "true or false"),
        (STAGE + "length = 0", "length 0"),
        ("[[stage]]\ntag = 'A'", "purpose, question"),
        ("[[stage", "TOML"),
    ],
)
def test_a_plan_that_is_wrong_says_why(tmp_path, toml, said):
    path = tmp_path / "plan.toml"
    path.write_text(toml)
    with pytest.raises((ConfigError, UnknownNameError), match=said):
        Plan.from_toml(path)


def test_a_plan_that_cannot_be_read(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "none.toml", tmp_path, tmp_path / "binary.toml", "null\0byte"):
        with pytest.raises(ConfigError, match="plan"):
            Plan.from_toml(path)
