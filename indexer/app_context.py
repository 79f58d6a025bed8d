"""The objects that a process shares, each created from the settings when it is first used."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine

from indexer.enrollment.enroller import Enroller, check_pack
from indexer.enrollment.face_checks import FaceChecks
from indexer.enrollment.lookalikes import Lookalikes, lookalike_bound
from indexer.enrollment.own_faces import OwnFaces
from indexer.errors import Conflict, InvalidSetting, NotFound
from indexer.files import exposed_paths, make_private
from indexer.gallery.database import database_files, migrate, open_database
from indexer.gallery.store import Store
from indexer.models.catalogue import Catalogue
from indexer.models.liveness_catalogue import LivenessCatalogue
from indexer.models.liveness_packs import LivenessPack
from indexer.models.model_files import ModelFiles
from indexer.models.packs import Pack
from indexer.settings import Settings
from indexer.timing import Stopwatch
from indexer.types import Gallery, LivenessMode, Tier
from indexer.vectors.base import VectorEngine
from indexer.vectors.engines import FaissEngine
from indexer.vectors.index_registry import IndexRegistry
from indexer.vision import pack_check
from indexer.vision.decode import Limits, end_processes
from indexer.vision.liveness.base import LivenessCheck, LivenessModel
from indexer.vision.liveness.base import check_pack as check_liveness_pack
from indexer.vision.pipeline import FacePipeline, Options
from indexer.vision.runtime import Threads, usable_cores

log = logging.getLogger(__name__)

Made = TypeVar("Made")


class locked_property(cached_property[Made]):  # noqa: N801 (a decorator)
    """A cached property of AppContext that is computed once, under the context's lock.

    From Python 3.12 on, `functools.cached_property` lets each of several threads compute the value.
    """

    def __get__(self, context: AppContext, owner: type[Any] | None = None) -> Made:  # type: ignore[override]
        with context.lock:
            return super().__get__(context, owner)


SPARE_WORKERS = 2
"""Enrollment workers in addition to one for each core: while some read, decode or wait for Python's interpreter lock,
every core still has a batch to compute."""


class AppContext:
    """The database, the indexes, the model files and the networks of one data folder. Thread-safe.

    Raises:
        InvalidSetting: A setting is wrong in a way that only the data folder shows.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.lock = threading.RLock()
        self.stopwatch = Stopwatch()
        self._is_home_private = False
        self._vectors = _vectors(settings.vectors)
        self._pipelines: dict[tuple[str, str, int], FacePipeline] = {}
        self._liveness_models: dict[tuple[LivenessPack, int], LivenessModel] = {}
        if settings.model:
            try:
                self.packs.find(settings.model)
            except NotFound as error:
                raise InvalidSetting(f"WHOSTHERE_MODEL: {error.message}") from error
        if settings.liveness_model:
            try:
                self.liveness_packs.find(settings.liveness_model)
            except NotFound as error:
                raise InvalidSetting(f"WHOSTHERE_LIVENESS_MODEL: {error.message}") from error

    @locked_property
    def engine(self) -> Engine:
        return open_database(self.settings.database_url)

    @property
    def migrated_engine(self) -> Engine:
        """The database, after migrating its tables to the current version, in a home folder that is private."""
        if not self._is_home_private:
            self._make_home_private()
        migrate(self.engine)
        return self.engine

    def exposed_paths(self) -> Iterator[Path]:
        """Yields the data that others than the owner can open. The model files are no personal data."""
        yield from exposed_paths(self.settings.home, without=self.settings.models_folder)
        for path in database_files(self.engine):
            if self.settings.home not in path.parents:
                yield from exposed_paths(path, without=self.settings.models_folder)

    def _make_home_private(self) -> None:
        """Removes the permissions of others, which earlier versions left to the umask. Failures are logged."""
        self._is_home_private = True
        for path in list(self.exposed_paths()):
            try:
                make_private(path)
                log.warning("others could open %s; now only its owner can", path)
            except OSError as error:
                log.warning("others can open %s, and that cannot be changed: %s", path, error.strerror)

    @locked_property
    def store(self) -> Store:
        """The galleries, identities and faces: the source of truth."""
        return Store(self.migrated_engine)

    @locked_property
    def indexes(self) -> IndexRegistry:
        return IndexRegistry(self.store, self.settings.indexes_folder, self._vectors)

    @locked_property
    def files(self) -> ModelFiles:
        return ModelFiles(self.settings.models_folder)

    @locked_property
    def packs(self) -> Catalogue:
        return Catalogue(self.files, pack_check.check_pack)

    @locked_property
    def liveness_packs(self) -> LivenessCatalogue:
        return LivenessCatalogue(self.files, check_liveness_pack)

    @property
    def pack(self) -> Pack:
        """The pack for new galleries: the one in the settings, otherwise the best installed one.

        Raises ModelUnavailable.
        """
        return self.packs.find_installed(self.settings.model) if self.settings.model else self.packs.best_installed()

    def usable(self, name: str | None) -> Pack:
        """Returns the pack of that name, or the one for new galleries if `name` is empty.

        Raises:
            ModelUnavailable: The pack is not installed.
            NotFound: There is no pack of that name.
        """
        return self.packs.find_installed(name) if name else self.pack

    @property
    def cores(self) -> int:
        """Number of cores that the networks use."""
        return self.settings.threads or usable_cores()

    def pipeline(self, pack: Pack, streams: int = 1) -> FacePipeline:
        """Returns the pack's networks for `streams` concurrent callers, which share the cores."""
        key = pack.name, pack.fingerprint, streams
        with self.lock:
            if key not in self._pipelines:
                limits = Limits(self.settings.max_image_bytes, self.settings.max_image_pixels)
                options = Options(
                    limits,
                    self._threads(streams),
                    self.settings.device,
                    self.settings.precision,
                    self.settings.thorough,
                    self.settings.max_faces,
                    self.stopwatch.stage,
                )
                self._pipelines[key] = FacePipeline(pack, self.files, options)
            return self._pipelines[key]

    def pipeline_of(self, gallery: Gallery) -> FacePipeline:
        """Returns the pipeline of the gallery's pack for single images. Raises as `pack_of` does."""
        return self.pipeline(self.pack_of(gallery))

    def _threads(self, streams: int) -> Threads:
        return Threads(streams, max(1, self.cores // streams))

    @property
    def liveness_pack(self) -> LivenessPack:
        """The liveness pack of the settings, otherwise the first installed one, with the threshold of the settings.

        Raises:
            ModelUnavailable: It is not installed, or none is.
            NotFound: There is no liveness pack of the name in the settings.
        """
        pack = self.liveness_packs.find_installed(self.settings.liveness_model)
        threshold = self.settings.liveness_threshold
        return pack if threshold is None else replace(pack, threshold=threshold)

    def search_liveness(self, wanted: LivenessMode | None = None) -> LivenessMode:
        """Returns what is done about presentation attacks in a search: what the setting demands, or more if it is
        `wanted`.

        Without the setting and without a wish, liveness is reported if a liveness pack can be used.
        """
        demanded = self.settings.liveness
        if demanded is None and wanted is None:
            return LivenessMode.REPORT if self._has_liveness_pack() else LivenessMode.OFF
        return max((mode for mode in (demanded, wanted) if mode is not None), key=list(LivenessMode).index)

    def enrollment_liveness(self, wanted: LivenessMode | None = None) -> LivenessMode:
        """Returns the same for an enrollment, which may also demand less than the setting: photos of an archive are
        often not live, and a caller with permission to enroll is trusted to choose."""
        return wanted or self.settings.liveness or LivenessMode.OFF

    def _has_liveness_pack(self) -> bool:
        name, packs = self.settings.liveness_model, self.liveness_packs
        return packs.problem(name) is None if name else packs.first_usable() is not None

    def liveness_check(self, mode: LivenessMode, streams: int = 1) -> LivenessCheck | None:
        """Returns the check that the mode needs, for `streams` concurrent callers; None if it needs none.

        Raises ModelUnavailable or NotFound as `liveness_pack` does.
        """
        if mode is LivenessMode.OFF:
            return None
        key = self.liveness_pack, streams
        with self.lock:
            if key not in self._liveness_models:
                self._liveness_models[key] = LivenessModel(key[0], self.files, self._threads(streams))
            return LivenessCheck(self._liveness_models[key], mode is LivenessMode.REQUIRE)

    def open_gallery(self, name: str, model: str | None = None) -> Gallery:
        """Returns the gallery of that name, after creating it with the pack `model` (or the default one) if needed.

        Raises:
            Conflict: The gallery is bound to another pack than `model`.
            ModelUnavailable: The pack is not installed.
            NotFound: There is no pack of that name.
        """
        wanted = self.packs.find(model) if model else None
        try:
            gallery = self.store.galleries.get(name)
        except NotFound:
            pack = self.usable(model)
            self.pipeline(pack, streams=self.cores).load()  # no gallery is created if its pack cannot be loaded
            try:
                return self.store.galleries.create(name, pack.name, pack.fingerprint, pack.dim)
            except Conflict:  # another process just created it
                gallery = self.store.galleries.get(name)
        if wanted is not None and gallery.model != wanted.name:
            raise Conflict(
                f"gallery {name!r} is bound to model pack {gallery.model!r}, but {wanted.name!r} was requested; "
                "a gallery never mixes packs",
                code="model_mismatch",
            )
        return gallery

    def pack_of(self, gallery: Gallery) -> Pack:
        """Returns the pack that the gallery is bound to.

        Raises Conflict, ModelUnavailable or NotFound if that version of the pack is not available.
        """
        pack = self.packs.find(gallery.model)
        check_pack(gallery, pack)
        return pack

    def own_bound(self, gallery: Gallery) -> float:
        """Returns the cosine from which faces of one identity agree; -1, the least, if the gallery's pack is
        unknown."""
        try:
            return self.packs.find(gallery.model).same_threshold
        except NotFound:
            return -1.0

    def face_checks(self, gallery: Gallery, photos: int = 0) -> FaceChecks:
        """Returns the checks of new faces against the gallery, for up to `photos` photos and one run.

        Raises:
            Conflict, ModelUnavailable, NotFound: As `pack_of` does.
        """
        mode, pack = self.settings.lookalikes, self.pack_of(gallery)
        own = OwnFaces(self.store, gallery, pack.same_threshold, only_guesses=mode == "off")
        if mode == "off":
            return FaceChecks(None, own, hold=False)
        index, hold = self.indexes.get(gallery), mode == "hold"
        bound = lookalike_bound(pack, max(len(index.catch_up()), photos))
        return FaceChecks(Lookalikes(self.store, gallery, index, bound, hold), own, hold)

    def enroller(self, gallery: Gallery, photos: int = 0, liveness: LivenessMode | None = None) -> Enroller:
        """Returns an enroller of `photos` photos that keeps every core computing."""
        pipeline = self.pipeline(self.pack_of(gallery), streams=self.cores)
        return Enroller(
            self.store,
            pipeline,
            gallery,
            self.settings.max_image_bytes,
            workers=self.cores + SPARE_WORKERS,
            keep_crops=self.settings.keep_crops,
            checks=self.face_checks(gallery, photos),
            liveness=self.liveness_check(self.enrollment_liveness(liveness), self.cores),
        )

    def close(self) -> None:
        """Saves the indexes, closes the connections to the database, and ends idle processes that decode."""
        try:
            if "indexes" in self.__dict__:
                self.indexes.close()
        finally:
            end_processes()
            self._vectors.close()
            if "engine" in self.__dict__:
                self.engine.dispose()


def _vectors(wanted: str) -> VectorEngine:
    if wanted.startswith("milvus"):
        from indexer.vectors.milvus.index import MilvusEngine

        return MilvusEngine(wanted)
    try:
        return FaissEngine(Tier(wanted))
    except ValueError:  # the value is not repeated: a mistyped URL may contain a password
        raise InvalidSetting(f"WHOSTHERE_VECTORS: expected one of {', '.join(Tier)} or milvus://HOST:PORT") from None
