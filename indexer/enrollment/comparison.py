"""A new face compared with an identity, as the checks before enrollment report it."""

from __future__ import annotations

from dataclasses import dataclass

from indexer.rounding import decimals


@dataclass(frozen=True)
class Comparison:
    """An identity with which a new face was compared, by its most similar face."""

    external_id: str
    face_id: int | None
    """None if that face has no id, as it is new as well."""
    score: float
    bound: float

    @property
    def scores(self) -> str:
        """Returns score and bound for people, with as many decimals as show which is greater."""
        places = decimals(self.score, self.bound, 3)
        return f"cosine {self.score:.{places}f}, bound {self.bound:.{places}f}"

    @property
    def details(self) -> dict[str, object]:
        """Returns the comparison for programs."""
        return {
            "external_id": self.external_id,
            "face_id": self.face_id,
            "score": round(self.score, 4),
            "bound": self.bound,
        }
