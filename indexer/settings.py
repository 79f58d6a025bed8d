"""Typed settings, read once at the edges from WHOSTHERE_... variables and handed on as values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import platformdirs
from pydantic import Field, ValidationError, computed_field, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from indexer.errors import InvalidSetting
from indexer.types import Device, Precision

PREFIX = "WHOSTHERE_"


class LogFormat(StrEnum):
    AUTO = "auto"
    """Text on a terminal, JSON elsewhere."""
    TEXT = "text"
    JSON = "json"


class Settings(BaseSettings):
    """Every setting; `docs/settings.md` is written from these descriptions."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    home: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("whosthere", appauthor=False)),
        description="Folder of everything that is kept: the SQLite database, index snapshots and models.",
    )
    database_url: str = Field(
        default="",
        repr=False,  # it may hold a password
        description="Where the truth lives: `sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST/NAME`, "
        "`%` and `?` written as `%25` and `%3F`. Without it, `whosthere.db` in the home folder.",
    )
    model: str = Field(
        default="",
        description="Model pack that new galleries are bound to. Without it, the best that is installed: `ir50`, else "
        "`buffalo_l`, else `sface`.",
    )
    device: Device = Field(
        default=Device.AUTO,
        description="What the networks run on: `cuda`, `cpu`, or `auto`, which takes a GPU that the pack can use where "
        "there is one.",
    )
    precision: Precision = Field(
        default=Precision.NATIVE,
        description="`native` lets the embedder compute in bfloat16 where the CPU is made for it (3 times as fast, "
        "mean cosine over 0.9999 to float32) and in half precision on a GPU; `float32` computes the same numbers on "
        "every CPU; `int8` takes what `models quantize` made.",
    )
    thorough: bool = Field(
        default=True,
        description="Whether packs that gain by it (`sface`) embed two crops of each face, a little nearer and wider: "
        "twice the embedder's work, FNIR at FPIR 3 % lower by a tenth. Embeddings of both kinds may be compared.",
    )
    keep_crops: bool = Field(
        default=False,
        description="Whether enrolling keeps the aligned crop of each face in the database, 15 kB each, so that "
        "`gallery reembed` can move the gallery to another pack without the photos. A crop is a photo of a person; "
        "without it, only numbers are kept.",
    )
    vectors: str = Field(
        default="auto",
        repr=False,  # it may hold a password
        description="How faces are searched: `exact` scores every face, `compressed` scans them in 32 bytes each and "
        "scores the best, `gpu` does it on NVIDIA GPUs, `milvus://HOST:PORT` in a Milvus cluster; `auto` is exact "
        "while that is fast and compressed beyond.",
    )
    threads: int = Field(
        default=0, ge=0, le=1024, description="Threads the networks may use; 0 takes every core this process has."
    )
    max_image_bytes: int = Field(
        default=32 * 2**20, ge=1024, description="Images with more bytes are refused as `image_too_large`."
    )
    max_image_pixels: int = Field(
        default=100_000_000, ge=10_000, description="Images with more pixels are refused before they are decoded."
    )
    lookalikes: Literal["hold", "report", "off"] = Field(
        default="hold",
        description="What becomes of a new person who looks like somebody else in the gallery: `hold` rejects the "
        "photo as `looks_like_another_identity`, `report` enrols it and says so, `off` does not look.",
    )
    fpir: float = Field(
        default=0.01,
        ge=1e-9,
        lt=1,
        description="False positive identification rate wanted where a search names neither `fpir` nor `threshold`: "
        "the share of strangers that may be answered with a match.",
    )
    cooldown_seconds: float = Field(
        default=60.0,
        ge=0,
        le=86_400,
        description="Seconds in which a person is recorded once at a device, where a search with `record` does not say "
        "`cooldown`: long enough for whoever stands in front of a camera or passes twice through one door, short "
        "enough for who forgot something and comes back.",
    )
    host: str = Field(default="127.0.0.1", description="Address that `serve` listens on.")
    open: bool = Field(
        default=False,
        description="Whether a service without any API key may be reached from elsewhere and answers everybody who "
        "does: for one behind something that asks who is there. From the first key on, keys are asked for all the "
        "same.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="Port that `serve` listens on; 0 takes a free one.")
    workers: int = Field(
        default=1,
        ge=1,
        le=256,
        description="Processes that `serve` answers with, each with its own networks and indexes; they share the "
        "cores, and one uses them all.",
    )
    log_format: LogFormat = Field(
        default=LogFormat.AUTO,
        description="What `serve` logs: `text`, `json` (one object a line, one line a request), or `auto`: text on a "
        "terminal, else JSON.",
    )
    max_body_bytes: int = Field(
        default=64 * 2**20,
        ge=1024,
        description="Requests with a larger body are refused with 413; those that carry no photo from 1 MiB on.",
    )
    max_batch: int = Field(
        default=16, ge=1, le=256, description="How many probes that arrive together are computed in one batch."
    )
    max_waiting: int = Field(
        default=256, ge=1, description="How many images may wait for the networks before requests get 429."
    )
    max_waiting_bytes: int = Field(
        default=512 * 2**20,
        ge=1024,
        description="How many bytes the images that wait or are computed, and the bodies of requests not answered yet, "
        "may each have together before requests get 429: a hundred photos of a phone, not 256 of the largest images "
        "allowed, which are 8 GiB.",
    )
    max_archive_bytes: int = Field(
        default=2 * 2**30,
        ge=1024,
        description="How many bytes the body of a bulk enrolment may have: a thousand photos of 2 MB, as phones "
        "take them. It is written to the home folder while it comes, and into the database when it is whole; more "
        "photos are better sent as several jobs.",
    )
    max_jobs: int = Field(
        default=16,
        ge=1,
        description="How many bulk enrolments may wait or run before others get 429: their archives lie in the "
        "database until they have ended.",
    )
    job_days: int = Field(
        default=30,
        ge=0,
        le=36_500,
        description="Days for which it is told what became of each image of a bulk enrolment, counted from its end.",
    )
    allowed_hosts: str = Field(
        default="",
        description="Names, separated by commas, that callers may reach `serve` by, as `faces.example.com` behind a "
        "reverse proxy (which must hand on `Host` as it came); `localhost` and loopback addresses always may. Without "
        "it, only those where `serve` listens on loopback, and any name elsewhere.",
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What `read_settings` gives, and nothing else."""
        return (init_settings,)

    @field_validator("home", mode="before")
    @classmethod
    def _expanded(cls, value: object) -> object:
        if value == "":
            raise ValueError("expected a folder, got nothing")
        return Path(value).expanduser() if isinstance(value, str | Path) else value

    def model_post_init(self, _: Any) -> None:
        if not self.database_url:
            path = str(self.home / "whosthere.db")
            for sign in "%?#":  # in a URL they mean something else
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


def read_settings(environment: Mapping[str, str] | None = None, **given: object) -> Settings:
    """The settings of this process; `given` (from the command line) go before the environment.

    Raises InvalidSetting, which names the variable, for an unknown name or a bad value.
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
