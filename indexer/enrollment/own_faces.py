"""Finds new faces that are unlike the other faces of their own identity."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from indexer.enrollment.comparison import Comparison
from indexer.gallery.faces import NewFace
from indexer.gallery.spelling import normalize_text
from indexer.gallery.store import Store
from indexer.types import Gallery, Reason, Vectors

MOST_NAMES = 5
"""Photos that a message names."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Source:
    """Where a new face comes from: the photo's name, and whether its identity is only guessed from that name."""

    image: str = ""
    is_guess: bool = False


@dataclass(frozen=True)
class Unlike(Comparison):
    """The identity whose other faces a new face is unlike, with the most similar of them."""

    is_guess: bool = False
    images: tuple[str, ...] = ()
    """Names of the other new photos of the identity."""

    @property
    def reason(self) -> Reason:
        return Reason.UNLIKE_OWN_IDENTITY

    @property
    def message(self) -> str:
        others = f"; other photos: {', '.join(self.images[:MOST_NAMES])}" if self.images else ""
        if len(self.images) > MOST_NAMES:
            others += f" and {len(self.images) - MOST_NAMES} more"
        return f"the face is unlike the others of identity {self.external_id!r}: {self.scores}{others}"

    @property
    def advice(self) -> str:
        if self.is_guess:
            return (
                "a number in a file name joins photos only if their faces agree: give each person a folder, or name "
                "image and external_id in a manifest"
            )
        return (
            "a photo of another person, or one that differs much: WHOSTHERE_LOOKALIKES=report enrolls the photo and "
            "reports it"
        )


@dataclass(frozen=True, eq=False)
class _Enrolled:
    """The faces that an identity has: (N,) int64 ids and (N, D) embeddings."""

    face_ids: NDArray[np.int64]
    vectors: Vectors


@dataclass(eq=False)
class OwnFaces:
    """Compares new faces with the other faces of their identity, those enrolled and those of the same batch.

    Two faces agree if their cosine reaches `bound`. A face that agrees with no accepted one is unlike its identity. Of
    an identity without faces, the new ones that agree with each other, directly or through others, are accepted if
    they are more than half; otherwise those that agree with the first photo whose identity is not a guess.

    An instance belongs to one run: it remembers guessed identities of which no photos agreed.
    """

    store: Store
    gallery: Gallery
    bound: float
    only_guesses: bool = False
    """Whether only faces are compared whose identity is a guess."""
    _disputed: dict[str, Unlike] = field(default_factory=dict)

    def find(
        self, faces: Sequence[NewFace], sources: Sequence[Source], skipped: Collection[int]
    ) -> list[Unlike | None]:
        """Returns for each face what it is unlike, or None. Those at the indexes `skipped` are not compared.

        Raises Conflict if the gallery was re-embedded meanwhile.
        """
        groups: dict[str, list[int]] = {}
        for i, new in enumerate(faces):
            if i not in skipped:
                groups.setdefault(normalize_text(new.person.external_id), []).append(i)
        groups = {external_id: group for external_id, group in groups.items() if self._matters(group, sources)}
        enrolled = self._enrolled(list(groups))
        found: list[Unlike | None] = [None] * len(faces)
        for external_id, group in groups.items():
            own = enrolled.get(external_id)
            of_group = self._of_identity(external_id, [faces[i] for i in group], [sources[i] for i in group], own)
            for i, unlike in zip(group, of_group, strict=True):
                found[i] = unlike
        return found

    def _matters(self, group: Sequence[int], sources: Sequence[Source]) -> bool:
        return not self.only_guesses or any(sources[i].is_guess for i in group)

    def _enrolled(self, external_ids: Sequence[str]) -> dict[str, _Enrolled]:
        ids = self.store.identities.ids(self.gallery.id, external_ids)
        stored = self.store.embeddings.of_identities(self.gallery, list(set(ids.values())))
        found: dict[str, _Enrolled] = {}
        for external_id, identity_id in ids.items():
            own = stored.identity_ids == identity_id
            if own.any():
                found[external_id] = _Enrolled(stored.face_ids[own], stored.vectors[own])
        return found

    def _of_identity(
        self, external_id: str, faces: Sequence[NewFace], sources: Sequence[Source], enrolled: _Enrolled | None
    ) -> list[Unlike | None]:
        vectors = np.stack([new.face.embedding for new in faces])
        scores = vectors @ vectors.T
        to_enrolled = vectors @ enrolled.vectors.T if enrolled is not None else np.zeros((len(faces), 0), np.float32)
        guessed = np.array([source.is_guess for source in sources])
        agreeing = scores >= self.bound
        if enrolled is not None:
            accepted = _spread(np.asarray((to_enrolled >= self.bound).any(axis=1)), agreeing)
        elif guessed.all() and external_id in self._disputed:
            return [self._disputed[external_id]] * len(faces)
        else:
            accepted = _majority(agreeing, ~guessed)
        found: list[Unlike | None] = []
        for i, source in enumerate(sources):
            if accepted[i] or (self.only_guesses and not source.is_guess):
                found.append(None)
                continue
            others = [j for j in range(len(faces)) if j != i and (accepted[j] or not accepted.any())]
            best = max([float(scores[i, j]) for j in others] + to_enrolled[i].tolist(), default=-1.0)
            face_id = None
            if enrolled is not None and float(to_enrolled[i].max()) == best:
                face_id = int(enrolled.face_ids[to_enrolled[i].argmax()])
            images = tuple(sources[j].image for j in others if sources[j].image)
            found.append(Unlike(external_id, face_id, best, self.bound, source.is_guess, images))
        if not accepted.any() and found[0] is not None:
            self._disputed[external_id] = found[0]
        return found


def _spread(accepted: Flags, agreeing: Flags) -> Flags:
    """Returns (N,) the faces that agree with one of `accepted`, directly or through others, by `agreeing` (N, N)."""
    while True:
        wider = accepted | agreeing[:, accepted].any(axis=1)
        if (wider == accepted).all():
            return accepted
        accepted = wider


def _majority(agreeing: Flags, sure: Flags) -> Flags:
    """Returns (N,) the faces that agree with each other and are more than half, else those that agree with the first of
    `sure`."""
    count = len(agreeing)
    for first in range(count):
        joined = _spread(np.arange(count) == first, agreeing)
        if 2 * joined.sum() > count:
            return joined
    return _spread(sure & (np.cumsum(sure) == 1), agreeing)
