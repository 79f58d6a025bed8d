"""Everything one process needs, opened from its settings when it is first asked for: the one place that owns it."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Any, TypeVar

from sqlalchemy import Engine

from indexer.enrollment import Enroller, check_pack
from indexer.errors import InvalidSetting, NotFound
from indexer.gallery.database import migrate, open_database
from indexer.gallery.store import Store
from indexer.settings import Settings
from indexer.types import Gallery
from indexer.vectors.faiss_index import FaissIndex
from indexer.vectors.follow import Indexes
from indexer.vision.decode import Limits
from indexer.vision.files import ModelFiles
from indexer.vision.packs import Pack, find_pack
from indexer.vision.pipeline import FacePipeline, Options
from indexer.vision.runtime import Threads, usable_cores

Made = TypeVar("Made")


class _made_once(cached_property[Made]):  # noqa: N801 (a decorator)
    """A property of Home, made by whoever asks first while the others wait: `cached_property` alone, from Python 3.12
    on, lets each of them make one."""

    def __get__(self, home: Home, owner: type[Any] | None = None) -> Made:  # type: ignore[override]
        with home.making:
            return super().__get__(home, owner)


SPARE_WORKERS = 2
"""Workers beyond one a core: while they read, decode or wait for each other's Python, every core still has a batch to
compute."""


class Home:
    """The database, the indexes, the model files and the networks of one home folder. Thread-safe.

    Raises InvalidSetting for what only the whole can tell to be wrong.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pack = _pack(settings)
        """The pack that new galleries are bound to."""
        self.making = threading.RLock()
        self._pipelines: dict[str, FacePipeline] = {}

    @_made_once
    def engine(self) -> Engine:
        return open_database(self.settings.database_url)

    @_made_once
    def store(self) -> Store:
        """The truth, its tables brought up to date."""
        migrate(self.engine)
        return Store(self.engine)

    @_made_once
    def indexes(self) -> Indexes:
        return Indexes(self.store, self.settings.indexes_folder, FaissIndex)

    @_made_once
    def files(self) -> ModelFiles:
        return ModelFiles(self.settings.models_folder)

    @property
    def cores(self) -> int:
        return self.settings.threads or usable_cores()

    def pipeline(self, pack: Pack, streams: int = 1) -> FacePipeline:
        """The pack's networks for `streams` callers at a time; one that answers single probes uses every core."""
        key = f"{pack.name}/{streams}"
        with self.making:
            if key not in self._pipelines:
                limits = Limits(self.settings.max_image_bytes, self.settings.max_image_pixels)
                threads = Threads(streams, max(1, self.cores // streams))
                self._pipelines[key] = FacePipeline(pack, self.files, Options(limits, threads, self.settings.precision))
            return self._pipelines[key]

    def pipeline_of(self, gallery: Gallery) -> FacePipeline:
        """Raises Conflict when this program's pack is not the one the gallery was made with."""
        return self.pipeline(pack_of(gallery))

    def enroller(self, gallery: Gallery) -> Enroller:
        """A stream a core, and workers enough to keep them all computing."""
        pipeline = self.pipeline(pack_of(gallery), streams=self.cores)
        return Enroller(
            self.store, pipeline, gallery, self.settings.max_image_bytes, workers=self.cores + SPARE_WORKERS
        )

    def close(self) -> None:
        """Writes down what the indexes have learned and lets the database go."""
        try:
            if "indexes" in self.__dict__:
                self.indexes.save()
        finally:
            if "engine" in self.__dict__:
                self.engine.dispose()


def pack_of(gallery: Gallery) -> Pack:
    """The pack that the gallery was made with. Raises Conflict or NotFound when this program does not have it."""
    pack = find_pack(gallery.model)
    check_pack(gallery, pack)
    return pack


def _pack(settings: Settings) -> Pack:
    try:
        return find_pack(settings.model)
    except NotFound as error:
        raise InvalidSetting(f"WHOSTHERE_MODEL: {error.message}") from error
