"""What may be kept as an identity's metadata: it comes with every answer that names the identity."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

MOST_BYTES = 16 * 2**10
"""As JSON in UTF-8: as much as Azure Face lets a person's `userData` be. A page names 1,000 people, a search 100."""

DEEPEST = 32
"""Lists and objects within each other."""


def keepable(value: Any, depth: int = 0) -> Any:
    """The same. Raises ValueError on what cannot be kept as JSON and sent again: it would spoil every answer it is part
    of."""
    if depth > DEEPEST:
        raise ValueError(f"more than {DEEPEST} lists and objects are within each other")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a JSON number")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{value!r} is not valid Unicode") from None
    if isinstance(value, Mapping):
        keepable([*value.keys(), *value.values()], depth)
    elif isinstance(value, list):
        for one in value:
            keepable(one, depth + 1)
    return value


def bytes_of(metadata: Mapping[str, object]) -> int:
    """How much it is, without spaces between. Raises TypeError and ValueError on what is not JSON."""
    return len(json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode())
