"""Imports a Parquet file into a gallery."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from indexer.enrollment.enroller import rejection_of
from indexer.enrollment.parquet.file import GalleryFile, ProgressListener
from indexer.enrollment.parquet.rows import FileRow, read_rows
from indexer.errors import Conflict, InvalidRequest, NotFound
from indexer.gallery.faces import Enrolled, NewFace
from indexer.gallery.store import Store
from indexer.models.catalogue import Catalogue
from indexer.models.packs import Pack
from indexer.types import Gallery, Outcome, Person, Reason


@dataclass(frozen=True)
class RowResult:
    """The result of one row of a file. `row` counts from 0; `message` explains a rejection."""

    row: int
    external_id: str
    outcome: Outcome
    reason: Reason | None = None
    message: str | None = None


def import_rows(
    store: Store, gallery: Gallery, file: GalleryFile, progress: ProgressListener = lambda done, total: None
) -> Generator[RowResult]:
    """Enrolls the faces and identities of a file, BATCH rows at a time.

    Identities without faces are committed before the faces of the same batch. Rows that are in the gallery already are
    unchanged, so an interrupted import can be run again.

    Yields:
        The result of each row, in order, after it was committed.

    Raises:
        Conflict: The gallery was re-embedded meanwhile.
        InvalidRequest: The file is damaged, or a batch of it takes too much memory.
    """
    done = 0
    batches = file.batches()
    while True:
        with file.bounded_memory():
            batch = next(batches, None)
            rows = [] if batch is None else read_rows(file.path, batch, done, gallery.dim)
        if batch is None:
            return
        del batch
        yield from _commit(store, gallery, rows)
        done += len(rows)
        progress(done, file.rows)


def _commit(store: Store, gallery: Gallery, rows: Sequence[FileRow]) -> list[RowResult]:
    values = [row.value for row in rows if not isinstance(row.value, InvalidRequest)]
    people = [value for value in values if isinstance(value, Person)]
    created = store.identities.add_missing(gallery, people) if people else set()
    enrolled = iter(store.faces.enroll(gallery, values) if values else ())
    results = []
    for row in rows:
        if isinstance(row.value, InvalidRequest):
            results.append(_rejected(row, Reason.INVALID_ROW, row.value.message))
        elif isinstance(row.value, NewFace):
            results.append(_result(row, next(enrolled)))
        else:
            is_new = row.external_id in created
            created -= {row.external_id}  # a second row of the same person created nothing
            results.append(_result(row, next(enrolled), is_new))
    return results


def _result(row: FileRow, enrolled: Enrolled, is_new: bool = False) -> RowResult:
    rejection = rejection_of(enrolled)
    if rejection is not None:
        return _rejected(row, Reason(rejection.code), rejection.message)
    return RowResult(row.number, row.external_id, Outcome.ENROLLED if is_new else enrolled.outcome)


def _rejected(row: FileRow, reason: Reason, message: str) -> RowResult:
    return RowResult(row.number, row.external_id, Outcome.REJECTED, reason, message)


@dataclass(frozen=True)
class _PackName:
    """A model pack as a file, an option or a gallery names it. `fingerprint` is empty if unknown."""

    model: str
    fingerprint: str
    dim: int

    def __str__(self) -> str:
        return f"model pack {self.model} {self.fingerprint}".rstrip()

    def differs(self, other: _PackName) -> bool:
        """Returns whether the embeddings differ: they depend on the fingerprint, not on the pack's name."""
        if self.fingerprint and other.fingerprint:
            return (self.fingerprint, self.dim) != (other.fingerprint, other.dim)
        return (self.model, self.dim) != (other.model, other.dim)


def gallery_for(
    store: Store,
    packs: Catalogue,
    default_pack: Callable[[], Pack],
    name: str,
    file: GalleryFile,
    model: str | None = None,
) -> Gallery:
    """Returns the gallery to import into, creating it if it does not exist.

    A new gallery is bound to the pack that the file names, which need not be installed, else to `model`, else to
    `default_pack`. A file without a pack is taken to be computed by the pack of the existing gallery.

    Raises:
        Conflict: File, `model` and gallery name different packs.
        NotFound: The pack is unknown.
        ModelUnavailable: The pack is not installed.
        InvalidRequest: The file's embeddings have another dimension.
    """
    requested = _known_pack(packs, model) if model else None
    in_file = _PackName(file.header.model, file.header.fingerprint, file.header.dim) if file.header else None
    if in_file and requested:
        _check_same(file, in_file, requested, f"{requested} was requested")
    wanted = in_file or requested
    try:
        gallery = store.galleries.get(name)
    except NotFound:
        pack = wanted or _known_pack(packs, default_pack().name)
        known = _known_pack(packs, pack.model)
        _check_same(file, pack, known, f"{known} is installed")
        _check_dim(file, pack)
        # A pack that is not installed has no fingerprint, unless the file has it; otherwise this raises.
        fingerprint = pack.fingerprint or packs.find(pack.model).fingerprint
        try:
            return store.galleries.create(name, pack.model, fingerprint, pack.dim)
        except Conflict:  # created by another process meanwhile
            gallery = store.galleries.get(name)
    bound = _PackName(gallery.model, gallery.fingerprint, gallery.dim)
    if wanted:
        _check_same(file, wanted, bound, f"gallery {name!r} by {bound}")
    _check_dim(file, bound)
    return gallery


def _known_pack(packs: Catalogue, model: str) -> _PackName:
    pack = packs.find(model)
    return _PackName(pack.name, pack.fingerprint if pack.has_known_hashes else "", pack.dim)


def _check_same(file: GalleryFile, one: _PackName, other: _PackName, other_is: str) -> None:
    if one.differs(other):
        raise Conflict(
            f"{file.path} holds embeddings by {one}, and {other_is}; a gallery never mixes packs",
            code="model_mismatch",
        )


def _check_dim(file: GalleryFile, pack: _PackName) -> None:
    if file.dim is not None and file.dim != pack.dim:
        raise InvalidRequest(
            f"the column 'embedding' of {file.path} holds {file.dim} numbers a face; expected {pack.dim}, as {pack} has"
        )
