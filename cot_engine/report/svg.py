"""Matplotlib's drawings as SVG that stands in a page: text stays text, colours are the page's.

Everything is measured in CSS pixels. What is drawn is the same to the byte each time.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from cot_engine.errors import CotEngineError, install
from cot_engine.escape import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE, NARROW = 880, 328  # of a page on a screen or on paper, and on a phone
SIZE = 11.5  # of text
MARKERS = "osD^vpH"  # beside the colours: a series is told from the others without them

# Stand-ins that become variables of page.css, so that one drawing serves light, dark and print.
INK, SOFT, RULE, PAPER, WRONG = (f"#00000{i}" for i in range(1, 6))
SERIES = tuple(f"#0000a{i}" for i in range(1, 8))
_VARIABLES = {INK: "ink", SOFT: "soft", RULE: "rule", PAPER: "paper", WRONG: "wrong"}
_VARIABLES |= {color: f"c{i}" for i, color in enumerate(SERIES, 1)}

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "cot-engine",
    "text.parse_math": False,  # a "$" in a label is a dollar
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: measures the same everywhere
    "font.size": SIZE,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.labelsize": SIZE,
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.labelsize": SIZE - 0.5,
    "ytick.labelsize": SIZE - 0.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 7.0,
    "path.simplify": False,
}


@contextmanager
def style() -> Iterator[None]:
    """What drawings are made and saved under. Raises CotEngineError without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise CotEngineError(
            "The report's plots need matplotlib, which is not installed.",
            install("report"),
        ) from None
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has others
        matplotlib.rcdefaults()  # a matplotlibrc of the user's must not show
        matplotlib.rcParams.update(_STYLE)
        yield


class Drawing:
    """A figure of this size, and what is said of its parts when they are pointed at."""

    def __init__(self, width: int, height: int) -> None:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        FigureCanvasSVG(self.figure)
        self._said: dict[str, str] = {}

    def axes(self, left: float, top: float, right: float, bottom: float) -> Axes:
        """Axes with these margins."""
        box = (left, bottom, self.width - left - right, self.height - top - bottom)
        w, h = self.width, self.height
        return self.figure.add_axes((box[0] / w, box[1] / h, box[2] / w, box[3] / h))

    def name(self, artist: Any, id: str, text: str) -> None:
        """Give a part an id, and the text that is shown when it is pointed at."""
        artist.set_gid(id)
        self._said[id] = visible(text)

    def svg(self, name: str, label: str) -> str:
        """The drawing as an element. `name` begins its ids; `label` is read out."""
        buffer = io.StringIO()
        empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        self.figure.savefig(buffer, format="svg", metadata=empty)
        root = ElementTree.fromstring(buffer.getvalue())
        _clean(root, name, self._said)
        root.attrib = {
            "viewBox": f"0 0 {self.width} {self.height}",
            "width": str(self.width),
            "height": str(self.height),
            "role": "img",
            "aria-label": visible(label),
        }
        return ElementTree.tostring(root, encoding="unicode")


def _clean(root: ElementTree.Element, name: str, said: dict[str, str]) -> None:
    """Plain names instead of namespaces; only ids that are used, each the drawing's own; the
    page's fonts and colours; no more digits than can be seen."""
    style = "{http://www.w3.org/2000/svg}style"
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag == style]:
            parent.remove(child)
    used = set(said)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.text = element.tail = None if element.tag != "text" else element.text
        for key in [key for key in element.attrib if key.endswith("}href")]:
            element.set("href", element.attrib.pop(key))
        used.update(re.findall(r"#([\w-]+)", " ".join(element.attrib.values())))
    for element in root.iter():
        element.tail = None
        if (id := element.attrib.pop("id", "")) in used:
            element.set("id", f"{name}-{id}")
            if id in said:
                title = ElementTree.Element("title")
                title.text = said[id]
                element.insert(0, title)
        for key, value in element.attrib.items():
            element.set(key, _value(key, value, name))
        if "rotate(-0 " in element.get("transform", ""):
            del element.attrib["transform"]


def _value(key: str, value: str, name: str) -> str:
    if key == "href" or "url(#" in value:
        value = re.sub(r"#(?=[\w-]+\)?$|[\w-]+\))", f"#{name}-", value)
    if key == "style":
        value = re.sub(r"font-family: [^;]*;? ?", "", value)
    for color, variable in _VARIABLES.items():
        value = value.replace(color, f"var(--{variable})")
    if key in ("d", "x", "y", "width", "height", "transform"):
        value = re.sub(r"-?\d+\.\d+", lambda m: f"{float(m[0]):.2f}", value)
        value = " ".join(value.split())
    return value


# --- where things go -----------------------------------------------------------------------------


def text_width(text: str, size: float = SIZE, *, strong: bool = False) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=["DejaVu Sans"], size=size, weight="bold" if strong else None)
    return text_to_path.get_text_width_height_descent(text, font, False)[0]


def fitted(text: str, width: float, size: float = SIZE) -> str:
    """The text, cut off with "…" where it is wider than that."""
    text = " ".join(visible(text).split())
    if text_width(text, size) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        wide = text_width(text[:middle].rstrip() + "…", size) > width
        low, high = (low, middle - 1) if wide else (middle, high)
    return text[:low].rstrip() + "…"


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """The positions nearest to those wanted that are at least `gap` apart, in the same order."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[tuple[float, list[int]]] = []  # middle, members
    for i in order:
        middle, members = wanted[i], [i]
        while blocks and middle - blocks[-1][0] < gap * (len(members) + len(blocks[-1][1])) / 2:
            before, others = blocks.pop()
            total = before * len(others) + middle * len(members)
            members = others + members
            middle = total / len(members)
        blocks.append((middle, members))
    placed = [0.0] * len(wanted)
    for middle, members in blocks:
        for rank, i in enumerate(members):
            placed[i] = middle + gap * (rank - (len(members) - 1) / 2)
    return placed


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers on a logarithmic axis: 1, 2, 5, 10 ... or as many of them as may be."""
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        found = [s * 10.0**t for t in tens for s in steps if low <= s * 10.0**t <= high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]
