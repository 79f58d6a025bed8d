"""Measures the liveness pack on faces of an LFW folder and on attacks drawn with the same faces.

    python -m benchmarks.liveness --models MODELS [FOLDER]

MODELS is a folder with the files of the pack. The first photos of LFW people count as live faces, other people's are
shown in the attacks of `synthetic_attacks`. LFW has press photos, not captures of a camera at a door, and the attacks
are drawn: the rates show that most live faces pass and which attacks are seen at all, not the rates at a door. Writes
benchmarks/results/liveness.csv: the networks alone and together, at the shipped threshold and at those for some BPCER.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from benchmarks import lfw
from benchmarks.lfw import Cell
from benchmarks.synthetic_attacks import ATTACKS
from indexer.app_context import AppContext
from indexer.models.liveness_packs import MINIFASNET, LivenessPack
from indexer.models.pull import pull
from indexer.settings import read_settings
from indexer.types import Pixels
from search_service.evaluation.liveness import evaluate_liveness, threshold_for_bpcer

LIVE_FACES = 400
ATTACKS_OF_EACH_SPECIES = 100
BPCERS = (0.1, 0.03, 0.01)
SEED = 0


def read(path: Path) -> Pixels:
    image = cv2.imread(str(path))
    if image is None:
        raise SystemExit(f"{path} is not an image")
    return image[:, :, ::-1].astype(np.uint8)


def write_photos(folder: Path, photos: list[Path]) -> None:
    """Writes `live/` and `attack/SPECIES/`, with people who are in only one of them."""
    rng = np.random.default_rng(SEED)
    remaining = iter(photos)

    def save(name: str, image: Pixels) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.ascontiguousarray(image[:, :, ::-1]))

    for number in range(LIVE_FACES):
        save(f"live/{number}.png", read(next(remaining)))
    for species, draw in ATTACKS.items():
        for number in range(ATTACKS_OF_EACH_SPECIES):
            save(f"attack/{species}/{number}.png", draw(read(next(remaining)), read(photos[number]), rng))


def packs() -> Iterator[LivenessPack]:
    """Yields the pack and each of its networks alone."""
    yield MINIFASNET
    for network in MINIFASNET.networks:
        yield replace(MINIFASNET, name=network.file.name, networks=(network,))


def measure(context: AppContext, pack: LivenessPack, folder: Path) -> Iterator[dict[str, Cell]]:
    found = evaluate_liveness(context, pack, folder, None, lambda *_: None)
    scored = [(one.species, one.score) for one in found.presentations if one.score is not None]
    live = [score for species, score in scored if species is None]
    wanted: list[tuple[str, float]] = [("shipped", pack.threshold)]
    wanted += [(f"BPCER {100 * bpcer:g} %", threshold_for_bpcer(live, bpcer)) for bpcer in BPCERS]
    for name, threshold in wanted:
        rates = {
            species: np.mean([score >= threshold for kind, score in scored if kind == species]) for species in ATTACKS
        }
        yield {
            "networks": pack.name,
            "threshold": name,
            "value": round(threshold, 4),
            "live_faces": len(live),
            "bpcer": round(float(np.mean([score < threshold for score in live])), 4),
            **{f"apcer_{species}": round(float(rate), 4) for species, rate in rates.items()},
        }


def main() -> None:
    parser = lfw.arguments(__doc__)
    parser.add_argument("--models", type=Path, required=True, help="a folder with the files of the pack")
    options = parser.parse_args()
    people = [photos[0].path for photos in lfw.by_person(lfw.list_shots(options.folder)).values()]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        lfw.say("drawing attacks")
        write_photos(folder / "door", people)
        context = AppContext(read_settings({}, home=folder / "home"))
        pull(MINIFASNET, context.files, str(options.models))
        rows = []
        for pack in packs():
            lfw.say(f"measuring {pack.name}")
            rows += list(measure(context, pack, folder / "door"))
        lfw.write_results(lfw.RESULTS / "liveness.csv", rows)
        context.close()


if __name__ == "__main__":
    main()
