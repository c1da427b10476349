"""What a model or a user wrote, made harmless for a terminal. (Pages: `show/templates.py`.)

Control characters, escape sequences and bidirectional overrides are shown as what they are
instead of being obeyed: ESC as "␛", U+202E as "⟨U+202E⟩". Line breaks and tabs stay.
"""

from __future__ import annotations

_NAMED: dict[int, int | str | None] = {
    code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"
}
_NAMED |= {0x7F: 0x2421, ord("\r"): None}
# C1 controls; bidi marks, embeddings, overrides and isolates; line and paragraph separators;
# invisible operators, the byte order mark, tag characters; lone surrogates.
_CODED = [
    *range(0x80, 0xA0),
    0x061C,
    *range(0x200E, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2060, 0x2070),
    0xFEFF,
    *range(0xE0000, 0xE0080),
    *range(0xD800, 0xE000),
]
_VISIBLE = _NAMED | {c: f"⟨U+{c:04X}⟩" for c in _CODED}


def visible(text: str) -> str:
    """The text with every character that would act, rather than show, made visible."""
    return text.translate(_VISIBLE)


def terminal(text: str) -> str:
    """For a terminal, or a `rich.text.Text`, which reads no markup."""
    return visible(text)
