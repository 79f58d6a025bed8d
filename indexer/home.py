"""Everything one process needs, opened from its settings when it is first asked for: the one place that owns it."""

from __future__ import annotations

import threading
from functools import cached_property

from sqlalchemy import Engine

from indexer.enrollment import Enroller, check_pack
from indexer.errors import InvalidSetting, NotFound
from indexer.gallery.database import migrate, open_database
from indexer.gallery.store import Store
from indexer.settings import Settings
from indexer.types import Gallery
from indexer.vectors.follow import Indexes
from indexer.vision.decode import Limits
from indexer.vision.files import ModelFiles
from indexer.vision.packs import Pack, find_pack
from indexer.vision.pipeline import FacePipeline, Options
from indexer.vision.runtime import Threads, usable_cores


class Home:
    """The database, the indexes, the model files and the networks of one home folder. Thread-safe.

    Raises InvalidSetting for what only the whole can tell to be wrong.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.pack = _pack(settings)
        """The pack that new galleries are bound to."""
        self._lock = threading.Lock()
        self._pipelines: dict[str, FacePipeline] = {}

    @cached_property
    def engine(self) -> Engine:
        return open_database(self.settings.database_url)

    @cached_property
    def store(self) -> Store:
        """The truth, its tables brought up to date."""
        migrate(self.engine)
        return Store(self.engine)

    @cached_property
    def indexes(self) -> Indexes:
        return Indexes(self.store, self.settings.indexes_folder)

    @cached_property
    def files(self) -> ModelFiles:
        return ModelFiles(self.settings.models_folder)

    @property
    def cores(self) -> int:
        return self.settings.threads or usable_cores()

    def pipeline(self, pack: Pack, streams: int = 1) -> FacePipeline:
        """The pack's networks for `streams` callers at a time; one that answers single probes uses every core."""
        key = f"{pack.name}/{streams}"
        with self._lock:
            if key not in self._pipelines:
                limits = Limits(self.settings.max_image_bytes, self.settings.max_image_pixels)
                threads = Threads(streams, max(1, self.cores // streams))
                self._pipelines[key] = FacePipeline(pack, self.files, Options(limits, threads, self.settings.precision))
            return self._pipelines[key]

    def pipeline_of(self, gallery: Gallery) -> FacePipeline:
        """Raises Conflict when this program's pack is not the one the gallery was made with."""
        pack = find_pack(gallery.model)
        check_pack(gallery, pack)
        return self.pipeline(pack)

    def enroller(self, gallery: Gallery) -> Enroller:
        """One worker a core, each with a stream of its own: no core waits for another's photo."""
        pack = find_pack(gallery.model)
        check_pack(gallery, pack)
        pipeline = self.pipeline(pack, streams=self.cores)
        return Enroller(self.store, pipeline, gallery, self.settings.max_image_bytes, workers=self.cores)

    def close(self) -> None:
        """Writes down what the indexes have learned and lets the database go."""
        if "indexes" in self.__dict__:
            self.indexes.save()
        if "engine" in self.__dict__:
            self.engine.dispose()


def _pack(settings: Settings) -> Pack:
    try:
        return find_pack(settings.model)
    except NotFound as error:
        raise InvalidSetting(f"WHOSTHERE_MODEL: {error.message}") from error
