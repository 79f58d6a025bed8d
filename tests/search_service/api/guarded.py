"""A service with API keys of every kind."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from indexer.clock import now
from indexer.models.packs import SFACE
from indexer.settings import read_settings
from search_service.service_context import ServiceContext
from search_service.store.api_keys import Scope
from tests.search_service.api.conftest import new_home
from tests.search_service.api.serving import Running, running
from tests.variants import SETTINGS


@dataclass(frozen=True)
class Guarded:
    """A service with keys, a gallery `staff` and another one."""

    service: Running
    keys: Mapping[str, str]
    client: httpx.Client

    def request(self, method: str, path: str, key: str | None, gallery: str = "none", **options: Any) -> httpx.Response:
        """Sends an empty object, with which nothing can be created."""
        filled = re.sub(r"\{(\w+)\}", lambda place: gallery if place[1] == "gallery" else "1", path)
        headers = {} if key is None else {"Authorization": f"Bearer {self.keys.get(key, key)}"}
        return self.client.request(method, filled, headers=headers, **{"json": {}} | options)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, models_folder: Path) -> Iterator[Guarded]:
    folder = new_home(tmp_path_factory.mktemp("guarded"), models_folder)
    context = ServiceContext(read_settings(SETTINGS, home=folder))
    for name in ("staff", "other"):
        context.store.galleries.create(name, SFACE.name, SFACE.fingerprint, SFACE.dim)
    with running(context) as service, service.client() as client:
        yield Guarded(service, create_keys(context), client)


def create_keys(context: ServiceContext) -> dict[str, str]:
    """Creates a key of each kind and returns their texts by a name for the kind."""
    created = {str(scope): context.keys.create(str(scope), [scope]) for scope in Scope}
    for scope in Scope:
        for gallery in ("staff", "none"):
            created[f"{scope} {gallery}"] = context.keys.create(f"{scope} {gallery}", [scope], [gallery])
    created["revoked"] = context.keys.create("revoked", [Scope.ADMIN])
    context.keys.revoke(created["revoked"][0].id)
    created["expired"] = context.keys.create("expired", [Scope.ADMIN], expires_at=now() + timedelta(hours=1))
    with context.engine.begin() as connection:
        connection.execute(text("UPDATE keys SET expires_at = created_at WHERE name = 'expired'"))
    texts = {name: shown for name, (_, shown) in created.items()}
    texts["wrong secret"] = texts["admin"][:20] + texts["search"][20:]
    texts["unknown"] = f"wt_{'0' * 16}_{'A' * 43}"
    texts["malformed"] = "admin"
    return texts
