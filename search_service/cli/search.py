"""`whosthere search` and `whosthere compare`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from indexer.cli.common import (
    SOME_REJECTED,
    device_option,
    examples,
    gallery_option,
    json_option,
    liveness_option,
    print_json,
    show,
    table,
)
from indexer.errors import RejectedImage
from indexer.rounding import decimals
from indexer.types import Gallery, Liveness, LivenessMode, Pick, Reason
from search_service.calibration.thresholds import Thresholds
from search_service.cli.common import with_context
from search_service.search import Answer, Query, SearchService
from search_service.service_context import ServiceContext

BATCH = 16
"""Probes searched in one batch."""


@click.command(
    epilog=examples(
        "whosthere search probe.jpg --gallery staff",
        "whosthere search group.jpg --gallery staff --all-faces --top-k 1",
        "whosthere search *.jpg --gallery staff --fpir 0.001 --json",
    )
)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@gallery_option
@click.option("--top-k", type=int, default=5, show_default=True, help="Number of identities to return.")
@click.option("--fpir", type=float, help="Accepted share of strangers answered with a match.")
@click.option("--threshold", type=float, help="Cosine threshold, instead of --fpir.")
@click.option("--pick", type=click.Choice(["largest", "center"]), help="Which of several faces is searched.")
@click.option("--all-faces", is_flag=True, help="Search every face.")
@click.option("--same-person", is_flag=True, help="All photos show one person: give one answer.")
@liveness_option
@device_option
@json_option
@with_context
def search(
    context: ServiceContext,
    images: tuple[Path, ...],
    gallery: str,
    top_k: int,
    fpir: float | None,
    threshold: float | None,
    pick: str | None,
    all_faces: bool,
    same_person: bool,
    liveness: LivenessMode | None,
    as_json: bool,
) -> None:
    """Search photos in a gallery: the top identities by cosine similarity, and a decision.

    Exit code: 0 all searched, 3 some could not be searched, 2 wrong usage, 1 failed.
    """
    if pick and all_faces:
        raise click.UsageError("give --pick or --all-faces, not both")
    if same_person and all_faces:
        raise click.UsageError("give --same-person or --all-faces, not both")
    chosen = None if all_faces else Pick(pick or Pick.LARGEST)
    query = Query(top_k, fpir, threshold, chosen, liveness=context.search_liveness(liveness))
    found = context.store.galleries.get(gallery)
    service = SearchService(context, Thresholds(context))
    names = [click.format_filename(image) for image in images]
    if same_person:
        frames = [_read(path, context.settings.max_image_bytes) for path in images]
        answers, probes = [service.search_frames(frames, found, query)], [names]
    else:
        answers = _search_each(service, images, found, query, context.settings.max_image_bytes)
        probes = [[name] for name in names]
    if as_json:
        from search_service.api.models.probes import answer_payload

        print_json([answer_payload(a, p).model_dump(mode="json") for a, p in zip(answers, probes, strict=True)])
    else:
        _print_answers(answers, [", ".join(probe) for probe in probes])
    service.settle()
    if any(answer.error for answer in answers):
        sys.exit(SOME_REJECTED)


def _search_each(
    service: SearchService, images: Sequence[Path], gallery: Gallery, query: Query, max_bytes: int
) -> list[Answer]:
    answers: list[Answer] = []
    for start in range(0, len(images), BATCH):
        some = [_read(path, max_bytes) for path in images[start : start + BATCH]]
        searched = iter(service.search([data for data in some if isinstance(data, bytes)], gallery, query))
        answers += [
            Answer(gallery.name, gallery.model, (), data) if isinstance(data, RejectedImage) else next(searched)
            for data in some
        ]
    return answers


@click.command(epilog=examples("whosthere compare a.jpg b.jpg", "whosthere compare a.jpg b.jpg --json"))
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--model", metavar="PACK", help="Model pack.")
@liveness_option
@device_option
@json_option
@with_context
def compare(
    context: ServiceContext, a: Path, b: Path, model: str | None, liveness: LivenessMode | None, as_json: bool
) -> None:
    """Decide whether two photos show the same person."""
    images = []
    for path in (a, b):
        data = _read(path, context.settings.max_image_bytes)
        if isinstance(data, RejectedImage):
            raise RejectedImage(f"{path}: {data.message}", code=data.code)
        images.append(data)
    service = SearchService(context, Thresholds(context))
    comparison = service.compare(images[0], images[1], model, context.search_liveness(liveness))
    if as_json:
        from search_service.api.models.probes import compare_payload

        print_json(compare_payload(comparison).model_dump(mode="json"))
        return
    verdict = "the same person" if comparison.same else "different people"
    if comparison.reasons:
        verdict = ", ".join(comparison.reasons)
    places = decimals(comparison.score, comparison.threshold, 3)
    click.echo(f"{verdict}: cosine {comparison.score:.{places}f}, threshold {comparison.threshold:.{places}f}")
    for path, face in zip((a, b), comparison.faces, strict=True):
        if face.turn:
            click.echo(f"Warning: {path} is not upright; it was turned clockwise by {face.turn} degrees", err=True)
        if face.liveness:
            click.echo(f"{path}: {_liveness(face.liveness)}")


def _print_answers(answers: list[Answer], images: list[str]) -> None:
    rows = table("image", "face", "rank", "identity", "name", "cosine", "decision")
    for image, answer in zip(images, answers, strict=True):
        if answer.error is not None:
            rows.add_row(image, "", "", "", "", "", f"{answer.error.code}: {answer.error.message}")
        for number, face in enumerate(answer.faces, 1):
            why = "".join(f", {reason}" for reason in face.reasons)
            turned = f", photo turned by {face.turn} degrees" if face.turn else ""
            live = f", {_liveness(face.liveness)}" if face.liveness else ""
            best = face.candidates[0].score if face.candidates else face.threshold
            places = decimals(best, face.threshold, 3)
            decision = f"{face.decision} (threshold {face.threshold:.{places}f}{why}{live}{turned})"
            if not face.candidates:
                rows.add_row(image, str(number), "", "", "", "", decision)
            for c in face.candidates:
                first = c.rank == 1
                rows.add_row(
                    image if first else "",
                    str(number) if first else "",
                    str(c.rank),
                    c.identity.external_id,
                    c.identity.name or "",
                    f"{c.score:.{places}f}",
                    decision if first else "",
                )
    show(rows)


def _liveness(liveness: Liveness) -> str:
    places = decimals(liveness.score, liveness.threshold, 2)
    return f"{'live' if liveness.live else 'not live'}: {liveness.score:.{places}f}"


def _read(path: Path, limit: int) -> bytes | RejectedImage:
    try:
        if path.stat().st_size > limit:
            return RejectedImage(f"the file has more than {limit:,} bytes", code=Reason.IMAGE_TOO_LARGE)
        return path.read_bytes()
    except OSError as error:
        return RejectedImage(f"{error.strerror or error}", code=Reason.UNREADABLE_IMAGE)
