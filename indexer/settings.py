"""Typed settings, read once from WHOSTHERE_... environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from enum import StrEnum
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal

import platformdirs
from pydantic import Field, ValidationError, computed_field, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from indexer.errors import InvalidSetting
from indexer.types import Device, LivenessMode, Precision

PREFIX = "WHOSTHERE_"

PATH_PREFIX = r"^(/[A-Za-z0-9._~-]+)*$"
"""A path without a slash at its end, of characters that need no encoding; or nothing."""

ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[A-Za-z0-9._~:\[\]-]+")
"""As browsers send it: scheme, host and port (RFC 6454), without a path."""

DEFAULT_PORT = re.compile(r"^(https://.*):443$|^(http://.*):80$")
"""A port that browsers leave out."""


class LogFormat(StrEnum):
    AUTO = "auto"
    """Text on a terminal, JSON elsewhere."""
    TEXT = "text"
    JSON = "json"


class Settings(BaseSettings):
    """Every setting; the table in `docs/settings.md` repeats these descriptions."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    home: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("whosthere", appauthor=False)),
        description="Data folder: the SQLite database, index snapshots and model files.",
    )
    database_url: str = Field(
        default="",
        repr=False,  # it may hold a password
        description="`sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST/NAME`, with `%` and `?` written as `%25` "
        "and `%3F`.",
    )
    model: str = Field(
        default="",
        description="Model pack of new galleries. Default: the best installed one (`ir50`, then `buffalo_l`, then "
        "`sface`).",
    )
    device: Device = Field(
        default=Device.AUTO,
        description="Where the networks run: `cpu`, `cuda`, or `auto`: a GPU if the pack can use one.",
    )
    precision: Precision = Field(
        default=Precision.NATIVE,
        description="Arithmetic of the embedder. `native`: bfloat16 on CPUs that have it (3 times as fast, mean "
        "cosine to float32 0.9999), half precision on GPUs. `float32`: the same numbers on every CPU. `int8`: the "
        "network that `models quantize` wrote.",
    )
    thorough: bool = Field(
        default=True,
        description="Embeds two crops of each face with packs that benefit (`sface`): twice the embedder's work, "
        "FNIR at FPIR 3 % lower by a tenth. Galleries may mix both.",
    )
    keep_crops: bool = Field(
        default=False,
        description="Stores the aligned crop of each enrolled face (15 kB), a photo of a person, so that `gallery "
        "reembed` works without the originals.",
    )
    vectors: str = Field(
        default="auto",
        repr=False,  # it may hold a password
        description="How faces are searched. `exact` scores every face; `compressed` scans codes of 32 bytes and "
        "rescores the best; `gpu` uses NVIDIA GPUs; `milvus://HOST:PORT` a Milvus cluster; `auto` is exact for small "
        "galleries, compressed for large ones.",
    )
    threads: int = Field(default=0, ge=0, le=1024, description="Threads for the networks; 0: all cores of the process.")
    max_image_bytes: int = Field(
        default=32 * 2**20, ge=1024, description="Larger images are rejected as `image_too_large`."
    )
    max_image_pixels: int = Field(
        default=100_000_000, ge=10_000, description="Images with more pixels are rejected before they are decoded."
    )
    max_faces: int = Field(
        default=100,
        ge=1,
        le=10_000,
        description="Faces of an image that are searched: the largest ones. The others are counted in "
        "`faces_not_searched`.",
    )
    lookalikes: Literal["hold", "report", "off"] = Field(
        default="hold",
        description="What happens to a face that looks like another identity, or unlike its own: `hold` rejects the "
        "photo, `report` enrolls it with a message, `off` skips the check.",
    )
    liveness: LivenessMode | None = Field(
        default=None,
        description="What is done about photos of photos: `off`, `report` or `require`. Default: `report` in searches "
        "once a liveness pack is installed, otherwise `off`.",
    )
    liveness_model: str = Field(default="", description="Liveness pack. Default: the first installed one.")
    liveness_threshold: float | None = Field(
        default=None, ge=0, le=1, description="Score from which a face is live. Default: that of the pack."
    )
    fpir: float = Field(
        default=0.01,
        ge=1e-9,
        lt=1,
        description="FPIR of searches that set neither `fpir` nor `threshold`: the share of non-mated probes that "
        "may match.",
    )
    daily_probes: int = Field(
        default=20_000,
        ge=0,
        le=1_000_000_000,
        description="Different probes a day of new keys with the scope `search` or `investigate`; 0: any number.",
    )
    cooldown_seconds: float = Field(
        default=60.0,
        ge=0,
        le=86_400,
        description="Seconds in which sightings of a person at one device are one event, unless the request sets "
        "`cooldown`.",
    )
    host: str = Field(default="127.0.0.1", description="Address that `serve` listens on.")
    open: bool = Field(
        default=False,
        description="Answers other machines without any API key, behind an authenticating gateway.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="Port that `serve` listens on; 0 picks a free one.")
    workers: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Number of `serve` processes, each with its own networks and indexes.",
    )
    log_format: LogFormat = Field(
        default=LogFormat.AUTO,
        description="Log format of `serve`: `text`, `json` lines, or `auto`: text on a terminal only.",
    )
    max_body_bytes: int = Field(
        default=64 * 2**20,
        ge=1024,
        description="Larger request bodies are answered with 413. Bodies without photos are limited to 1 MiB.",
    )
    max_batch: int = Field(default=16, ge=1, le=256, description="Images computed in one batch, at most.")
    max_waiting: int = Field(
        default=256, ge=1, description="Images that may wait for the networks before requests get 429."
    )
    max_waiting_bytes: int = Field(
        default=512 * 2**20,
        ge=1024,
        description="Bytes of waiting images, and of unanswered request bodies, before requests get 429.",
    )
    max_archive_bytes: int = Field(
        default=2 * 2**30,
        ge=1024,
        description="Largest archive of a bulk enrollment: about a thousand photos from phones.",
    )
    max_jobs: int = Field(
        default=16,
        ge=1,
        description="Bulk enrollments that may wait or run before new ones get 429.",
    )
    job_days: int = Field(
        default=30,
        ge=0,
        le=36_500,
        description="Days for which reports of bulk enrollments are kept.",
    )
    max_connections: int = Field(
        default=512,
        ge=1,
        description="Connections of each worker. Beyond, new ones take the place of those without a request.",
    )
    max_connections_per_address: int = Field(
        default=256, ge=1, description="Those of one address, except `WHOSTHERE_TRUSTED_PROXIES`."
    )
    allowed_hosts: str = Field(
        default="",
        description="Comma-separated host names of `serve`, such as `faces.example.com` behind a reverse proxy. "
        "Loopback names are always allowed; without this setting only those if `serve` listens on loopback, otherwise "
        "any.",
    )
    allowed_origins: str = Field(
        default="",
        description="Comma-separated origins of web pages that may call the API, such as "
        "`https://intranet.example.com`.",
    )
    root_path: str = Field(
        default="",
        pattern=PATH_PREFIX,
        description="Path below which a reverse proxy serves the API, such as `/faces`.",
    )
    trusted_proxies: str = Field(
        default="127.0.0.1,::1",
        description="Addresses and networks of proxies whose `X-Forwarded-Prefix` replaces `WHOSTHERE_ROOT_PATH`, and "
        "whose connections are those of many callers.",
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Uses only the values that `read_settings` passes."""
        return (init_settings,)

    @field_validator("home", mode="before")
    @classmethod
    def _expanded(cls, value: object) -> object:
        if value == "":
            raise ValueError("expected a folder, got an empty value")
        return Path(value).expanduser() if isinstance(value, str | Path) else value

    @field_validator("allowed_origins")
    @classmethod
    def _origins(cls, value: str) -> str:
        origins = _parts(value)
        for origin in origins:
            if not ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is not an origin, such as https://intranet.example.com")
        return ",".join(DEFAULT_PORT.sub(r"\1\2", origin.lower()) for origin in origins)

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: str) -> str:
        return ",".join(str(ip_network(part, strict=False)) for part in _parts(value))

    def model_post_init(self, _: Any) -> None:
        if not self.database_url:
            path = str(self.home / "whosthere.db")
            for sign in "%?#":  # have a meaning in URLs
                path = path.replace(sign, f"%{ord(sign):02X}")
            object.__setattr__(self, "database_url", f"sqlite:///{path}")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def models_folder(self) -> Path:
        return self.home / "models"

    @computed_field  # type: ignore[prop-decorator]
    @property
    def indexes_folder(self) -> Path:
        return self.home / "indexes"


def _parts(value: str) -> list[str]:
    """Returns the values of a comma-separated setting."""
    return [part for part in map(str.strip, value.split(",")) if part]


def read_settings(environment: Mapping[str, str] | None = None, **given: object) -> Settings:
    """Returns the settings of this process.

    Args:
        environment: Variables, by default those of the process; only names with PREFIX are used.
        given: Values from the command line, which take precedence; None counts as not given.

    Raises:
        InvalidSetting: A variable is unknown or has a bad value; the message names it.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, object] = {}
    for name, value in environment.items():
        if not name.startswith(PREFIX):
            continue
        key = name.removeprefix(PREFIX).lower()
        if key not in Settings.model_fields:
            close = get_close_matches(key, Settings.model_fields, 1)
            hint = f"; did you mean {PREFIX}{close[0].upper()}?" if close else ""
            raise InvalidSetting(f"there is no setting {name}{hint}")
        values[key] = value
    values |= {key: value for key, value in given.items() if value is not None}
    try:
        return Settings(**values)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + "_".join(str(part) for part in first["loc"]).upper()
        raise InvalidSetting(f"{name} is {first.get('input')!r}: {first['msg']}") from error
