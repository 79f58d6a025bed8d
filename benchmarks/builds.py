"""Compares the speed of two source trees: enrolling, searching and starting, one tree after the other.

    python -m benchmarks.builds OLD [NEW] [--folder FOLDER] [--rounds N] [--photos N] [--probes N] [--out CSV]

OLD and NEW are folders or git revisions; NEW is this working tree by default. Both run with this interpreter
and its installed packages, through the public command and over HTTP only. Each round measures both trees, in changing
order; the ratio is the median of the rounds' ratios NEW / OLD, with the quartiles.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.lfw import DEFAULT_FOLDER, RESULTS, ROOT, Cell, Shot, by_person, list_shots, say, write_results
from search_service.demo import make_photos
from tests.golden_home.old_code import extract, program, search_path
from tests.search_service.api.serving import Serve, image, ok
from tests.variants import clean_environment

WORKER = """
import io, json, sys, time
from contextlib import redirect_stdout
import indexer
from search_service.cli import main

assert indexer.__file__.startswith(sys.argv[1]), indexer.__file__

for line in sys.stdin:
    begun = time.perf_counter()
    with redirect_stdout(io.StringIO()):
        try:
            main(json.loads(line))
        except SystemExit as end:
            assert end.code in (0, 3), line
    print(time.perf_counter() - begun, flush=True)
"""
"""Runs commands in one process, which keeps the libraries loaded. Exit code 3: some photos were rejected."""


@dataclass
class Tree:
    """One of the two source trees, with its own home folder."""

    name: str
    code: Path
    home: Path
    worker: subprocess.Popen[str]
    serve: Serve
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def run(self, *arguments: str | Path) -> None:
        """Runs a command in the process that stays open."""
        assert self.worker.stdin is not None
        assert self.worker.stdout is not None
        print(json.dumps([*map(str, arguments), "--home", str(self.home)]), file=self.worker.stdin, flush=True)
        assert self.worker.stdout.readline(), f"{self.name}: the command failed"


def main() -> None:
    options = _arguments()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        place = Path(folder)
        photos, probes = _photos(options.folder, place, options.photos, options.probes)
        trees = [
            stack.enter_context(_opened(place / name, name, revision))
            for name, revision in (("old", options.old), ("new", options.new))
        ]
        for tree in trees:
            tree.run("enroll", photos, "--gallery", "all", "--pick", "center", "--json")
        rows = _measure(trees, photos, probes, options.rounds)
    write_results(options.out, rows)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", help="a folder or a git revision")
    parser.add_argument("new", nargs="?", default=str(ROOT), help="a folder or a git revision (this working tree)")
    parser.add_argument("--folder", type=Path, help="an LFW folder; without one, photos that installed packages ship")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--photos", type=int, default=320)
    parser.add_argument("--probes", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS / "builds.csv")
    return parser.parse_args()


def _photos(folder: Path | None, place: Path, most: int, most_probes: int) -> tuple[Path, list[Path]]:
    """Copies the photos to enroll, a folder for each person. Returns that folder, and the probes."""
    if folder is None and DEFAULT_FOLDER.is_dir():
        folder = DEFAULT_FOLDER
    if folder is None:
        people, probes = make_photos(place / "demo")
        return people, sorted(probes.iterdir())[:most_probes]
    shots = list_shots(folder)
    several = [photos for photos in by_person(shots).values() if len(photos) > 1]
    for shot in [photos[0] for photos in several][:most] or shots[:most]:
        _copy(shot, place / "photos")
    return place / "photos", [photos[1].path for photos in several][:most_probes]


def _copy(shot: Shot, photos: Path) -> None:
    (photos / shot.person).mkdir(parents=True, exist_ok=True)
    shutil.copy(shot.path, photos / shot.person)


@contextmanager
def _opened(place: Path, name: str, revision: str) -> Iterator[Tree]:
    """A tree whose worker and service run until the end of the block."""
    home, code = place / "home", Path(revision).resolve()
    home.mkdir(parents=True)
    if not code.is_dir():
        code = place / "code"
        extract(code, revision)
    environment = search_path(code)
    command, pipe = [sys.executable, "-P", "-c", WORKER, str(code)], subprocess.PIPE
    with subprocess.Popen(command, text=True, env=clean_environment(**environment), stdin=pipe, stdout=pipe) as worker:
        serve = Serve(home, place / "serve.log", program=program(code), **environment)
        try:
            yield Tree(name, code, home, worker, serve.ready())
        finally:
            serve.end()


def _measure(trees: Sequence[Tree], photos: Path, probes: Sequence[Path], rounds: int) -> list[dict[str, Cell]]:
    """Times each way in rounds of all trees; the first round warms up."""
    images = len(list(photos.glob("*/*")))
    ways: Mapping[str, tuple[int, Callable[[Tree, int], None]]] = {
        "enroll, a photo": (images, lambda tree, number: _enroll(tree, photos, number)),
        "search in the process, a probe": (len(probes), lambda tree, _: _search(tree, probes)),
        "search over HTTP, a probe": (len(probes), lambda tree, _: _search_over_http(tree, probes)),
        "whosthere --version": (1, lambda tree, _: _version(tree)),
    }
    for number in range(rounds + 1):
        for name, (_, way) in ways.items():
            for tree in trees if number % 2 else reversed(trees):
                begun = time.perf_counter()
                way(tree, number)
                if number:
                    tree.seconds.setdefault(name, []).append(time.perf_counter() - begun)
        say(f"round {number}/{rounds}")
    return [_row(name, count, *(tree.seconds[name] for tree in trees)) for name, (count, _) in ways.items()]


def _enroll(tree: Tree, photos: Path, number: int) -> None:
    """Enrolls into a new gallery each time, because photos that are enrolled already are skipped."""
    tree.run("enroll", photos, "--gallery", f"round-{number}", "--pick", "center", "--json")


def _search(tree: Tree, probes: Sequence[Path]) -> None:
    tree.run("search", *probes, "--gallery", "all", "--json")


def _search_over_http(tree: Tree, probes: Sequence[Path]) -> None:
    for probe in probes:
        ok(tree.serve.client.post("/v1/galleries/all/search", files=image(probe.read_bytes())))


def _version(tree: Tree) -> None:
    command = [*program(tree.code), "--version"]
    environment = clean_environment(**search_path(tree.code))
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def _row(name: str, count: int, old: Sequence[float], new: Sequence[float]) -> dict[str, Cell]:
    ratios = sorted(after / before for before, after in zip(old, new, strict=True))
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    milliseconds = {which: 1000 * statistics.median(taken) / count for which, taken in (("old", old), ("new", new))}
    return {
        "what": name,
        "rounds": len(ratios),
        "old_ms": milliseconds["old"],
        "new_ms": milliseconds["new"],
        "old_a_second": 1000 / milliseconds["old"],
        "new_a_second": 1000 / milliseconds["new"],
        "new_by_old": statistics.median(ratios),
        "quartile_low": low,
        "quartile_high": high,
    }


if __name__ == "__main__":
    main()
