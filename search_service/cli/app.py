"""The answering half of the `whosthere` command, and the command as a whole."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import click

from indexer.cli import COMMANDS, gallery_group
from indexer.cli.common import (
    SOME_REJECTED,
    device_option,
    examples,
    gallery_option,
    json_option,
    print_json,
    show,
    table,
)
from indexer.enrollment.sources import rows_of
from indexer.errors import InvalidRequest, RejectedImage, WhosthereError
from indexer.settings import read_settings
from indexer.types import Gallery, Outcome, Pick, Reason
from search_service.calibration.thresholds import Thresholds
from search_service.cli.calibrate import gallery_calibrate
from search_service.cli.common import with_context
from search_service.cli.evaluate import evaluate_command
from search_service.cli.events import events_group
from search_service.cli.keys import keys_group
from search_service.cli.webhooks import webhooks_group
from search_service.search import Answer, Query, SearchService
from search_service.service_context import ServiceContext

FAILED, WRONG_USAGE = 1, 2
"""Exit codes; 0 is fine, and 3 says that some images were rejected."""

AT_ONCE = 16
"""Probes searched in one batch."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--home", type=click.Path(path_type=Path), help="Data folder (WHOSTHERE_HOME).")
@click.version_option(package_name="whosthere")
def whosthere(home: Path | None) -> None:
    """Who is this, out of the people we enrolled?

    \b
    whosthere enroll photos/ --gallery staff      a folder of folders, one a person
    whosthere search probe.jpg --gallery staff    the top identities and a decision
    whosthere serve                               the same over HTTP
    """


@click.command(
    epilog=examples(
        "whosthere search probe.jpg --gallery staff",
        "whosthere search group.jpg --gallery staff --all-faces --top-k 1",
        "whosthere search *.jpg --gallery staff --fpir 0.001 --json",
    )
)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@gallery_option
@click.option("--top-k", type=int, default=5, show_default=True, help="Identities to return.")
@click.option("--fpir", type=float, help="Share of strangers that may be answered with a match.")
@click.option("--threshold", type=float, help="Or the cosine itself.")
@click.option("--pick", type=click.Choice(["largest", "center"]), help="Which face of several counts.")
@click.option("--all-faces", is_flag=True, help="Search every face.")
@click.option("--same-person", is_flag=True, help="All photos are of one person: one answer from them together.")
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
    as_json: bool,
) -> None:
    """Search photos in a gallery: the top identities by cosine similarity, and a decision.

    Exit code: 0 all searched, 3 some could not be, 2 wrong usage, 1 failed.
    """
    if pick and all_faces:
        raise click.UsageError("give --pick or --all-faces, not both")
    if same_person and all_faces:
        raise click.UsageError("give --same-person or --all-faces, not both")
    query = Query(top_k, fpir, threshold, None if all_faces else Pick(pick or Pick.LARGEST))
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
        from search_service.api.payloads import answer_payload

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
    for start in range(0, len(images), AT_ONCE):
        some = [_read(path, max_bytes) for path in images[start : start + AT_ONCE]]
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
@device_option
@json_option
@with_context
def compare(context: ServiceContext, a: Path, b: Path, model: str | None, as_json: bool) -> None:
    """Tell whether two photos show one person."""
    images = []
    for path in (a, b):
        data = _read(path, context.settings.max_image_bytes)
        if isinstance(data, RejectedImage):
            raise RejectedImage(f"{path}: {data.message}", code=data.code)
        images.append(data)
    comparison = SearchService(context, Thresholds(context)).compare(images[0], images[1], model)
    if as_json:
        from search_service.api.payloads import compare_payload

        print_json(compare_payload(comparison).model_dump(mode="json"))
        return
    verdict = "the same person" if comparison.same else "different people"
    click.echo(f"{verdict}: cosine {comparison.score:.3f}, threshold {comparison.threshold:.3f}")


@click.command(epilog=examples("whosthere serve", "whosthere serve --host 0.0.0.0 --port 9000"))
@click.option("--host", help="Address to listen on (WHOSTHERE_HOST).")
@click.option("--port", type=int, help="Port to listen on; 0 takes a free one (WHOSTHERE_PORT).")
@click.option("--workers", type=int, help="Processes to answer with (WHOSTHERE_WORKERS).")
@device_option
@click.option("--home", type=click.Path(path_type=Path), help="Data folder (WHOSTHERE_HOME).")
@click.pass_context
def serve(
    context: click.Context,
    host: str | None,
    port: int | None,
    workers: int | None,
    device: str | None,
    home: Path | None,
) -> None:
    """Answer over HTTP until stopped."""
    from search_service.server import run

    home = home or context.find_root().params.get("home")
    run(read_settings(home=home, host=host, port=port, workers=workers, device=device))


@click.command(epilog=examples("whosthere doctor"))
@json_option
@with_context
def doctor(context: ServiceContext, as_json: bool) -> None:
    """Check models, database, indexes and disk, and say what to do. Exit code 0 when nothing is wrong."""
    from search_service.doctor import examine

    findings = examine(context)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        rows = table("", "checked", "found")
        for f in findings:
            rows.add_row("ok" if f.ok else "WRONG", f.check, f.found if f.ok else f"{f.found}\n-> {f.advice}")
        show(rows)
    if not all(finding.ok for finding in findings):
        sys.exit(FAILED)


@click.command(epilog=examples("whosthere demo", "whosthere demo --folder /tmp/faces"))
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("data/demo"),
    show_default=True,
    help="Where the demo's photos and gallery are kept.",
)
def demo(folder: Path) -> None:
    """Enrol real faces and search probes that are not the enrolled files."""
    from search_service.demo import PROBES, make_photos

    photos, probes = make_photos(folder)
    context = ServiceContext(read_settings({}, home=folder / "home"))
    try:
        gallery = context.open_gallery("demo")
        results = list(context.enroller(gallery).enroll(rows_of([photos])))
        outcomes = Counter(result.outcome for result in results)
        told = ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in Outcome if outcomes[outcome])
        click.echo(f"Enrolled the faces in {photos}: {told}.\n")
        images = [(probes / probe.file).read_bytes() for probe in PROBES]
        answers = SearchService(context, Thresholds(context)).search(images, gallery, Query(top_k=3))
    finally:
        context.close()
    rows = table("probe", "what was done to it", "top candidates (cosine)", "decision")
    for probe, answer in zip(PROBES, answers, strict=True):
        rows.add_row(probe.file, probe.how, *_cells(answer))
    show(rows)
    click.echo(
        f"\nNow with your own: put a folder of photos for each person into {photos} and run this again, or\n"
        f"  whosthere enroll YOUR_FOLDER --gallery staff\n  whosthere search PROBE.jpg --gallery staff"
    )


def _cells(answer: Answer) -> tuple[str, str]:
    if not answer.faces:
        return "", str(answer.error.code) if answer.error else "no_face"
    face = answer.faces[0]
    return ", ".join(f"{c.identity.external_id} {c.score:.2f}" for c in face.candidates), str(face.decision)


def _print_answers(answers: list[Answer], images: list[str]) -> None:
    rows = table("image", "face", "rank", "identity", "name", "cosine", "decision")
    for image, answer in zip(images, answers, strict=True):
        if answer.error is not None:
            rows.add_row(image, "", "", "", "", "", f"{answer.error.code}: {answer.error.message}")
        for number, face in enumerate(answer.faces, 1):
            why = "".join(f", {reason}" for reason in face.reasons)
            decision = f"{face.decision} (threshold {face.threshold:.3f}{why})"
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
                    f"{c.score:.3f}",
                    decision if first else "",
                )
    show(rows)


def _read(path: Path, limit: int) -> bytes | RejectedImage:
    try:
        if path.stat().st_size > limit:
            return RejectedImage(f"the file has more than {limit:,} bytes", code=Reason.IMAGE_TOO_LARGE)
        return path.read_bytes()
    except OSError as error:
        return RejectedImage(f"{error.strerror or error}", code=Reason.UNREADABLE_IMAGE)


gallery_group.add_command(gallery_calibrate)
for _command in (
    *COMMANDS,
    keys_group,
    search,
    compare,
    evaluate_command,
    serve,
    doctor,
    demo,
    events_group,
    webhooks_group,
):
    whosthere.add_command(_command)


def main(arguments: list[str] | None = None) -> Any:
    """The `whosthere` command: what went wrong becomes one line and an exit code."""
    try:
        whosthere.main(args=arguments, prog_name="whosthere", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("Interrupted. What was acknowledged is kept; run the same command to go on.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except WhosthereError as error:
        usage = isinstance(error, InvalidRequest) and not isinstance(error, RejectedImage)
        usage |= error.code == "model_not_found"  # an option or a setting names a pack
        _fail(error.message, WRONG_USAGE if usage else FAILED)
    except OSError as error:  # a full disk, a folder that may not be written; click has dealt with closed pipes
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", FAILED)


def _fail(message: str, code: int) -> NoReturn:
    """Databases explain themselves in several lines; people and logs get one."""
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(code)
