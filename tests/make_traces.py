"""Small traces made by hand, for drawing: every case that a view must show."""

from __future__ import annotations

import base64
import io
import itertools
import random
from dataclasses import replace

from cot_engine.core.chain import Chain, Step
from cot_engine.core.events import (
    Cut,
    Failed,
    Finished,
    Growing,
    Grown,
    ImageRecord,
    Judged,
    Judging,
    Notice,
    Selected,
    Started,
)
from cot_engine.core.fold import Fold
from cot_engine.core.grammar import conclusion
from cot_engine.core.match import Match, Verdict
from cot_engine.core.requests import BackendInfo, Sampling, Segment
from cot_engine.core.stages import DEFAULT_PLAN, Plan
from cot_engine.core.trace import Trace
from cot_engine.core.usage import Usage

INFO = BackendInfo(
    "transformers", "bundled", "sha256:0123456789ab", "LlavaForConditionalGeneration", "cpu",
    "float32", 512, 1,
)  # fmt: skip
GENERATE = Usage(1, 96, 180, 64, 1_250_000_000, 4, 0.21)
JUDGE = Usage(0, 210, 640, 0, 930_000_000, 4, 0.08)


def image(text: str = "scene.png") -> ImageRecord:
    """A little picture of two squares."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (64, 64), "#ece7dc")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((8, 10, 26, 28), fill="#b03a2e")
    draw.ellipse((36, 34, 56, 54), fill="#2e6da4")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return ImageRecord(
        "sha256:feed", text, (64, 64), (), base64.b64encode(buffer.getvalue()).decode()
    )


class Recorder:
    """Records a search step by step, keeping ids, merging and usage as the engine does."""

    def __init__(self, question: str, images=(), strategy="stage-beam", parameters=None, **more):
        plan = DEFAULT_PLAN.fit(len(images))
        settings = {
            "judge": "self", "tournament": "knockout", "orders": "both", "judge_image": "seen",
            "plan": plan, "mode": "trained", "detail": "normal", "seed": 7,
            "sampling": Sampling(), "budget": None, "backend": INFO,
            "versions": {"cot-engine": "0.1.0", "torch": "2.9.0", "transformers": "5.20.0"},
        } | more  # fmt: skip
        parameters = {"n": 4, "keep": 1} if parameters is None else parameters
        self.plan: Plan = settings["plan"]
        self.events = [
            Started("p1", question, tuple(images), strategy, parameters, **settings),
        ]
        self.chains = {"r": Chain()}
        self.children: dict[str, int] = {}
        self.round = 0  # of what comes next; 0 as before rounds were numbered

    def add(self, event) -> None:
        numbered = self.round and hasattr(event, "round")
        self.events.append(replace(event, round=self.round) if numbered else event)

    def grow(self, parent, unit: str, texts, *, faults=None, forced=False, logprobs=None):
        """Grow a chain by each of the texts, or several, each by its share of them; returns the
        new ids."""
        parents = (parent,) if isinstance(parent, str) else tuple(parent)
        if not forced:
            self.add(Growing(parents, unit, len(texts) // len(parents)))
        made = []
        for at, text in enumerate(texts):
            parent = parents[at * len(parents) // len(texts)]
            index = self.children.get(parent, 0)
            self.children[parent] = index + 1
            tokens = max(1, len(text.split()))
            logprob = -(logprobs[at] if logprobs else 0.05 + 0.04 * at) * tokens
            tags = [s.tag for s in self.plan if f"<{s.tag}>" in text]
            stage = tags[-1] if tags else unit
            step = Step(text, (Segment(text, tuple(range(tokens))),), stage, logprob, tokens,
                        "stop", tuple((faults or {}).get(at, ())))  # fmt: skip
            chain = self.chains[parent].grow(index, step, f"</{self.plan.last.tag}>" in text)
            self.chains[chain.id] = chain
            made.append(chain)
        records = tuple(Chain(c.id, c.steps[-1:], c.done, c.count) for c in made)
        self.add(Grown(unit, records, GENERATE, forced))
        return [chain.id for chain in made]

    def select(self, ids, matches=(), *, about="step", merged=None, unjudged=None, ranking=(),
               keep=1, end=True, again=True):  # fmt: skip
        """A tournament of the given matches; returns who was kept."""
        merged, unjudged = merged or {}, unjudged or {}
        folded = {id for others in merged.values() for id in others}
        entrants = tuple(id for id in ids if id not in folded and id not in unjudged)
        stage = self.chains[ids[0]].last.stage
        if len(entrants) > 1 and again:
            self.add(Judging(about, stage, entrants))
            for match in matches:
                self.add(Judged(match))
        if not end:
            return ()
        ranking = tuple(ranking) or _ranking(entrants, matches)
        kept = ranking[:keep]
        self.add(Selected(about, stage, tuple(ids), merged, unjudged, tuple(matches), ranking,
                          kept, JUDGE if matches else Usage()))  # fmt: skip
        return kept

    def finish(self, chain: str, left: float | None = None) -> Trace:
        answer = conclusion(self.chains[chain].text, self.plan)
        faults: dict[str, int] = {}
        for event in self.events:
            for grown in getattr(event, "chains", ()):
                for fault in grown.steps[-1].faults:
                    name = fault.partition(":")[0]
                    faults[name] = faults.get(name, 0) + 1
        usage = Fold(self.events).usage
        self.add(Finished(answer, chain, usage, faults, left, 1.25))
        return self.trace()

    def trace(self) -> Trace:
        return Trace(self.events)


def _ranking(entrants, matches):
    wins = {id: sum(match.winner == id for match in matches) for id in entrants}
    return tuple(sorted(entrants, key=lambda id: -wins[id]))


def match(
    a: str, b: str, one: float, two: float, *, unreadable=(), texts=("", ""), broken=""
) -> Match:
    """A match of a against b: `one` is the margin of (a, b), `two` that of (b, a)."""
    verdicts = []
    for at, margin in enumerate((one, two)):
        if at in unreadable:
            verdicts.append(Verdict("tie", 0.0, False, texts[at]))
        else:
            outcome = "first" if margin > 0 else "second" if margin < 0 else "tie"
            verdicts.append(Verdict(outcome, margin, True, texts[at]))
    signs = [0 if at in unreadable else (m > 0) - (m < 0) for at, m in enumerate((one, two))]
    if signs[0] and signs[0] == -signs[1]:
        outcome = "first" if signs[0] > 0 else "second"
        return Match(a, b, tuple(verdicts), outcome, a if outcome == "first" else b)
    return Match(a, b, tuple(verdicts), "tie", a, broken or "likelihood")


def tag(stage: str, *texts: str) -> list[str]:
    return [f"<{stage}>{text}</{stage}>" for text in texts]


def stage_beam() -> Trace:
    """Four stages with merged candidates, a flipped match, an unreadable verdict and faults."""
    r = Recorder(
        "How many red things are left of the blue circle?", [image()], budget="2e+10 flops"
    )
    a = r.grow("r", "SUMMARY", tag("SUMMARY", "I list the things and count the red ones.",
               "I list the objects and count red ones left of the circle.",
               "I list the things and count the red ones.", "I look."))  # fmt: skip
    (kept,) = r.select(
        a,
        [match(a[0], a[3], 2.31, -1.87), match(a[1], a[0], 0.42, 0.61)],
        merged={a[0]: (a[2],)},
        ranking=(a[1], a[0], a[3]),
    )
    b = r.grow(kept, "CAPTION", [*tag("CAPTION", "A red square top left and a blue circle bottom"
               " right.", "A red square and a blue circle.", "A green square."),
               "<CAPTION>A red square to the"], faults={3: ("unclosed:CAPTION",)})  # fmt: skip
    (kept,) = r.select(
        b,
        [
            match(b[0], b[2], 3.4, -2.9),
            match(b[1], b[0], 0, -0.8, unreadable=(0,), texts=("Well, both are good.", "2")),
        ],
        unjudged={b[3]: "unclosed:CAPTION"},
        ranking=(b[1], b[0], b[2]),
    )
    r.add(Cut("candidates", 4, 2, 6.1e9))
    c = r.grow(kept, "REASONING", tag("REASONING", "The red square is left of the blue circle."
               " That is one.", "There are two things, so two."))  # fmt: skip
    (kept,) = r.select(c, [match(c[1], c[0], -1.2, 1.6)], ranking=(c[0], c[1]))
    d = r.grow(kept, "CONCLUSION", tag("CONCLUSION", "1", "1"))
    r.select(d, merged={d[0]: (d[1],)})
    return r.finish(d[0], left=4.2e9)


def best_of_n(n: int = 4, tournament: str = "knockout", texts: bool = True) -> Trace:
    """Whole responses; the judge gave reasons. A knockout or everyone against everyone."""
    r = Recorder("What is on the left?", [image()], "best-of-n", {"n": n}, judge="rationale",
                 tournament=tournament)  # fmt: skip
    rng = random.Random(n)
    things = ["a red square", "a blue circle", "a red circle", "nothing", "a square", "two squares"]
    replies = [
        f"<SUMMARY>I look at the left side, way {i}.</SUMMARY><CAPTION>A red square and a blue"
        f" circle.</CAPTION><REASONING>On the left I see {things[i % 6]}.</REASONING><CONCLUSION>"
        f"{things[i % 6]}</CONCLUSION>"
        for i in range(n)
    ]
    ids = r.grow("r", "end", replies)

    def meet(a: str, b: str) -> Match:
        one, two = rng.choice([(1, -1), (1, -1), (-1, 1), (1, 1)])
        said = (
            "The first names the colour. Choice: 1",
            "Both fit, the second is fuller. Choice: 2",
        )
        return match(a, b, one, two, texts=said if texts else ("", ""))

    matches = []
    if tournament == "round-robin":
        matches = [meet(a, b) for at, a in enumerate(ids) for b in ids[:at]]
    else:
        left = list(ids)
        while len(left) > 1:
            played = [meet(*left[i : i + 2]) for i in range(0, len(left) - 1, 2)]
            matches += played
            left = [m.winner for m in played] + left[len(played) * 2 :]
    (kept,) = r.select(ids, matches, about="whole",
                       ranking=() if tournament == "round-robin" else
                       (left[0], *(id for id in ids if id != left[0])))  # fmt: skip
    return r.finish(kept)


def majority() -> Trace:
    """Five responses and a vote; nothing is judged."""
    r = Recorder("What is 3 × 4?", (), "majority", {"n": 5})
    said = ["12", "12.", "14", "12", "7"]
    ids = r.grow("r", "end", [f"<SUMMARY>I multiply.</SUMMARY><REASONING>3 × 4 = {x}</REASONING>"
                 f"<CONCLUSION>{x}</CONCLUSION>" for x in said])  # fmt: skip
    return r.finish(ids[0])


def greedy() -> Trace:
    """One response, none to compare it with; without an image and with a stage missing."""
    r = Recorder("Is 7 prime?", (), "greedy", {})
    ids = r.grow("r", "end", ["<SUMMARY>I test the divisors.</SUMMARY><CONCLUSION>Yes"],
                 faults={0: ("skipped:REASONING", "unclosed-last:CONCLUSION")})  # fmt: skip
    return r.finish(ids[0])


def sentence_beam(sentences: int = 7) -> Trace:
    """A column for every sentence, two beams kept."""
    r = Recorder("What is drawn?", [image()], "sentence-beam", {"n": 2, "keep": 2})
    kept: tuple[str, ...] = ("r",)
    for number in range(sentences):
        ids = []
        for parent in kept:
            open_ = "<SUMMARY>" if number == 0 else ""
            close = "</SUMMARY>" if number == 1 else ""
            if number == 2:
                open_ = "<CAPTION>"
            if number == sentences - 1:
                open_, close = "</CAPTION><CONCLUSION>", "</CONCLUSION>"
            ids += r.grow(parent, "sentence", [f"{open_}Sentence {number + 1} says {word}.{close}"
                          for word in ("this", "that")])  # fmt: skip
        matches = [match(ids[1], ids[0], -0.7, 0.2)]
        if len(ids) > 2:
            matches += [match(ids[2], ids[3], -1.1, 0.9)]
        winners = [m.winner for m in matches]
        kept = r.select(
            ids, matches, keep=2, ranking=(*winners, *(i for i in ids if i not in winners))
        )
    return r.finish(kept[0])


def interrupted() -> Trace:
    """Ctrl-C in the middle of the second stage's tournament."""
    r = Recorder("Which shape is above the others?", [image("photo.jpg")])
    r.add(Notice("The image has 12 frames; the first one is used."))
    a = r.grow("r", "SUMMARY", tag("SUMMARY", *["I compare the heights."] * 4))
    (kept,) = r.select(a, merged={a[0]: tuple(a[1:])})
    b = r.grow(kept, "CAPTION", tag("CAPTION", "A square above a circle.", "A square.", "Circles."))
    r.select(b, [match(b[0], b[1], 0.5, -0.4)], end=False)
    r.add(Growing((b[0],), "REASONING", 4))
    r.add(Failed("KeyboardInterrupt", ""))
    return r.trace()


HOSTILE = (
    "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    "</style></title></textarea><svg onload=alert(1)> javascript:alert(1) [red]\x1b[31m\x07"
    " \u202egnp.exe\u2069 ' onfocus='alert(1)' autofocus x='"
)


def hostile() -> Trace:
    """Every text a user or a model can write, written by an enemy."""
    bad = ImageRecord('"><script>1</script>', f'"{HOSTILE}', (64, 64), (HOSTILE,), '"><script>')
    info = BackendInfo(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, 1, 1, (HOSTILE,))
    r = Recorder(HOSTILE, [bad], HOSTILE, {HOSTILE: HOSTILE}, judge=HOSTILE, tournament=HOSTILE,
                 backend=info, versions={HOSTILE: HOSTILE}, budget=HOSTILE)  # fmt: skip
    r.add(Notice(HOSTILE))
    ids = r.grow("r", "CONCLUSION", tag("CONCLUSION", HOSTILE, HOSTILE * 4),
                 faults={1: (f"stray:{HOSTILE}",)})  # fmt: skip
    (kept,) = r.select(ids, [match(ids[0], ids[1], 1, -1, texts=(HOSTILE, HOSTILE))])
    return r.finish(kept, left=1.0)


def long() -> Trace:
    """A 1,000-character question, long answers, two images, an unbreakable word."""
    question = ("Consider the two pictures with care. " * 27)[:1000]
    r = Recorder(question, [image("before.png"), image("a/very/long/path/" + "x" * 120 + ".png")])
    text = "The first picture shows a red square and the second one a blue circle. " * 12
    kept = "r"
    for stage in r.plan:
        ids = r.grow(kept, stage.tag, tag(stage.tag, text, text + "w" * 150, "Short."))
        played = [match(ids[0], ids[1], 0.3, -0.2), match(ids[2], ids[0], -10.25, 12.5)]
        (kept,) = r.select(ids, played, ranking=(ids[0], ids[2], ids[1]))
    return r.finish(kept)


def wide(n: int = 16) -> Trace:
    """A stage with many candidates, dropped one by one in random pairs."""
    r = Recorder("How many?", [image()], parameters={"n": n, "keep": 1}, tournament="random-pairs")
    rng = random.Random(5)
    kept = "r"
    for stage in r.plan:
        texts = [f"Candidate number {i} has its own idea." for i in range(n)]
        ids = r.grow(kept, stage.tag, tag(stage.tag, *texts))
        left, played = list(ids), []
        while len(left) > 1:
            a, b = rng.sample(left, 2)
            one = round(rng.uniform(-3, 3), 2)
            played.append(match(a, b, one, round(-one + rng.uniform(-1.5, 1.5), 2)))
            left.remove(b if played[-1].winner == a else a)
        (kept,) = r.select(ids, played, ranking=(left[0], *(i for i in ids if i != left[0])))
    return r.finish(kept)


def lookahead() -> Trace:
    """Each stage is chosen by what would come after it: the deeper ones are judged, the shallower
    kept, and grown from again. The last two end it."""
    r = Recorder("How many red things are there?", [image()], "lookahead", {"n": 3})
    said = {
        "SUMMARY": ["I count the red things.", "I look.", "I list what I see and count."],
        "CAPTION": ["A red square and a blue circle.", "A red square.", "Two shapes, one red."],
        "REASONING": ["One is red.", "Both have a colour.", "The square is red, the circle not."],
        "CONCLUSION": ["1", "2", "1"],
    }

    def grow(parents, unit: str, n: int):
        r.round += 1
        return r.grow(parents, unit, tag(unit, *said[unit][:n]))

    def ahead(unit: str, among):
        seen = grow(among, unit, 3)
        r.round += 1
        played = [match(seen[0], seen[1], 1.2, -0.4), match(seen[2], seen[0], 0.9, -1.1)]
        return r.select(seen, played, ranking=(seen[2], seen[0], seen[1]))[0]

    kept = "r"
    for unit, after in (("SUMMARY", "CAPTION"), ("CAPTION", "REASONING")):
        kept = ahead(after, grow(kept, unit, 3)).rpartition(".")[0]
    return r.finish(ahead("CONCLUSION", grow(kept, "REASONING", 3)))


def at_once() -> Trace:
    """Two beams that go on for themselves: their requests are made and answered together, and
    their events interleave. Their best meet at the end."""
    r = Recorder("What is left of the circle?", [image()], "two-beams", {"n": 2}, budget="90 calls")
    r.round = 1
    ids = r.grow("r", "SUMMARY", tag("SUMMARY", "I look left.", "I find the circle first.", "Hm."))
    r.round = 2
    beams = list(r.select(ids, [match(ids[0], ids[2], 1, -1), match(ids[1], ids[2], 2, -1)],
                          ranking=(ids[1], ids[0], ids[2]), keep=2))  # fmt: skip
    for unit in ("CAPTION", "REASONING"):
        grown = []
        for at, beam in enumerate(beams):
            r.round = max(r.round + 1, 3)
            if at:
                r.add(Cut("candidates", 3, 2, 41))
            texts = [f"Beam {at + 1} says {word} in its {unit.lower()}." for word in ("so", "no")]
            grown.append(r.grow(beam, unit, tag(unit, *texts)))
        _weave(r, 2)
        for at, (one, other) in enumerate(grown):
            r.round += 1
            if at and unit == "REASONING":
                r.add(Judging("step", unit, (one, other)))
                r.add(Cut("matches", 1, 0, 3))
                lot = match(one, other, 0, 0, unreadable=(0, 1), broken="draw",
                            texts=["not judged: out of budget"] * 2)  # fmt: skip
                r.add(Judged(lot))
                (beams[at],) = r.select((one, other), [lot], again=False)
            else:
                (beams[at],) = r.select((one, other), [match(one, other, at + 1, at - 2)])
        _weave(r, 2)
    r.round += 1
    ends = [r.grow(beams, "CONCLUSION", tag("CONCLUSION", "A square", "The red square"))]
    r.round += 1
    return r.finish(r.select(ends[0], [match(ends[0][0], ends[0][1], -0.3, 0.2)])[0], left=2)


def _weave(r: Recorder, n: int) -> None:
    """The events of the last `n` rounds take turns, the last round first."""
    rounds = [[e for e in r.events if getattr(e, "round", 0) == r.round - k] for k in range(n)]
    r.events = [e for e in r.events if not 0 <= r.round - getattr(e, "round", -1) < n]
    turns = itertools.zip_longest(*rounds)
    r.events += [event for turn in turns for event in turn if event is not None]


TRACES = {
    "stage-beam": stage_beam,
    "best-of-n": best_of_n,
    "round-robin": lambda: best_of_n(5, "round-robin", texts=False),
    "majority": majority,
    "greedy": greedy,
    "sentence-beam": sentence_beam,
    "interrupted": interrupted,
    "hostile": hostile,
    "long": long,
    "wide": wide,
    "lookahead": lookahead,
    "at-once": at_once,
}
