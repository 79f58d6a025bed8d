"""`whosthere models`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import click

from indexer.app_context import AppContext
from indexer.cli.common import (
    examples,
    json_option,
    print_json,
    progress_bars,
    progress_count,
    show,
    table,
    with_context,
)
from indexer.cli.models_add import models_add
from indexer.enrollment.reading import detect_or_reject
from indexer.enrollment.rows import Row
from indexer.enrollment.sources import rows_of
from indexer.errors import PYTORCH_MISSING, ModelUnavailable, RejectedImage, WhosthereError
from indexer.models.packs import FileSet, ModelFile, Pack
from indexer.models.partial_file import Progress
from indexer.models.pull import pull
from indexer.types import Pick, Pixels
from indexer.vision import quantize
from indexer.vision.decode import Limits
from indexer.vision.liveness.base import LivenessModel
from indexer.vision.pipeline import FacePipeline, Options
from indexer.vision.runtime import Threads

PHOTOS_AT_ONCE = 16

file_option = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group("models")
def models_group() -> None:
    """List, pull, add, check and quantize model packs."""


models_group.add_command(models_add)


@models_group.command("list", epilog=examples("whosthere models list", "whosthere models list --json"))
@json_option
@with_context
def models_list(context: AppContext, as_json: bool) -> None:
    """List the model packs: whether each can be used, and if not, why."""
    objects = [context.liveness_packs.describe(name) for name in context.liveness_packs.names()]
    objects += [_listed(context, name) for name in context.packs.names()]
    if as_json:
        print_json(objects)
        return
    rows = table("pack", "usable", "about")
    for o in objects:
        rows.add_row(str(o["name"]), f"no: {o['problem']}" if o["problem"] else "yes", str(o.get("summary", "")))
    show(rows)


def _listed(context: AppContext, name: str) -> dict[str, object]:
    """Returns the pack as JSON; `problem` is why it cannot be used."""
    description = context.packs.describe(name)
    if "problem" in description:
        return description
    return description | {"problem": context.packs.problem(context.packs.find(name), context.settings.precision)}


@models_group.command(
    "pull",
    epilog=examples(
        "whosthere models pull ir50",
        "whosthere models pull buffalo_l --accept-license --from ~/.insightface/models/buffalo_l",
        "whosthere models pull ir50 --from https://mirror.example.com/faces",
        "whosthere models pull minifasnet",
    ),
)
@click.argument("name")
@click.option("--accept-license", is_flag=True, help="Accept the pack's terms without asking.")
@click.option("--from", "source", metavar="URL-OR-PATH", help="A mirror: a URL, a folder or a ZIP.")
@json_option
@with_context
def models_pull(context: AppContext, name: str, accept_license: bool, source: str | None, as_json: bool) -> None:
    """Download the files of a model pack and verify them.

    If the pack has terms, they are shown and must be accepted. Run it again to continue an interrupted download.
    """
    is_liveness = name in context.liveness_packs.names()
    pack: FileSet = context.liveness_packs.find(name) if is_liveness else context.packs.find(name)
    if pack.terms and not accept_license:
        _ask(pack)
    with progress_bars() as show_bar:
        pulled = pull(pack, context.files, source, lambda p: _show_progress(p, show_bar))
    try:  # report networks that do not run now, not at the first enrollment
        fingerprint = _check_pulled(context, name)
    except ModelUnavailable as error:
        if error.code != PYTORCH_MISSING:
            for fetched in (
                p.file for p in pulled if p.source and not p.file.sha256
            ):  # files with a known hash are right
                context.packs.remove_file(fetched)
        raise
    if as_json:
        shown = [{"file": p.file.name, "sha256": p.sha256, "path": str(p.path), "from": p.source} for p in pulled]
        print_json({"model": name, "fingerprint": fingerprint, "files": shown})
        return
    rows = table("file", "SHA-256", "from")
    for p in pulled:
        rows.add_row(p.file.name, p.sha256, p.source or "already present")
    show(rows)


def _check_pulled(context: AppContext, name: str) -> str | None:
    """Runs the pack's networks once and returns its fingerprint; None for a liveness pack, which has none.

    Raises ModelUnavailable.
    """
    if name in context.liveness_packs.names():
        LivenessModel(context.liveness_packs.find(name), context.files, Threads()).load()
        return None
    return context.packs.check(context.packs.find(name)).fingerprint


def _ask(pack: FileSet) -> None:
    """Asks whether the pack's terms are accepted. Raises ClickException otherwise."""
    click.echo(pack.terms, err=True)
    try:
        accepted = click.confirm("\nDo you accept these terms?", err=True)
    except click.Abort:  # standard input is closed
        click.echo(err=True)
        accepted = False
    if not accepted:
        raise click.ClickException(
            "nothing was downloaded: the terms were not accepted (--accept-license accepts them)"
        )


def _show_progress(progress: Progress, show_bar: Callable[[str, int, int | None], None]) -> None:
    if progress.waiting:
        click.echo("Waiting for another pull in the same folder.", err=True)
    else:
        show_bar(progress.name, progress.done, progress.total)


@models_group.command("quantize", epilog=examples("whosthere models quantize ir50 --calibrate photos/"))
@click.argument("name")
@click.option(
    "--calibrate",
    "folders",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help=f"Photos of faces, or folders or ZIP files of them; best one each of {quantize.MAX_FACES} or more people.",
)
@json_option
@with_context
def models_quantize(context: AppContext, name: str, folders: tuple[Path, ...], as_json: bool) -> None:
    """Quantize a pack's embedder to int8, which is faster on CPUs.

    It is calibrated on the faces of the photos, compared with float32 on others, and kept if both agree.
    WHOSTHERE_PRECISION=int8 uses it. Needs NNCF: pip install 'whosthere[quantize]'.
    """
    pack = context.packs.find_installed(name)
    if importlib.util.find_spec("nncf") is None:  # fails before the photos are read
        raise ModelUnavailable("NNCF is not installed: pip install 'whosthere[quantize]'")
    with progress_count("Looking for faces", "faces") as show_progress:
        faces = _crops(context, pack, _spread(rows_of(folders)), show_progress)
    with progress_count("Calibrating", "faces") as show_progress:
        report = quantize.quantize_embedder(pack, context.files, faces, lambda done, of: show_progress(done, of, ""))
    if as_json:
        print_json(asdict(report))
        return
    figures = table("precision", "ms a face", "times as fast as float32")
    for what, ms in (("float32", report.float32_ms), ("native", report.native_ms), ("int8", report.int8_ms)):
        figures.add_row(what, f"{ms:.1f}", f"{report.float32_ms / ms:.1f}")
    show(figures)
    click.echo(
        f"{report.file} in int8: cosine to float32 {report.cosine_mean:.4f} on average, {report.cosine_min:.4f} at "
        f"least, over {report.checked_on} faces; calibrated on {report.calibrated_on} others. "
        "WHOSTHERE_PRECISION=int8 uses it."
    )


def _spread(rows: Sequence[Row]) -> list[Row]:
    """Reorders the rows so that the first ones are spread over all of them."""
    step = max(1, len(rows) // quantize.MAX_FACES)
    return [row for start in range(step) for row in rows[start::step]]


def _crops(
    context: AppContext, pack: Pack, rows: Sequence[Row], show_progress: Callable[[int, int, str], None]
) -> list[Pixels]:
    """Returns the aligned crop of the largest face of each photo with a face, at most MAX_FACES."""
    settings = context.settings
    limits = Limits(settings.max_image_bytes, settings.max_image_pixels)
    # Not the pipeline of the settings: their precision may be int8, which does not exist yet.
    pipeline = FacePipeline(pack, context.files, Options(limits, Threads(1, context.cores), settings.device))
    faces: list[Pixels] = []
    for start in range(0, len(rows), PHOTOS_AT_ONCE):
        images = []
        for row in rows[start : start + PHOTOS_AT_ONCE]:
            with suppress(RejectedImage):
                images.append(row.read(settings.max_image_bytes))
        for seen in detect_or_reject(pipeline, images, Pick.LARGEST):
            faces += [face.crop for face in seen.faces if face.crop is not None]
        looked = min(start + PHOTOS_AT_ONCE, len(rows))
        show_progress(min(len(faces), quantize.MAX_FACES), min(len(rows), quantize.MAX_FACES), f"in {looked} photos")
        if len(faces) >= quantize.MAX_FACES:
            break
    return faces[: quantize.MAX_FACES]


@models_group.command("verify", epilog=examples("whosthere models verify sface"))
@click.argument("names", nargs=-1)
@json_option
@with_context
def models_verify(context: AppContext, names: tuple[str, ...], as_json: bool) -> None:
    """Check the files of model packs against their SHA-256.

    Checks the named packs, or all installed ones, with their int8 forms. Exit code 1: a file is damaged.
    """
    found: list[tuple[str, ModelFile | None, str | None]] = []
    liveness = context.liveness_packs
    for name in names or (*context.packs.names(), *liveness.names()):
        if name in liveness.names():
            if names or liveness.describe(name)["installed"]:
                found += [(name, file, _problem(context.files.read, file)) for file in liveness.find(name).files]
            continue
        try:
            pack = context.packs.find(name)
        except ModelUnavailable as error:  # unreadable description
            found.append((name, None, error.message))
            continue
        if names or context.packs.is_installed(pack):
            found += [(name, *state) for state in _states(context, pack)]
    if as_json:
        print_json(
            [
                {"model": name, "file": f and f.name, "sha256": (f and f.sha256) or None, "error": problem}
                for name, f, problem in found
            ]
        )
    else:
        rows = table("pack", "file", "licence", "state")
        for name, file, problem in found:
            rows.add_row(name, file.name if file else "", file.licence if file else "", problem or "sound")
        show(rows)
    if any(problem for _, _, problem in found):
        sys.exit(1)


def _states(context: AppContext, pack: Pack) -> list[tuple[ModelFile, str | None]]:
    """Returns the pack's files and its int8 form, if any, each with what is wrong with it or None."""
    states = [(file, _problem(context.files.read, file)) for file in pack.files]
    form = context.files.quantized_path(pack.embedder)
    if form.is_file():
        int8 = replace(pack.embedder, name=f"{form.parent.name}/{form.name}", sha256="")
        states.append((int8, _problem(context.files.quantized_model, pack.embedder)))
    return states


def _problem(read: Callable[[ModelFile], bytes], file: ModelFile) -> str | None:
    try:
        read(file)
    except WhosthereError as error:
        return error.message
    return None
