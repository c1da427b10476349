"""A page of HTML, as a parser finds it."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Every element with its attributes, every text with the elements around it; checks nesting."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    def all(self, tag: str, kind: str = "") -> list[dict]:
        kinds = {kind} - {""}
        return [a for t, a in self.elements if t == tag and kinds <= {*a.get("class", "").split()}]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())
