"""Adds files to the models folder all together or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from indexer.errors import ModelUnavailable
from indexer.files import make_private_folder, write_atomically
from indexer.models import onnx_prepare
from indexer.models.model_files import ModelFiles


class StagedFiles(ModelFiles):
    """A temporary folder whose files will be moved into the models folder."""

    def write(self, name: str, data: bytes) -> None:
        """Writes a file of that name. Raises OSError."""
        write_atomically(self.folder / name, [data], shared=True)


@contextmanager
def staging(files: ModelFiles) -> Iterator[StagedFiles]:
    """Yields a temporary folder whose files are moved into the models folder when the block succeeds.

    Raises ModelUnavailable if they cannot be written.
    """
    folder = files.folder
    try:
        make_private_folder(folder)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".adding-") as temporary:
            yield StagedFiles(Path(temporary), fallback=folder)
            for path in sorted(Path(temporary).rglob("*"), key=lambda p: p.suffix == ".json"):  # descriptions last
                if path.is_file():
                    target = folder / path.relative_to(temporary)
                    target.parent.mkdir(exist_ok=True)
                    path.replace(target)
    except OSError as error:
        raise ModelUnavailable(f"nothing can be written to {folder}: {error.strerror}") from error


def read_file(path: Path) -> bytes:
    """Returns the content of a user's file. Raises ModelUnavailable."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelUnavailable(f"{path} cannot be read: {error.strerror}") from error


def read_onnx(path: Path) -> bytes:
    """Returns the model in a user's ONNX file, with its weights. Raises ModelUnavailable."""
    try:
        return onnx_prepare.include_weights(read_file(path), path.parent)
    except ValueError as error:
        raise ModelUnavailable(f"{path.name} is not complete: {error}") from error
