"""A search as it is drawn while it runs: the same drawing as of one that was recorded, in pieces.

It takes what a listener hears and gives the pieces that have changed, so that a page can put each
in its place and leave the others alone. Where only words have come, only the cards of those who
write are made anew: a whole drawing takes some milliseconds, and the model wants the processor.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from cot_engine.core.events import Heard, Progress
from cot_engine.show import figure as fig
from cot_engine.show import html
from cot_engine.show.board import Board
from cot_engine.show.templates import part

_PARTS = "show/drawing.html.jinja"
_Pieces: TypeAlias = dict[tuple[str, str], Any]  # by kind and name, "" where there is one only


class Live:
    """The drawing of one search. The ids of its elements begin with `anchor`.

    Each piece of markup is of `show/drawing.html.jinja`, so escaped by the templates' rules; a
    `status` is text.
    """

    def __init__(self, anchor: str = "") -> None:
        self.anchor = anchor
        self.board = Board()
        self.count = 0  # columns there are now
        self._told: _Pieces = {}
        self._drafts: dict[str, tuple[fig.Figure, fig.Column, fig.Card, int]] = {}
        self._stale = True  # more has happened than that words have come

    def take(self, event: Heard) -> None:
        """Take in what happened."""
        self.board.take(event)
        self._stale = self._stale or not isinstance(event, Progress)

    def news(self) -> dict[str, Any]:
        """What differs from what was given before: a `status`; `slots`, markup by the name of its
        place ("answer", "tally", "costs", "remarks", "about"); `columns`, markup by number, and how
        many there are (`count`); `cards`, markup by the id of a candidate that is being written.
        """
        texts = self.board.progress.texts if self.board.progress else {}
        if self.board.started is None:
            found: _Pieces = {}
        elif self._stale or texts.keys() - self._drafts.keys() - self.board.fold.chains.keys():
            found = self._whole(texts)
        else:
            found = self._cards(texts)
        found["status", ""] = self.board.status()
        news: dict[str, Any] = {}
        for (kind, name), value in found.items():
            if self._told.get((kind, name)) != value:
                self._told[kind, name] = value
                if name:
                    news.setdefault(kind, {})[name] = value
                else:
                    news[kind] = value
        return news

    def _whole(self, texts: dict[str, str]) -> _Pieces:
        self._stale = False
        assert self.board.started is not None
        figure = fig.drawn(self.board.started, self.board.fold, texts)
        figure.anchor = self.anchor
        self._drafts = {
            card.id: (figure, column, card, row)
            for column in figure.columns
            for row, card in enumerate(column.drafts, len(column.cards) + 1)
        }
        values = html.values(figure)
        found: _Pieces = {
            ("columns", str(at)): part(_PARTS, "stage", view)
            for at, view in enumerate(values["columns"])
        }
        self.count = found["count", ""] = len(figure.columns)
        found["slots", "kicker"] = part(_PARTS, "line", values["strategy"])
        found["slots", "tally"] = part(_PARTS, "line", values["tally"])
        found["slots", "costs"] = part(_PARTS, "costs", values["cost"], values["budget"])
        found["slots", "remarks"] = part(_PARTS, "remarks", figure.remarks)
        if not figure.live:
            found["slots", "answer"] = part(_PARTS, "outcome", figure)
            about = values["settings"], values["command"]
            found["slots", "about"] = part(_PARTS, "settled", *about)
            legend = values["legend"] if figure.columns else ""
            found["slots", "legend"] = part(_PARTS, "line", legend)
        # The cards of those who write are in these columns.
        found |= {("cards", id): self._card(id, texts.get(id, "")) for id in self._drafts}
        self._told |= {key: value for key, value in found.items() if key[0] == "cards"}
        return found

    def _cards(self, texts: dict[str, str]) -> _Pieces:
        return {("cards", id): self._card(id, texts[id]) for id in texts if id in self._drafts}

    def _card(self, id: str, text: str) -> str:
        return part(_PARTS, "draft", html.draft_view(*self._drafts[id], text))
