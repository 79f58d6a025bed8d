"""Spellings of external ids that are equal to people but differ in their code points.

File systems and keyboards write `Zoë` with the letter `ë` (Unicode normalization form C) or with `e` and a combining
diaeresis (form D). Both are canonically equivalent (Unicode Standard Annex 15) and name one identity. New identities
are stored in form C; those stored in another form before are found by it.
"""

from __future__ import annotations

import unicodedata


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
