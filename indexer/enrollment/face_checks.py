"""The checks of new faces against the gallery before they are enrolled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from indexer.enrollment.lookalikes import Lookalike, Lookalikes
from indexer.enrollment.own_faces import OwnFaces, Source, Unlike
from indexer.gallery.faces import NewFace
from indexer.gallery.spelling import is_same_text

Finding = Lookalike | Unlike


@dataclass(frozen=True, eq=False)
class FaceChecks:
    """Compares new faces with other identities, unless `lookalikes` is None, and with their own, unless `own` is None.

    With `hold`, faces with a finding are not enrolled. Those whose identity is only a guess never are if they are
    unlike it.
    """

    lookalikes: Lookalikes | None
    own: OwnFaces | None
    hold: bool

    def find(self, faces: Sequence[NewFace], sources: Sequence[Source] = ()) -> list[Finding | None]:
        """Returns for each face why it may not belong to its identity, or None.

        Args:
            faces: The faces, in order.
            sources: Where each comes from; none if that is not known.

        Raises:
            NotFound, Conflict: As the index and the store do.
        """
        if not faces:
            return []
        sources = sources or [Source()] * len(faces)
        nearest: list[Lookalike | None] = [None] * len(faces)
        if self.lookalikes is not None:
            nearest = self.lookalikes.nearest(faces)
        unlike: list[Unlike | None] = [None] * len(faces)
        if self.own is not None:
            of_others = [
                i
                for i, (new, other) in enumerate(zip(faces, nearest, strict=True))
                if other is not None and not is_same_text(other.external_id, new.person.external_id)
            ]
            unlike = self.own.find(faces, sources, of_others if self.hold else ())
        if self.lookalikes is None:
            return list(unlike)
        held = [i for i, one in enumerate(unlike) if self.holds(one)]
        alike = self.lookalikes.find(faces, nearest, held)
        return [other or one for other, one in zip(alike, unlike, strict=True)]

    def holds(self, finding: Finding | None) -> bool:
        """Returns whether a face with this finding is not enrolled."""
        return finding is not None and (self.hold or (isinstance(finding, Unlike) and finding.is_guess))
