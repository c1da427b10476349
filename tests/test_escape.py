"""What a model or a user wrote must not act on a terminal."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from cot_engine.escape import terminal

ANY = st.text(st.characters(exclude_categories=[]))
BIDI = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")


@given(ANY)
def test_nothing_acts_on_a_terminal(text):
    shown = terminal(text)
    assert not BIDI & set(shown)
    assert all(unicodedata.category(c) not in ("Cc", "Cs") or c in "\n\t" for c in shown)


def test_what_acts_is_shown():
    assert terminal("a\x1b[31mb\u202ec\r\nd\x9be") == "a␛[31mb⟨U+202E⟩c\nd⟨U+009B⟩e"
