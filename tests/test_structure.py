"""The layout and the direction of imports, checked by parsing every import of the project."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Mapping
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
    "findings",
    ".ci",
    "pyproject.toml",
    "README.md",
    "Makefile",
    ".gitignore",
    ".dockerignore",
    "LICENSE",
}

LAYERS: tuple[tuple[str, str], ...] = (
    ("search_service.client", "search_service.client"),
    ("search_service.cli", "search_service indexer -search_service.client"),
    ("search_service.server", "search_service indexer -search_service.cli -search_service.client"),
    ("search_service.api", "search_service indexer -search_service.cli -search_service.client -search_service.server"),
    ("search_service.demo", "SERVICE SEARCH"),
    ("search_service.doctor", "SERVICE SEARCH"),
    ("search_service.background", "search_service.background SERVICE SEARCH"),
    ("search_service.evaluation", "search_service.evaluation search_service.calibration SEARCH"),
    ("search_service.calibration", "search_service.calibration SEARCH"),
    ("search_service.events", "search_service.events SERVICE SEARCH"),
    ("search_service.serializers", "SERVICE INDEXER"),
    ("search_service.search", "search_service.candidates SEARCH"),
    ("search_service.candidates", "search_service.matching INDEXER"),
    ("search_service.inference_queue", "SEARCH"),
    ("search_service.service_context", "search_service.store INDEXER"),
    ("search_service.logs", "INDEXER"),
    ("search_service.store", "search_service.store INDEXER"),
    ("search_service.matching", "search_service.matching indexer.types indexer.errors indexer.rounding"),
    ("indexer.cli", "indexer.cli indexer.app_context indexer.serializers ENROLLMENT"),
    ("indexer.app_context", "ENROLLMENT"),
    ("indexer.enrollment", "ENROLLMENT"),
    ("indexer.serializers", "indexer.gallery BASE"),
    ("indexer.vision", "indexer.vision indexer.models BASE"),
    ("indexer.vectors", "indexer.vectors indexer.gallery BASE"),
    ("indexer.models", "indexer.models BASE"),
    ("indexer.gallery", "indexer.gallery BASE"),
    ("indexer.settings", "indexer.types indexer.errors"),
    ("indexer.types", "indexer.errors indexer.rounding"),
    ("indexer.rounding", ""),
    ("indexer.errors", ""),
    ("indexer.files", ""),
    ("indexer.timing", "indexer.supervision"),
    ("indexer.supervision", ""),
    ("indexer.clock", ""),
    ("indexer.csv_files", ""),
    ("indexer.slices", ""),
    ("migrations", "indexer.gallery indexer.settings search_service.store"),
)
"""Each folder (or module at the top of a package) and what of the project it may import; `-` excludes."""

GROUPS = {
    "BASE": (
        "indexer.settings indexer.types indexer.errors indexer.files indexer.timing indexer.supervision indexer.clock "
        "indexer.rounding indexer.csv_files indexer.slices"
    ),
    "ENROLLMENT": "indexer.enrollment indexer.vision indexer.vectors indexer.models indexer.gallery BASE",
    "INDEXER": "indexer -indexer.cli",
    "SERVICE": "search_service.service_context search_service.store search_service.serializers",
    "SEARCH": (
        "search_service.search search_service.inference_queue search_service.matching search_service.store INDEXER"
    ),
}

NEED_TORCH = (
    "indexer.models.checkpoints",
    "indexer.models.architectures",
    "indexer.vision.cuda",
)
"""Modules that import PyTorch. They are imported only when it is needed."""

NO_HTTP = ("indexer", "search_service.matching", "search_service.search", "search_service.doctor")


def modules() -> dict[str, Path]:
    found = {}
    for package in ("indexer", "search_service", "migrations"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> set[str]:
    """Returns everything that a module imports, also inside functions."""
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


def expand(rule: str) -> tuple[set[str], set[str]]:
    """Returns the parts that a rule of LAYERS allows, and those that it excludes."""
    allowed: set[str] = set()
    excluded: set[str] = set()
    for word in rule.split():
        if word in GROUPS:
            inner_allowed, inner_excluded = expand(GROUPS[word])
            allowed |= inner_allowed
            excluded |= inner_excluded
        elif word.startswith("-"):
            excluded.add(word[1:])
        else:
            allowed.add(word)
    return allowed, excluded


def project_imports(path: Path) -> set[str]:
    return {name for name in imports(path) if name.split(".")[0] in ("indexer", "search_service", "migrations")}


@pytest.mark.parametrize(("module", "path"), modules().items(), ids=modules())
def test_imports_point_downwards(module: str, path: Path) -> None:
    rules = [rule for part, rule in LAYERS if within(module, part)]
    assert rules or module in ("indexer", "search_service"), f"{module} is in no folder of the layout"
    allowed, excluded = expand(rules[0]) if rules else (set(), set())
    wrong = {
        name
        for name in project_imports(path)
        if not any(within(name, part) for part in allowed) or any(within(name, part) for part in excluded)
    }
    assert not wrong


def test_imports_have_no_cycle() -> None:
    known = modules()
    graph = {
        module: {part for name in project_imports(path) if (part := longest_module(name, known)) and part != module}
        for module, path in known.items()
    }
    while leaves := {module for module, used in graph.items() if not used}:
        graph = {module: used - leaves for module, used in graph.items() if module not in leaves}
    assert not graph


def longest_module(name: str, known: Mapping[str, Path]) -> str | None:
    """Returns the module that an imported name is, or is in; None for a package alone."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name if name and known[name].name != "__init__.py" else None


@pytest.mark.parametrize(
    ("parts", "packages"),
    [
        (NO_HTTP, ("fastapi", "starlette", "uvicorn")),
        (("indexer.vision", "indexer.models", "indexer.vectors"), ("sqlalchemy", "alembic", "psycopg", "sqlite3")),
        (("search_service.matching", "search_service.search", "search_service.api"), ("sqlalchemy", "psycopg")),
        (("indexer.gallery", "indexer.vision", "search_service"), ("faiss",)),
        (("indexer.gallery", "indexer.vectors", "search_service.api"), ("cv2", "openvino", "onnxruntime", "onnx")),
        (("search_service.matching",), ("pydantic",)),
        (
            ("indexer.vision", "indexer.gallery", "indexer.vectors", "indexer.enrollment.enroller"),
            ("os.environ", "click"),
        ),
    ],
)
def test_packages_are_imported_only_where_allowed(parts: tuple[str, ...], packages: tuple[str, ...]) -> None:
    for module, path in modules().items():
        if any(within(module, part) for part in parts):
            assert not {name for name in imports(path) if any(within(name, package) for package in packages)}, module


def test_only_model_downloads_make_http_requests() -> None:
    """Apart from `search_service`, which calls webhooks."""
    found = {name for name, path in modules().items() if any(within(i, "httpx") for i in imports(path))}
    assert {name for name in found if any(within(name, part) for part in NO_HTTP)} == {"indexer.models.download"}


def test_torch_is_imported_only_where_it_is_needed() -> None:
    found = {name for name, path in modules().items() if any(within(i, "torch") for i in imports(path))}
    assert not {name for name in found if not any(within(name, part) for part in NEED_TORCH)}


def test_top_level_has_only_the_agreed_entries() -> None:
    assert {name.split("/")[0] for name in committed_files()} <= TOP_LEVEL


def committed_files() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_importing_does_nothing() -> None:
    """No module starts a thread or loads a package that takes long to import."""
    skipped = ("migrations", *NEED_TORCH)
    names = [name for name in modules() if not any(within(name, part) for part in skipped)]
    script = (
        "import importlib, sys, threading\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "heavy = {'openvino', 'onnxruntime', 'onnx', 'pi_heif', 'torch', 'alembic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_image_and_no_model_file_is_committed() -> None:
    endings = {Path(name).suffix.lower() for name in committed_files()}
    assert not endings & {".jpg", ".jpeg", ".webp", ".heic", ".npy", ".npz", ".onnx", ".pt", ".pth", ".bin"}
