"""The layout's edges, held by parsing every import of the project."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

TOP_LEVEL = {
    "search_service",
    "indexer",
    "migrations",
    "tests",
    "docker",
    "benchmarks",
    "docs",
    ".ci",
    "pyproject.toml",
    "README.md",
    "Makefile",
    ".gitignore",
    ".dockerignore",
    "LICENSE",
}

LAYERS: tuple[tuple[str, frozenset[str]], ...] = (
    ("search_service.client", frozenset({"search_service.client"})),
    ("search_service", frozenset({"search_service", "indexer"})),
    (
        "indexer.cli",
        frozenset(
            f"indexer.{part}"
            for part in [
                "cli",
                "home",
                "duplicates",
                "exchange",
                "reembedding",
                "enrollment",
                "sources",
                "objects",
                "settings",
                "vision",
                "vectors",
                "gallery",
                "types",
                "errors",
                "disk",
            ]
        ),
    ),
    (
        "indexer.home",
        frozenset(
            f"indexer.{part}"
            for part in [
                "duplicates",
                "reembedding",
                "enrollment",
                "settings",
                "stopwatch",
                "vision",
                "vectors",
                "gallery",
                "types",
                "errors",
            ]
        ),
    ),
    (
        "indexer.enrollment",
        frozenset(
            f"indexer.{part}" for part in ["duplicates", "sources", "vision", "vectors", "gallery", "types", "errors"]
        ),
    ),
    (
        "indexer.exchange",
        frozenset(f"indexer.{part}" for part in ["home", "enrollment", "gallery", "types", "errors", "disk"]),
    ),
    (
        "indexer.reembedding",
        frozenset(f"indexer.{part}" for part in ["vision", "gallery", "types", "errors"]),
    ),
    (
        "indexer.duplicates",
        frozenset(f"indexer.{part}" for part in ["vision", "vectors", "gallery", "types", "errors"]),
    ),
    ("indexer.objects", frozenset({"indexer.gallery", "indexer.types"})),
    ("indexer.archives", frozenset({"indexer.sources", "indexer.errors"})),
    ("indexer.sources", frozenset({"indexer.gallery", "indexer.types", "indexer.errors"})),
    ("indexer.settings", frozenset({"indexer.types", "indexer.errors"})),
    (
        "indexer.vision",
        frozenset({"indexer.vision", "indexer.types", "indexer.errors", "indexer.disk", "indexer.stopwatch"}),
    ),
    (
        "indexer.vectors",
        frozenset({"indexer.vectors", "indexer.gallery", "indexer.types", "indexer.errors", "indexer.disk"}),
    ),
    ("indexer.gallery", frozenset({"indexer.gallery", "indexer.types", "indexer.errors"})),
    ("indexer.disk", frozenset()),
    ("indexer.stopwatch", frozenset()),
    ("indexer.types", frozenset({"indexer.errors"})),
    ("indexer.errors", frozenset()),
    ("migrations", frozenset({"indexer.gallery", "indexer.settings"})),
)
"""Each part of the project and what of the project it may import. Downwards only."""

NEED_TORCH = (
    "indexer.vision.checkpoints",
    "indexer.vision.cuda",
    "indexer.vision.detectors.retinaface_network",
    "indexer.vision.embedders.iresnet",
)
"""Modules that import PyTorch, and are imported where it is needed and not before."""

PURE = ("indexer.types", "indexer.errors", "search_service.matching", "search_service.search")
NO_HTTP = ("indexer", "search_service.matching", "search_service.search", "search_service.doctor")


def modules() -> dict[str, Path]:
    found = {}
    for package in ("indexer", "search_service", "migrations"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """Everything a module imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(module: str, part: str) -> bool:
    return module == part or module.startswith(part + ".")


@pytest.mark.parametrize(("module", "path"), modules().items(), ids=modules())
def test_imports_point_downwards(module: str, path: Path) -> None:
    rules = [allowed for part, allowed in LAYERS if within(module, part)]
    assert rules or module == "indexer", f"{module} stands in no room of the layout"
    ours = {name for name in imports(path) if name.split(".")[0] in ("indexer", "search_service", "migrations")}
    wrong = {name for name in ours if not any(within(name, part) for part in rules[0])} if rules else ours
    assert not wrong


@pytest.mark.parametrize(
    ("parts", "packages"),
    [
        (NO_HTTP, ("fastapi", "starlette", "uvicorn", "httpx")),
        (("indexer.vision", "indexer.vectors", "search_service"), ("sqlalchemy", "alembic", "psycopg", "sqlite3")),
        (("indexer.gallery", "indexer.vision", "search_service"), ("faiss",)),
        (("indexer.gallery", "indexer.vectors", "search_service.api"), ("cv2", "openvino", "onnxruntime", "onnx")),
        (("search_service.matching",), ("numpy", "pydantic")),
        (("indexer.vision", "indexer.gallery", "indexer.vectors", "indexer.enrollment"), ("os.environ", "click")),
    ],
)
def test_edges_are_thin(parts: tuple[str, ...], packages: tuple[str, ...]) -> None:
    for module, path in modules().items():
        if any(within(module, part) for part in parts):
            assert not {name for name in imports(path) if any(within(name, package) for package in packages)}, module


def test_torch_is_imported_where_it_is_needed() -> None:
    found = {name for name, path in modules().items() if any(within(i, "torch") for i in imports(path))}
    assert found <= {*NEED_TORCH}


def test_top_level_is_the_owners() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {name.split("/")[0] for name in listed} <= TOP_LEVEL


def test_importing_does_nothing() -> None:
    """No module opens a file to write, starts a thread, reads the environment's settings or loads a heavy package."""
    names = [name for name in modules() if not within(name, "migrations") and name not in NEED_TORCH]
    script = (
        "import importlib, sys, threading\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "heavy = {'openvino', 'onnxruntime', 'onnx', 'pi_heif', 'torch', 'alembic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_of_a_person_is_committed() -> None:
    """No image and no model file is part of the project."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    endings = {Path(name).suffix.lower() for name in listed}
    assert not endings & {".jpg", ".jpeg", ".webp", ".heic", ".npy", ".npz", ".onnx", ".pt", ".pth", ".bin"}
