"""`whosthere models`"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import click

from indexer.cli.common import examples, json_option, print_json, progress_bars, progress_count, show, table, with_home
from indexer.errors import RejectedImage, WhosthereError
from indexer.home import Home
from indexer.sources import Row, rows_of
from indexer.types import Pick, Pixels
from indexer.vision import download, packs, quantize
from indexer.vision.catalogue import FileDescription, PackDescription
from indexer.vision.packs import BUILT_IN, DETECTORS, EMBEDDERS, ModelFile, Network, Pack

PHOTOS_AT_ONCE = 16

file_option = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.group("models")
def models_group() -> None:
    """List, pull, add, check and quantise model packs."""


@models_group.command("list", epilog=examples("whosthere models list --json"))
@json_option
@with_home
def models_list(home: Home, as_json: bool) -> None:
    """List the model packs and whether their files are here."""
    known = [home.packs.find(name) for name in home.packs.names()]
    objects = [packs.describe(pack) | {"installed": home.packs.installed(pack)} for pack in known]
    if as_json:
        print_json(objects)
        return
    rows = table("pack", "installed", "about")
    for o in objects:
        rows.add_row(str(o["name"]), "yes" if o["installed"] else "no", str(o["summary"]))
    show(rows)


@models_group.command(
    "pull",
    epilog=examples(
        "whosthere models pull ir50",
        "whosthere models pull buffalo_l --accept-license --from ~/.insightface/models/buffalo_l",
        "whosthere models pull ir50 --from https://mirror.example.com/faces",
    ),
)
@click.argument("name")
@click.option("--accept-license", is_flag=True, help="Accept the terms without being asked.")
@click.option("--from", "source", metavar="URL-OR-FOLDER", help="A mirror, instead of where the pack comes from.")
@json_option
@with_home
def models_pull(home: Home, name: str, accept_license: bool, source: str | None, as_json: bool) -> None:
    """Fetch the files of a model pack, and verify them. Interrupted, it goes on where it was."""
    pack = home.packs.find(name)
    if pack.terms and not accept_license:
        click.echo(pack.terms, err=True)
        if not click.confirm("\nDo you accept these terms?", err=True):
            raise click.ClickException("nothing was fetched")
    with progress_bars() as tell:
        pulled = download.pull(pack, home.files, source, lambda p: _tell(p, tell))
    tried = home.packs.tried(home.packs.find(name))  # what does not run is told now, not at the first enrolment
    if as_json:
        shown = [{"file": p.file.name, "sha256": p.sha256, "path": str(p.path), "from": p.source} for p in pulled]
        print_json({"model": name, "fingerprint": tried.fingerprint, "files": shown})
        return
    rows = table("file", "SHA-256", "from")
    for p in pulled:
        rows.add_row(p.file.name, p.sha256, p.source or "was here already")
    show(rows)


def _tell(progress: download.Progress, tell: Callable[[str, int, int | None], None]) -> None:
    if progress.waiting:
        click.echo("Another pull is at work in the same folder; waiting for it.", err=True)
    else:
        tell(progress.name, progress.done, progress.total)


@models_group.command(
    "add",
    epilog=examples(
        "whosthere models add mine --embedder w600k_r100.onnx --detector det_10g.onnx",
        "whosthere models add mine --embedder backbone.pth --embedder-network iresnet100 --detector sface",
        "whosthere models add ir50 --embedder ir50/pytorch_model.pt --detector retinaface/pytorch_model.pt",
    ),
)
@click.argument("name")
@click.option("--embedder", required=True, type=file_option, help="An ONNX file, or a PyTorch checkpoint.")
@click.option("--detector", required=True, metavar="FILE-OR-PACK", help="The same, or a pack whose detector to use.")
@click.option(
    "--embedder-network",
    type=click.Choice([str(n) for n in EMBEDDERS]),
    default=str(Network.ONNX),
    show_default=True,
    help="What the embedder's file holds.",
)
@click.option(
    "--detector-network",
    type=click.Choice([str(n) for n in DETECTORS]),
    default=str(Network.SCRFD),
    show_default=True,
    help="What the detector's file holds.",
)
@click.option("--mean", type=float, default=127.5, show_default=True, help="Crops are fed as RGB, (x - mean) * scale.")
@click.option(
    "--scale",
    type=click.FloatRange(0, min_open=True),
    default=1 / 127.5,
    show_default="1/127.5",
    help="x being 0 to 255.",
)
@click.option("--mirror/--no-mirror", default=True, show_default=True, help="Average in the mirrored crop.")
@click.option("--licence", default="", help="Under which the files are yours, for whoever asks later.")
@json_option
@with_home
def models_add(
    home: Home,
    name: str,
    embedder: Path,
    detector: str,
    embedder_network: str,
    detector_network: str,
    mean: float,
    scale: float,
    mirror: bool,
    licence: str,
    as_json: bool,
) -> None:
    """Make a model pack of files that are here already. They are copied, and run once to see that they work.

    With the name of a built-in pack, they must be that pack's files.
    """
    detects: Path | None = None if detector in home.packs.names() else Path(detector)
    if detects is not None and not detects.is_file():
        raise click.UsageError(f"--detector {detector} is no file; expected one, or {', '.join(home.packs.names())}")
    if name in {pack.name for pack in BUILT_IN}:
        if detects is None:
            raise click.UsageError(f"{name} has a detector of its own; expected its file")
        pack = home.packs.take(name, detects, embedder)
    else:
        said = PackDescription(
            detector=detector if detects is None else _described(name, detects, detector_network, licence),
            embedder=_described(name, embedder, embedder_network, licence),
            dim=1,  # put right when the network has answered
            mean=mean,
            scale=scale,
            mirror=mirror,
        )
        pack = home.packs.add(name, said, detects, embedder)
    if as_json:
        print_json(packs.describe(pack) | {"installed": True})
    else:
        click.echo(f"Model pack {name} added: {pack.dim}-d, fingerprint {pack.fingerprint}.")


def _described(name: str, path: Path, network: str, licence: str) -> FileDescription:
    return FileDescription(
        file=f"{name}-{path.name}", network=Network(network), licence=licence, origin=f"added from {path.resolve()}"
    )


@models_group.command("quantize", epilog=examples("whosthere models quantize ir50 --calibrate photos/"))
@click.argument("name")
@click.option(
    "--calibrate",
    "folders",
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="Photos of real faces, or folders or a ZIP of them; more are as good as one each of many people.",
)
@json_option
@with_home
def models_quantize(home: Home, name: str, folders: tuple[Path, ...], as_json: bool) -> None:
    """Make a pack's embedder in int8, for CPUs: WHOSTHERE_PRECISION=int8 takes it from then on."""
    pack = home.packs.usable(name)
    rows = rows_of(folders)
    rows = rows[:: max(1, len(rows) // (2 * quantize.MOST_FACES))]  # spread over all; not every photo shows a face
    with progress_count("Looking", "photos") as tell:
        faces = _crops(home, pack, rows, tell)
    with progress_count("Calibrating", "faces") as tell:
        report = quantize.quantise(pack, home.files, faces, lambda done, of: tell(done, of, ""))
    if as_json:
        print_json(asdict(report))
        return
    figures = table("precision", "ms a face", "times as fast as float32")
    for what, ms in (("float32", report.float32_ms), ("native", report.native_ms), ("int8", report.int8_ms)):
        figures.add_row(what, f"{ms:.1f}", f"{report.float32_ms / ms:.1f}")
    show(figures)
    click.echo(
        f"{report.file} in int8: mean cosine {report.cosine_mean:.4f} to float32, {report.cosine_min:.4f} at least, "
        f"over {report.checked_on} faces that it was not calibrated on. WHOSTHERE_PRECISION=int8 takes it."
    )


def _crops(home: Home, pack: Pack, rows: Sequence[Row], tell: Callable[[int, int, str], None]) -> list[Pixels]:
    """The aligned crop of the largest face of each photo that shows one."""
    faces: list[Pixels] = []
    for start in range(0, len(rows), PHOTOS_AT_ONCE):
        images = []
        for row in rows[start : start + PHOTOS_AT_ONCE]:
            with suppress(RejectedImage):
                images.append(row.read(home.settings.max_image_bytes))
        for seen in home.pipeline(pack).describe(images, Pick.LARGEST):
            faces += [face.crop for face in seen.faces if face.crop is not None]
        tell(start + len(images), len(rows), "")
    return faces


@models_group.command("verify", epilog=examples("whosthere models verify sface"))
@click.argument("names", nargs=-1)
@json_option
@with_home
def models_verify(home: Home, names: tuple[str, ...], as_json: bool) -> None:
    """Check the files of model packs against their SHA-256: of the named ones, or of all that are installed."""
    known = [home.packs.find(name) for name in names or home.packs.names()]
    chosen = [pack for pack in known if names or home.packs.installed(pack)]
    found = [(pack, file, _problem(home, file)) for pack in chosen for file in pack.files]
    if as_json:
        print_json(
            [{"model": p.name, "file": f.name, "sha256": f.sha256 or None, "error": problem} for p, f, problem in found]
        )
    else:
        rows = table("pack", "file", "licence", "state")
        for pack, file, problem in found:
            rows.add_row(pack.name, file.name, file.licence, problem or "sound")
        show(rows)
    if any(problem for _, _, problem in found):
        sys.exit(1)


def _problem(home: Home, file: ModelFile) -> str | None:
    try:
        home.files.state(file)
    except WhosthereError as error:
        return error.message
    return None
