"""The enrolling half of the `whosthere` command."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import IO, Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from indexer.enrollment import Result, open_gallery
from indexer.errors import WhosthereError
from indexer.home import Home
from indexer.objects import face_object, gallery_object, identity_object
from indexer.settings import read_settings
from indexer.sources import rows_of
from indexer.types import Gallery, Outcome, Pick
from indexer.vision import packs
from indexer.vision.packs import PACKS, find_pack

SOME_REJECTED = 3
"""Exit code when some images were rejected and the rest is in."""

SHOWN_REJECTIONS = 20
PLAIN_LINE_EVERY_SECONDS = 5.0

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
gallery_option = click.option("--gallery", "-g", required=True, metavar="G", help="The gallery's name.")


def with_home(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command `--home` and, as its first argument, the opened Home."""

    @click.option("--home", type=click.Path(path_type=Path), help="Data folder (WHOSTHERE_HOME).")
    @wraps(command)
    def opened(*args: Any, home: Path | None, **kwargs: Any) -> Any:
        given = home or click.get_current_context().find_root().params.get("home")
        place = Home(read_settings(home=given))
        try:
            return command(place, *args, **kwargs)
        finally:
            place.close()

    return opened


def examples(*lines: str) -> str:
    """Examples for the end of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def table(*columns: str) -> Table:
    return Table(*(Column(name, overflow="fold") for name in columns), box=None, header_style="bold", pad_edge=False)


def show(content: object) -> None:
    """To people: as wide as their terminal, or as it needs where there is none."""
    # Names are data: neither "Ana [/IT]" nor ":x:" is markup.
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 200
    console.print(content)


# enroll


@click.command(
    epilog=examples(
        "whosthere enroll photos/ --gallery staff",
        "whosthere enroll --manifest staff.csv --gallery staff --report report.csv",
        "whosthere enroll photos.zip --gallery staff --pick center --json",
    )
)
@click.argument("paths", nargs=-1, type=click.Path(path_type=Path), metavar="PATH...")
@gallery_option
@click.option("--manifest", type=click.Path(path_type=Path), help="CSV: image, external_id, name, valid_from, ...")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write what became of each row here.")
@click.option(
    "--pick",
    type=click.Choice([str(p) for p in Pick]),
    default=str(Pick.ONLY),
    show_default=True,
    help="Which face of several counts; `only` rejects a photo with a second face of half the size.",
)
@click.option("--model", type=click.Choice(sorted(PACKS)), help="Model pack, for a gallery that is not there yet.")
@json_option
@with_home
def enroll(
    home: Home,
    paths: tuple[Path, ...],
    gallery: str,
    manifest: Path | None,
    report: Path | None,
    pick: str,
    model: str | None,
    as_json: bool,
) -> None:
    """Enrol photos into a gallery.

    A folder of folders is one identity a folder; loose files are one identity a stem (ana_1.jpg and ana_2.jpg are
    both ana). A manifest names image and external_id for each photo. A ZIP of either works. Running it again goes
    on where it was.

    Exit code: 0 all in, 3 some rejected, 2 wrong usage, 1 failed.
    """
    if not paths and manifest is None:
        raise click.UsageError("name folders, images, a ZIP, or a --manifest")
    start = time.monotonic()
    rows = rows_of(paths, manifest)
    if not rows:
        raise click.UsageError(f"there are no images in {', '.join(map(str, paths))}")
    target = open_gallery(home.store, gallery, find_pack(model) if model else None, home.pack, create=True)
    results: list[Result] = []
    with _report(report) as write, _progress(len(rows)) as advance:
        enrolling = home.enroller(target).enroll(rows, Pick(pick))
        try:
            for result in enrolling:
                results.append(result)
                write(result)
                advance(result)
        finally:
            enrolling.close()
    home.indexes.of(target).caught_up()
    summary = _summary(home, target, results, time.monotonic() - start)
    print_json(summary) if as_json else _print_summary(summary, results, report)
    if summary["rejected"]:
        sys.exit(SOME_REJECTED)


def _summary(home: Home, gallery: Gallery, results: Sequence[Result], seconds: float) -> dict[str, Any]:
    outcomes = Counter(result.outcome for result in results)
    identities, faces = home.store.counts(gallery.id)
    return {
        "gallery": gallery.name,
        "model": gallery.model,
        "images": len(results),
        "enrolled": outcomes[Outcome.ENROLLED],
        "unchanged": outcomes[Outcome.UNCHANGED],
        "rejected": outcomes[Outcome.REJECTED],
        "identities": identities,
        "faces": faces,
        "seconds": round(seconds, 3),
        "results": [asdict(result) for result in results],
    }


def _print_summary(summary: dict[str, Any], results: Sequence[Result], report: Path | None) -> None:
    click.echo(
        f"{summary['images']} images: {summary['enrolled']} enrolled, {summary['unchanged']} unchanged, "
        f"{summary['rejected']} rejected, in {summary['seconds']:.1f} s."
    )
    click.echo(
        f"Gallery {summary['gallery']} ({summary['model']}) holds {summary['identities']} identities "
        f"with {summary['faces']} faces."
    )
    rejected = [result for result in results if result.outcome is Outcome.REJECTED]
    if not rejected:
        return
    rows = table("rejected", "identity", "reason", "why")
    for result in rejected[:SHOWN_REJECTIONS]:
        rows.add_row(result.image, result.external_id, str(result.reason), result.message)
    show(rows)
    if len(rejected) > SHOWN_REJECTIONS:
        where = str(report) if report else "--report FILE.csv writes them all"
        click.echo(f"... and {len(rejected) - SHOWN_REJECTIONS} more: {where}")


@contextmanager
def _report(path: Path | None) -> Iterator[Callable[[Result], None]]:
    """Writes results row by row, so that the report of a run that ended early is true as far as it goes. A disk that
    is full ends the report, not the run."""
    if path is None:
        yield lambda result: None
        return
    try:
        file: IO[str] = path.open("w", buffering=1, newline="", encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"the report {path} cannot be written: {error.strerror}") from error
    writer = csv.writer(file)

    def attempt(write: Callable[..., object], *arguments: object) -> None:
        if file.closed:
            return
        try:
            write(*arguments)
        except OSError as error:
            with suppress(OSError):
                file.close()
            click.echo(f"Warning: the report {path} ends early, enrolling goes on: {error.strerror}", err=True)

    attempt(writer.writerow, ["image", "external_id", "outcome", "reason", "face_id", "message"])
    try:
        yield lambda r: attempt(
            writer.writerow,
            [r.image, r.external_id, r.outcome, r.reason or "", r.face_id or "", r.message or ""],
        )
    finally:
        attempt(file.close)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Result], None]]:
    """A bar on a terminal, a plain line every few seconds elsewhere; on standard error."""
    console = Console(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn("Enrolling"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rejected]}"),
        )
        with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task("", total=total, rejected="")
            rejected = 0

            def advance(result: Result) -> None:
                nonlocal rejected
                rejected += result.outcome is Outcome.REJECTED
                bar.update(task, advance=1, rejected=f"{rejected} rejected" if rejected else "")

            yield advance
        return
    done, rejected_so_far, told = 0, 0, time.monotonic()

    def tell(result: Result) -> None:
        nonlocal done, rejected_so_far, told
        done += 1
        rejected_so_far += result.outcome is Outcome.REJECTED
        if time.monotonic() - told >= PLAIN_LINE_EVERY_SECONDS:
            told = time.monotonic()
            click.echo(f"{done} of {total} images, {rejected_so_far} rejected", err=True)

    yield tell


# gallery


@click.group("gallery")
def gallery_group() -> None:
    """Make, list, show, delete galleries."""


@gallery_group.command("create", epilog=examples("whosthere gallery create staff"))
@click.argument("name")
@click.option("--model", type=click.Choice(sorted(PACKS)), help="Model pack it is bound to.")
@json_option
@with_home
def gallery_create(home: Home, name: str, model: str | None, as_json: bool) -> None:
    """Make an empty gallery."""
    pack = find_pack(model) if model else home.pack
    gallery = home.store.create_gallery(name, pack.name, pack.fingerprint, pack.dim)
    if as_json:
        print_json(gallery_object(home.store, gallery))
    else:
        click.echo(f"Gallery {gallery.name} made, bound to model pack {gallery.model}.")


@gallery_group.command("list", epilog=examples("whosthere gallery list --json"))
@json_option
@with_home
def gallery_list(home: Home, as_json: bool) -> None:
    """List the galleries."""
    objects = [gallery_object(home.store, gallery) for gallery in home.store.galleries()]
    if as_json:
        print_json(objects)
        return
    rows = table("gallery", "model", "identities", "faces")
    for o in objects:
        rows.add_row(o["name"], o["model"], str(o["identities"]), str(o["faces"]))
    show(rows if objects else "There are no galleries. `whosthere enroll` makes one.")


@gallery_group.command("show", epilog=examples("whosthere gallery show staff --json"))
@click.argument("name")
@json_option
@with_home
def gallery_show(home: Home, name: str, as_json: bool) -> None:
    """Show a gallery and the state of its index."""
    gallery = home.store.gallery(name)
    shown = gallery_object(home.store, gallery) | {"index": asdict(home.indexes.of(gallery).state())}
    if as_json:
        print_json(shown)
        return
    rows = table("", "")
    for key, value in shown.items():
        rows.add_row(key, json.dumps(value) if isinstance(value, dict) else str(value))
    show(rows)


@gallery_group.command("delete", epilog=examples("whosthere gallery delete staff --yes"))
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@with_home
def gallery_delete(home: Home, name: str, yes: bool, as_json: bool) -> None:
    """Delete a gallery with everybody in it."""
    gallery = home.store.gallery(name)
    identities, faces = home.store.counts(gallery.id)
    question = f"Delete gallery {name} with {identities} identities and {faces} faces?"
    if not yes and not click.confirm(question, err=as_json):
        raise click.ClickException("nothing was deleted")
    home.store.delete_gallery(name)
    home.indexes.forget(gallery)
    if as_json:
        print_json({"gallery": name, "identities": identities, "faces": faces})
    else:
        click.echo(f"Gallery {name} deleted: {identities} identities, {faces} faces.")


@gallery_group.command("rebuild", epilog=examples("whosthere gallery rebuild staff"))
@click.argument("name")
@json_option
@with_home
def gallery_rebuild(home: Home, name: str, as_json: bool) -> None:
    """Make a gallery's index anew from the database."""
    gallery = home.store.gallery(name)
    faces = home.indexes.of(gallery).rebuild()
    if as_json:
        print_json({"gallery": name, "faces": faces})
    else:
        click.echo(f"The index of gallery {name} was made anew from {faces} faces.")


# identity


@click.group("identity")
def identity_group() -> None:
    """List, show, delete the people of a gallery."""


@identity_group.command("list", epilog=examples("whosthere identity list --gallery staff --limit 20"))
@gallery_option
@click.option("--limit", type=click.IntRange(min=1), help="Show this many at most.")
@json_option
@with_home
def identity_list(home: Home, gallery: str, limit: int | None, as_json: bool) -> None:
    """List the identities of a gallery."""
    people = home.store.identities(home.store.gallery(gallery).id, limit=limit)
    if as_json:
        print_json([identity_object(person) for person in people])
        return
    rows = table("identity", "name", "faces", "valid from", "valid until")
    for p in people:
        rows.add_row(p.external_id, p.name or "", str(p.faces), _day(p.valid_from), _day(p.valid_until))
    show(rows if people else f"Gallery {gallery} is empty.")


@identity_group.command("show", epilog=examples("whosthere identity show ana --gallery staff --json"))
@click.argument("external_id")
@gallery_option
@json_option
@with_home
def identity_show(home: Home, external_id: str, gallery: str, as_json: bool) -> None:
    """Show one identity with its faces."""
    gallery_id = home.store.gallery(gallery).id
    person = home.store.identity(gallery_id, external_id)
    faces = home.store.faces(gallery_id, external_id)
    shown = identity_object(person) | {"faces": [face_object(face) for face in faces]}
    if as_json:
        print_json(shown)
        return
    rows = table("", "")
    for key, value in shown.items():
        rows.add_row(key, ", ".join(str(f.id) for f in faces) if key == "faces" else str(value or ""))
    show(rows)


@identity_group.command("delete", epilog=examples("whosthere identity delete ana --gallery staff"))
@click.argument("external_id")
@gallery_option
@json_option
@with_home
def identity_delete(home: Home, external_id: str, gallery: str, as_json: bool) -> None:
    """Delete a person and all their faces. They are never returned again."""
    found = home.store.gallery(gallery)
    faces = home.store.delete_identity(found.id, external_id)
    home.indexes.of(found).caught_up()
    if as_json:
        print_json({"external_id": external_id, "faces": faces})
    else:
        click.echo(f"Identity {external_id} deleted with {faces} faces.")


def _day(time: Any) -> str:
    return time.isoformat(timespec="minutes") if time else ""


# models


@click.group("models")
def models_group() -> None:
    """List and check model packs."""


@models_group.command("list", epilog=examples("whosthere models list --json"))
@json_option
@with_home
def models_list(home: Home, as_json: bool) -> None:
    """List the model packs and where their files are."""
    objects = [packs.describe(pack) | {"installed": not _problems(home, [pack])} for pack in PACKS.values()]
    if as_json:
        print_json(objects)
        return
    rows = table("pack", "installed", "about")
    for o in objects:
        rows.add_row(str(o["name"]), "yes" if o["installed"] else "no", str(o["summary"]))
    show(rows)


@models_group.command("verify", epilog=examples("whosthere models verify sface"))
@click.argument("names", nargs=-1)
@json_option
@with_home
def models_verify(home: Home, names: tuple[str, ...], as_json: bool) -> None:
    """Check the files of model packs against their SHA-256."""
    chosen = [find_pack(name) for name in names] or list(PACKS.values())
    problems = _problems(home, chosen)
    found = [(pack, file) for pack in chosen for file in pack.files]
    if as_json:
        print_json(
            [{"model": p.name, "file": f.name, "sha256": f.sha256, "error": problems.get(f.name)} for p, f in found]
        )
    else:
        rows = table("pack", "file", "licence", "state")
        for pack, file in found:
            rows.add_row(pack.name, file.name, file.licence, problems.get(file.name, "sound"))
        show(rows)
    if problems:
        sys.exit(1)


def _problems(home: Home, chosen: Iterable[packs.Pack]) -> dict[str, str]:
    """What is wrong with the files of these packs, by file name."""
    problems = {}
    for file in (file for pack in chosen for file in pack.files):
        try:
            home.files.state(file)
        except WhosthereError as error:
            problems[file.name] = error.message
    return problems


COMMANDS = (enroll, gallery_group, identity_group, models_group)
