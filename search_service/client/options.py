"""The options of searches and enrollments."""

from __future__ import annotations

from typing import TypedDict

from search_service.client.enums import Direction, LivenessMode, Pick


class Query(TypedDict, total=False):
    """Options of a search; None leaves the choice to the service."""

    top_k: int | None
    """Number of candidates (5)."""
    fpir: float | None
    """Accepted share of strangers answered with a match (0.01)."""
    threshold: float | None
    """Cosine threshold, instead of `fpir`."""
    pick: Pick | str | None
    """Which face is searched: the largest, or `center`."""
    all_faces: bool | None
    """Search every face, instead of `pick`."""
    liveness: LivenessMode | str | None
    """Show whether faces are live, or require it."""
    record: bool | None
    """Record an event for each face, once per person, device and cooldown."""
    device: str | None
    """With `record`: the device that took the image, such as `north-door`."""
    direction: Direction | str | None
    cooldown: float | None
    """Seconds."""


class EnrollOptions(TypedDict, total=False):
    """Options of an enrollment; None leaves the choice to the service."""

    pick: Pick | str | None
    """Which face of several counts."""
    liveness: LivenessMode | str | None
    """Report whether faces are live, or require it."""
