"""Everything one process needs, opened from its settings when it is first asked for: the one place that owns it."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Any, TypeVar

from sqlalchemy import Engine

from indexer.enrollment.enroller import Enroller, check_pack
from indexer.enrollment.lookalikes import Lookalikes, lookalike_bound
from indexer.errors import Conflict, InvalidSetting, NotFound
from indexer.gallery.calibrations import CalibrationRepository
from indexer.gallery.database import migrate, open_database
from indexer.gallery.store import Store
from indexer.models.catalogue import Catalogue
from indexer.models.model_files import ModelFiles
from indexer.models.packs import Pack
from indexer.settings import Settings
from indexer.timing import Stopwatch
from indexer.types import Gallery, Tier
from indexer.vectors.base import Engine as VectorEngine
from indexer.vectors.engines import FaissEngine
from indexer.vectors.synchronizer import Indexes
from indexer.vision import networks
from indexer.vision.decode import Limits
from indexer.vision.pipeline import FacePipeline, Options
from indexer.vision.runtime import Threads, usable_cores

Made = TypeVar("Made")


class locked_property(cached_property[Made]):  # noqa: N801 (a decorator)
    """A cached property of AppContext that is computed once, under the context's lock.

    From Python 3.12 on, `functools.cached_property` lets each of several threads compute the value.
    """

    def __get__(self, context: AppContext, owner: type[Any] | None = None) -> Made:  # type: ignore[override]
        with context.making:
            return super().__get__(context, owner)


SPARE_WORKERS = 2
"""Workers beyond one a core: while they read, decode or wait for each other's Python, every core still has a batch to
compute."""


class AppContext:
    """The database, the indexes, the model files and the networks of one home folder. Thread-safe.

    Raises InvalidSetting for what only the whole can tell to be wrong.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.making = threading.RLock()
        self.stopwatch = Stopwatch()
        self._vectors = _vectors(settings.vectors)
        self._pipelines: dict[tuple[str, str, int], FacePipeline] = {}
        if settings.model:
            try:
                self.packs.find(settings.model)
            except NotFound as error:
                raise InvalidSetting(f"WHOSTHERE_MODEL: {error.message}") from error

    @locked_property
    def engine(self) -> Engine:
        return open_database(self.settings.database_url)

    @property
    def migrated_engine(self) -> Engine:
        """The database, its tables at the newest version."""
        migrate(self.engine)
        return self.engine

    @locked_property
    def store(self) -> Store:
        """The galleries, identities and faces: the source of truth."""
        return Store(self.migrated_engine)

    @locked_property
    def calibrations(self) -> CalibrationRepository:
        """The score distributions measured on the galleries themselves."""
        return CalibrationRepository(self.migrated_engine)

    @locked_property
    def indexes(self) -> Indexes:
        return Indexes(self.store, self.settings.indexes_folder, self._vectors)

    @locked_property
    def files(self) -> ModelFiles:
        return ModelFiles(self.settings.models_folder)

    @locked_property
    def packs(self) -> Catalogue:
        return Catalogue(self.files, networks.check_pack)

    @property
    def pack(self) -> Pack:
        """The pack that new galleries are bound to: the one of the settings, else the best that is installed.

        Raises ModelUnavailable.
        """
        return self.packs.find_installed(self.settings.model) if self.settings.model else self.packs.best_installed()

    def usable(self, name: str | None) -> Pack:
        """The pack of that name, or the one for new galleries where none is said. Raises NotFound for one that is not
        known, ModelUnavailable for one that cannot run here."""
        return self.packs.find_installed(name) if name else self.pack

    @property
    def cores(self) -> int:
        return self.settings.threads or usable_cores()

    def pipeline(self, pack: Pack, streams: int = 1) -> FacePipeline:
        """The pack's networks for `streams` callers at a time; one that answers single probes uses every core."""
        key = pack.name, pack.fingerprint, streams
        with self.making:
            if key not in self._pipelines:
                limits = Limits(self.settings.max_image_bytes, self.settings.max_image_pixels)
                threads = Threads(streams, max(1, self.cores // streams))
                options = Options(
                    limits,
                    threads,
                    self.settings.device,
                    self.settings.precision,
                    self.settings.thorough,
                    self.stopwatch.stage,
                )
                self._pipelines[key] = FacePipeline(pack, self.files, options)
            return self._pipelines[key]

    def pipeline_of(self, gallery: Gallery) -> FacePipeline:
        """Raises as `pack_of`."""
        return self.pipeline(self.pack_of(gallery))

    def open_gallery(self, name: str, model: str | None = None) -> Gallery:
        """The gallery of that name, made where it is missing with the pack `model`, or the one for new galleries.

        Raises NotFound for a pack that is not known, ModelUnavailable for one that cannot run here, and Conflict when
        the gallery is bound to another one.
        """
        wanted = self.packs.find(model) if model else None
        try:
            gallery = self.store.galleries.get(name)
        except NotFound:
            pack = self.usable(model)
            self.pipeline(pack, streams=self.cores).load()  # what cannot enrol makes no gallery
            try:
                return self.store.galleries.create(name, pack.name, pack.fingerprint, pack.dim)
            except Conflict:  # somebody else made it this moment
                gallery = self.store.galleries.get(name)
        if wanted is not None and gallery.model != wanted.name:
            raise Conflict(
                f"gallery {name!r} is bound to model pack {gallery.model!r}, and {wanted.name!r} was asked for; "
                "a gallery never mixes packs",
                code="model_mismatch",
            )
        return gallery

    def pack_of(self, gallery: Gallery) -> Pack:
        """The pack that the gallery was made with. Raises Conflict, NotFound or ModelUnavailable when this program
        does not have it."""
        pack = self.packs.find(gallery.model)
        check_pack(gallery, pack)
        return pack

    def lookalikes(self, gallery: Gallery, photos: int = 0) -> Lookalikes | None:
        """What finds people who look like somebody else, in a gallery that is to hold so many photos; None where nobody
        wants to know."""
        if self.settings.lookalikes == "off":
            return None
        index = self.indexes.of(gallery)
        bound = lookalike_bound(self.pack_of(gallery), max(len(index.caught_up()), photos))
        return Lookalikes(self.store, gallery, index, bound, self.settings.lookalikes == "hold")

    def enroller(self, gallery: Gallery, photos: int = 0) -> Enroller:
        """A stream a core, and workers enough to keep them all computing; `photos` are to be enrolled."""
        pipeline = self.pipeline(self.pack_of(gallery), streams=self.cores)
        return Enroller(
            self.store,
            pipeline,
            gallery,
            self.settings.max_image_bytes,
            workers=self.cores + SPARE_WORKERS,
            keep_crops=self.settings.keep_crops,
            lookalikes=self.lookalikes(gallery, photos),
        )

    def close(self) -> None:
        """Writes down what the indexes have learned and lets the database go."""
        try:
            if "indexes" in self.__dict__:
                self.indexes.save()
        finally:
            self._vectors.close()
            if "engine" in self.__dict__:
                self.engine.dispose()


def _vectors(wanted: str) -> VectorEngine:
    if wanted.startswith("milvus"):
        from indexer.vectors.milvus.index import MilvusEngine

        return MilvusEngine(wanted)
    try:
        return FaissEngine(Tier(wanted))
    except ValueError:  # which is not repeated: a mistyped URL may hold a password
        raise InvalidSetting(f"WHOSTHERE_VECTORS: expected one of {', '.join(Tier)} or milvus://HOST:PORT") from None
