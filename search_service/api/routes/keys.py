"""/v1/keys"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response

from search_service.api.models.keys import KeyList, KeyPayload, MadeKey, NewKey
from search_service.api.pages import BY_NAME, Paged
from search_service.api.permissions import requires
from search_service.api.routes.openapi import failures
from search_service.api.state import Service
from search_service.api.threads import writes
from search_service.serializers import key_object
from search_service.store.api_keys import Scope, daily_budget

# A key that creates keys could create one that opens more than it does itself.
router = APIRouter(prefix="/v1/keys", tags=["keys"], dependencies=[requires(Scope.ADMIN, every_gallery=True)])


@router.get("", response_model=KeyList)
def list_keys(service: Service, page: Paged) -> Any:
    """Lists all keys by name, also revoked ones."""
    found = service.context.keys.list(BY_NAME.decode(page.cursor), page.wanted)
    return page.answer("keys", found, key_object, BY_NAME, lambda key: key.name)


@router.post("", status_code=201, response_model=MadeKey, responses=failures(409, 413))
@writes
def create_key(service: Service, new: NewKey, response: Response) -> Any:
    """Creates a key. From the first key on, every request needs one."""
    budget = daily_budget(new.scopes, new.daily_probes, service.context.settings.daily_probes)
    key, text = service.context.keys.create(new.name, new.scopes, new.galleries, new.expires_at, new.per_minute, budget)
    response.headers["Cache-Control"] = "no-store"  # also keeps it out of the answers stored for an Idempotency-Key
    return key_object(key) | {"key": text}


@router.delete("/{id}", response_model=KeyPayload)
@writes
def revoke_key(service: Service, key_id: Annotated[str, Path(alias="id")]) -> Any:
    """Revokes a key, at once and in every worker. It stays in the list."""
    return key_object(service.context.keys.revoke(key_id))
