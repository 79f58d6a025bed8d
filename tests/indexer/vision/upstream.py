"""Imports single modules of InsightFace, which is installed without the dependencies of its `__init__`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def scrfd() -> Any:
    """Returns the module `insightface.model_zoo.scrfd`. Skips the test if it cannot be imported."""
    with _bare("insightface", "insightface.model_zoo"):
        return _imported("insightface.model_zoo.scrfd")


def face_align() -> Any:
    """Returns the module `insightface.utils.face_align`, which uses scikit-image's similarity transform. Skips the test
    if it cannot be imported."""
    with _bare("skimage", "skimage.transform", "skimage._shared", "insightface", "insightface.utils") as packages:
        geometric = _imported("skimage.transform._geometric")
        packages["skimage.transform"].__dict__["SimilarityTransform"] = geometric.SimilarityTransform
        return _imported("insightface.utils.face_align")


@contextmanager
def _bare(*names: str) -> Iterator[dict[str, ModuleType]]:
    """Replaces packages by empty ones with the same folder until the end of the block."""
    before = dict(sys.modules)
    packages = {}
    for name in names:
        packages[name] = ModuleType(name)
        packages[name].__path__ = [str(_folder(name))]
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(packages[parent], child, packages[name])
    sys.modules.update(packages)
    try:
        yield packages
    finally:
        roots = {name.split(".")[0] for name in names}
        for name in [name for name in sys.modules if name.split(".")[0] in roots]:
            del sys.modules[name]
        sys.modules.update(before)


def _folder(name: str) -> Path:
    root, *below = name.split(".")
    spec = importlib.util.find_spec(root)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{root} is not installed (tests/photos.txt)")
    return Path(spec.submodule_search_locations[0], *below)


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} cannot be imported: {error}")
