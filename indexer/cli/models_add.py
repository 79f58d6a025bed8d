"""`whosthere models add`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from indexer.app_context import AppContext
from indexer.cli.common import examples, json_option, print_json, with_context
from indexer.errors import InvalidRequest, ModelUnavailable
from indexer.models import onnx_prepare, packs
from indexer.models.catalogue import FileDescription, PackDescription, check_name
from indexer.models.liveness_catalogue import LivenessDescription, NetworkDescription
from indexer.models.liveness_packs import BUILT_IN_LIVENESS, Border, LivenessNetwork
from indexer.models.packs import BUILT_IN, CHECKPOINTS, DETECTORS, EMBEDDERS, LIVENESS, Network
from indexer.models.staging import read_file
from indexer.types import sha256

CHECKPOINT_SIDE = 80
"""Input of MiniFASNet's checkpoints, in pixels."""

Value = TypeVar("Value")

file_option = click.Path(path_type=Path, exists=True, dir_okay=False)


@click.command(
    "add",
    epilog=examples(
        "whosthere models add mine --embedder w600k_r100.onnx --detector det_10g.onnx",
        "whosthere models add mine --embedder backbone.pth --embedder-network iresnet100 --detector sface",
        "whosthere models add ir50 --embedder ir50/pytorch_model.pt --detector retinaface/pytorch_model.pt",
        "whosthere models add door --liveness antispoof.onnx --rgb --pixel-scale 0.0039216 --crop-scale 1.5",
    ),
)
@click.argument("name")
@click.argument("files", nargs=-1, type=file_option)
@click.option("--embedder", type=file_option, help="ONNX file or PyTorch checkpoint.")
@click.option("--detector", metavar="FILE-OR-PACK", help="The same, or the name of a pack whose detector is used.")
@click.option(
    "--embedder-network",
    type=click.Choice([str(n) for n in EMBEDDERS]),
    default=str(Network.ONNX),
    show_default=True,
    help="Network in the embedder's file; iresnetN are checkpoints of arcface_torch.",
)
@click.option(
    "--detector-network",
    type=click.Choice([str(n) for n in DETECTORS]),
    default=str(Network.SCRFD),
    show_default=True,
    help="Network in the detector's file; retinaface_r50 is a checkpoint.",
)
@click.option("--mean", type=float, default=127.5, show_default=True, help="Crops are fed as RGB, (x - mean) * scale,")
@click.option(
    "--scale",
    type=click.FloatRange(0, min_open=True),
    default=1 / 127.5,
    show_default="1/127.5",
    help="with x from 0 to 255.",
)
@click.option(
    "--mirror/--no-mirror", default=True, show_default=True, help="Embed the mirrored crop as well, and average both."
)
@click.option(
    "--liveness",
    is_flag=True,
    help="FILES are liveness networks. Each option below is given once, or once for each file; files of a built-in "
    "pack need none.",
)
@click.option("--network", multiple=True, type=click.Choice([str(n) for n in LIVENESS]), help="Default: onnx.")
@click.option("--input-size", multiple=True, type=int, help="Side of the input in pixels, if the file does not fix it.")
@click.option("--crop-scale", multiple=True, type=float, help="Size of the crop relative to the face's box (2.7).")
@click.option(
    "--border",
    multiple=True,
    type=click.Choice([str(b) for b in Border]),
    help="Move crops inside the image (shift, the default), or mirror the image at its border (reflect).",
)
@click.option("--bgr/--rgb", default=True, show_default=True, help="Order of the channels, in all files.")
@click.option("--pixel-scale", multiple=True, type=float, help="The input is x times this, with x from 0 to 255 (1).")
@click.option("--live-class", multiple=True, type=int, help="Index of the class of live faces (1).")
@click.option("--softmax", is_flag=True, help="The networks return probabilities.")
@click.option("--weight", multiple=True, type=float, help="Weight of the network in the mean (1).")
@click.option("--threshold", type=float, default=0.5, show_default=True, help="Faces are live from this score on.")
@click.option("--measured-on", default="", help="The data on which the threshold was chosen, for your records.")
@click.option("--licence", default="", help="License of the files, for your records.")
@json_option
@with_context
def models_add(
    context: AppContext,
    name: str,
    files: tuple[Path, ...],
    embedder: Path | None,
    detector: str | None,
    embedder_network: str,
    detector_network: str,
    mean: float,
    scale: float,
    mirror: bool,
    liveness: bool,
    licence: str,
    as_json: bool,
    **networks: Any,
) -> None:
    """Create a model pack, or a liveness pack, from local files.

    The files are copied to the models folder, and their results compared with those of ONNX Runtime. With the name of a
    built-in pack, they must be that pack's files.
    """
    if liveness:
        if embedder or detector or not files:
            raise click.UsageError("--liveness takes FILES, and neither --embedder nor --detector")
        check_name(name)
        if name in context.packs.names():
            raise InvalidRequest(f"model pack {name!r} exists already")
        added = context.liveness_packs.add(name, _described_networks(name, files, licence, **networks), files)
        if as_json:
            print_json(context.liveness_packs.describe(name))
        else:
            click.echo(f"Liveness pack {name} added: faces are live from {added.threshold:g} on.")
        return
    if not embedder or not detector:
        raise click.UsageError("a model pack needs --embedder and --detector; a liveness pack, --liveness")
    if files:
        raise click.UsageError("FILES are for --liveness; a model pack takes --embedder and --detector")
    detects: Path | None = None if detector in context.packs.names() else Path(detector)
    if detects is not None and not detects.is_file():
        raise click.UsageError(
            f"--detector {detector} is not a file; expected a file or one of {', '.join(context.packs.names())}"
        )
    if name in {pack.name for pack in BUILT_IN}:
        if detects is None:
            raise click.UsageError(f"{name} has its own detector; expected its file")
        pack = context.packs.install(name, detects, embedder)
    else:
        check_name(name)
        if name in context.liveness_packs.names():
            raise InvalidRequest(f"liveness pack {name!r} exists already")
        description = PackDescription(
            detector=detector if detects is None else _described(name, "detector", detects, detector_network, licence),
            embedder=_described(name, "embedder", embedder, embedder_network, licence),
            dim=1,  # replaced when the network has run
            mean=mean,
            scale=scale,
            mirror=mirror,
        )
        pack = context.packs.add(name, description, detects, embedder)
    if as_json:
        print_json(packs.describe(pack) | {"installed": True})
    else:
        click.echo(f"Model pack {name} added: {pack.dim}-d, fingerprint {pack.fingerprint}.")


def _described(name: str, what: str, path: Path, network: str, licence: str) -> FileDescription:
    return FileDescription(
        file=f"{name}+{what}-{path.name}",
        network=Network(network),
        licence=licence,
        origin=f"added from {path.resolve()}",
    )


def _described_networks(
    name: str,
    files: Sequence[Path],
    licence: str,
    network: Sequence[str],
    input_size: Sequence[int],
    crop_scale: Sequence[float],
    border: Sequence[str],
    bgr: bool,
    pixel_scale: Sequence[float],
    live_class: Sequence[int],
    softmax: bool,
    weight: Sequence[float],
    threshold: float,
    measured_on: str,
) -> LivenessDescription:
    """Returns the description of the files. Raises UsageError, or ModelUnavailable if a file cannot be read."""
    known = {one.file.sha256: one for pack in BUILT_IN_LIVENESS for one in pack.networks}
    count = len(files)
    columns = zip(
        files,
        _of_each("--network", network, str(Network.ONNX), count),
        _of_each("--input-size", input_size, None, count),
        _of_each("--crop-scale", crop_scale, 2.7, count),
        _of_each("--border", border, str(Border.SHIFT), count),
        _of_each("--pixel-scale", pixel_scale, 1.0, count),
        _of_each("--live-class", live_class, 1, count),
        _of_each("--weight", weight, None, count),
        strict=True,
    )
    described = []
    for place, (path, kind, side, crop, rule, pixels, live, share) in enumerate(columns, 1):
        data = read_file(path)
        file = f"{name}+{place}-{path.name}"
        built_in = known.get(sha256(data))
        if built_in is not None:
            described.append(_copied(built_in, file, share))
            continue
        described.append(
            NetworkDescription(
                file=file,
                network=Network(kind),
                licence=licence,
                origin=f"added from {path.resolve()}",
                input_size=side or _input_side(path, data, Network(kind)),
                crop_scale=crop,
                border=Border(rule),
                bgr=bgr,
                pixel_scale=pixels,
                live_class=live,
                weight=1.0 if share is None else share,
                has_softmax=softmax,
            )
        )
    return LivenessDescription(networks=tuple(described), threshold=threshold, measured_on=measured_on)


def _of_each(option: str, values: Sequence[Value], default: Value, count: int) -> Sequence[Value]:
    """Returns the value for each of `count` files. Raises UsageError."""
    if len(values) not in (0, 1, count):
        raise click.UsageError(
            f"{option} is given {len(values)} times; expected once, or once for each of {count} files"
        )
    return values if len(values) == count else list(values or (default,)) * count


def _copied(network: LivenessNetwork, file: str, weight: float | None) -> NetworkDescription:
    """Returns the description of a built-in network's file under another name."""
    return NetworkDescription(
        file=file,
        network=network.file.network,
        licence=network.file.licence,
        origin=network.file.origin,
        input_size=network.file.input_size,
        crop_scale=network.crop_scale,
        border=network.border,
        bgr=network.bgr,
        pixel_scale=network.pixel_scale,
        live_class=network.live_class,
        weight=network.weight if weight is None else weight,
        has_softmax=network.has_softmax,
    )


def _input_side(path: Path, data: bytes, network: Network) -> int:
    if network in CHECKPOINTS:
        return CHECKPOINT_SIDE
    try:
        side = onnx_prepare.input_side(data)
    except Exception as error:  # onnx raises errors of several kinds
        raise ModelUnavailable(f"{path} is not an ONNX model: {error}") from error
    if side is None:
        raise click.UsageError(f"{path} does not fix the size of its input; give --input-size")
    return side
