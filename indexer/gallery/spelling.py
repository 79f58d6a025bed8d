"""Spellings of external ids and names that are equal to people but differ in their code points.

File systems and keyboards write `Zoë` with the letter `ë` (Unicode normalization form C) or with `e` and a combining
diaeresis (form D). Both are canonically equivalent (Unicode Standard Annex 15) and name one identity. New identities
are stored in form C; those stored in another form before are found by it.
"""

from __future__ import annotations

import unicodedata

MAX_SEARCH_BYTES = 2_000
"""Of a search text in UTF-8, which an id and a name of 200 characters each do not reach in any common script.
PostgreSQL indexes texts of up to 2.7 KB."""

WITHOUT_STROKE = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ħ": "h", "ŧ": "t", "\u0131": "i", "æ": "ae", "œ": "oe"})
"""Letters that people also write without their stroke or as two, although Unicode does not decompose them."""


def normalize_text(text: str) -> str:
    """Returns text in Unicode normalization form C."""
    return unicodedata.normalize("NFC", text)


def is_same_text(one: str, other: str) -> bool:
    """Returns whether two texts are canonically equivalent."""
    return one == other or normalize_text(one) == normalize_text(other)


def spellings(external_id: str) -> list[str]:
    """Returns the forms in which an id may be stored, the preferred one first: as given, in form C, in form D."""
    if external_id.isascii():
        return [external_id]
    forms = (external_id, normalize_text(external_id), unicodedata.normalize("NFD", external_id))
    return list(dict.fromkeys(forms))


def fold_text(text: str) -> str:
    """Returns text without differences of upper and lower case and of accents, for comparison with other such text."""
    if text.isascii():
        return text.lower()
    letters = unicodedata.normalize("NFD", unicodedata.normalize("NFD", text).casefold())
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    return unicodedata.normalize("NFC", plain.translate(WITHOUT_STROKE))


def search_text(external_id: str, name: str | None) -> str:
    """Returns the folded external id and name of an identity, in which a search looks for words."""
    text = fold_text(f"{external_id}\n{name or ''}")
    return text if len(text) <= MAX_SEARCH_BYTES // 4 else text.encode()[:MAX_SEARCH_BYTES].decode(errors="ignore")
