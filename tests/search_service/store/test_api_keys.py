"""Creating, authenticating, listing and revoking API keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from hashlib import sha256
from typing import Any

import pytest
from sqlalchemy import text

from indexer.clock import now
from indexer.errors import Conflict, InvalidRequest, NotFound, StorageUnavailable
from indexer.gallery.database import open_database
from search_service.store.api_keys import KEY_PATTERN, MAX_GALLERIES, MAX_PER_MINUTE, ApiKeyRepository, Scope
from tests.indexer.gallery.together import in_threads
from tests.postgres import Database


def test_created_key_can_be_read(keys: ApiKeyRepository) -> None:
    expires = datetime(2101, 1, 1, 12, tzinfo=timezone(timedelta(hours=1)))
    before = now()
    key, key_text = keys.create("Nord-Tür", [Scope.ENROLL, Scope.SEARCH], ["b", "a", "b"], expires, 60)
    assert key.name == "Nord-Tür"
    assert key.scopes == {Scope.ENROLL, Scope.SEARCH}
    assert key.galleries == frozenset({"a", "b"})
    assert (key.expires_at, key.per_minute, key.revoked_at) == (expires, 60, None)
    assert before <= key.created_at <= now()
    assert key.id in key_text
    assert keys.authenticate(key_text) == key == keys.get(key.id)
    assert list(keys.list()) == [key]


def test_key_without_limits_has_none(keys: ApiKeyRepository) -> None:
    key, _ = keys.create("all", [Scope.SEARCH])
    assert (key.galleries, key.expires_at, key.per_minute) == (None, None, None)
    assert key.allows_gallery("any")
    assert not key.is_expired(datetime.max.replace(tzinfo=UTC))


def test_secret_is_long_and_not_stored(keys: ApiKeyRepository, database: Database) -> None:
    key, key_text = keys.create("door", [Scope.SEARCH])
    parts = KEY_PATTERN.fullmatch(key_text)
    assert parts is not None
    secret = parts[2]
    engine = open_database(database.url)
    with engine.connect() as connection:
        row = connection.execute(text("SELECT * FROM keys")).one()
    engine.dispose()
    assert secret not in str(row)
    assert row.secret_sha256 == sha256(secret.encode()).hexdigest()
    assert secret not in repr(key)
    others = {keys.create(f"door-{n}", [Scope.SEARCH])[1] for n in range(20)}
    assert len({other[-43:] for other in others} | {secret}) == 21
    assert len({other[3:19] for other in others} | {key.id}) == 21


def test_invalid_text_is_not_authenticated(keys: ApiKeyRepository) -> None:
    key, key_text = keys.create("door", [Scope.SEARCH])
    _, other = keys.create("other", [Scope.SEARCH])
    swapped = f"wt_{key.id}_{other[-43:]}"
    unknown = f"wt_{'0' * 16}_{key_text[-43:]}"
    last = "A" if key_text[-1] != "A" else "B"
    for wrong in (
        swapped,
        unknown,
        key_text[:-1] + last,
        key_text[:-1],
        key_text + "A",
        key_text + "\n",
        f" {key_text}",
        key_text.upper(),
        key_text.removeprefix("wt_"),
        key.id,
        "",
        "wt__",
        "\0",
        "ü" * 64,
        "x" * 100_000,
    ):
        assert keys.authenticate(wrong) is None, wrong
    assert keys.authenticate(key_text) == key


def test_unknown_id_is_compared_in_constant_time(keys: ApiKeyRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of the answer does not reveal whether an id exists."""
    _, key_text = keys.create("door", [Scope.SEARCH])
    compared: list[tuple[int, int]] = []

    def compare(a: str, b: str) -> bool:
        compared.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr("search_service.store.api_keys.hmac.compare_digest", compare)
    keys.authenticate(key_text)
    keys.authenticate(f"wt_{'0' * 16}_{key_text[-43:]}")
    assert compared == [(64, 64), (64, 64)]


def test_scopes_include_lower_scopes(keys: ApiKeyRepository) -> None:
    created = [keys.create(str(scope), [scope])[0] for scope in Scope]
    assert list(Scope) == ["search", "investigate", "enroll", "admin"]
    assert [[key.allows(scope) for scope in Scope] for key in created] == [
        [True, False, False, False],
        [True, True, False, False],
        [True, True, True, False],
        [True, True, True, True],
    ]


def test_limited_key_allows_its_galleries(keys: ApiKeyRepository) -> None:
    key, _ = keys.create("door", [Scope.SEARCH], ["staff", "東京"])
    assert key.allows_gallery("staff")
    assert key.allows_gallery("東京")
    assert not any(map(key.allows_gallery, ("Staff", "staff ", "", "other")))


def test_revoked_key_stays_listed(keys: ApiKeyRepository, database: Database) -> None:
    key, key_text = keys.create("door", [Scope.SEARCH])
    engine = open_database(database.url)
    revoked = ApiKeyRepository(engine).revoke(key.id)  # by another process
    engine.dispose()
    assert revoked.revoked_at is not None
    assert key.created_at <= revoked.revoked_at <= now()
    assert keys.revoke(key.id) == revoked
    assert keys.authenticate(key_text) == revoked == keys.get(key.id)
    assert list(keys.list()) == [revoked]


@pytest.mark.parametrize("key_id", ["0" * 16, "", "x\0y", "\ud800", "x" * 1000])
def test_unknown_key_id_is_not_found(keys: ApiKeyRepository, key_id: str) -> None:
    for call in (keys.get, keys.revoke):
        with pytest.raises(NotFound) as caught:
            call(key_id)
        assert caught.value.code == "key_not_found"


def test_has_any_counts_revoked_and_expired_keys(keys: ApiKeyRepository) -> None:
    assert not keys.has_any()
    key, _ = keys.create("door", [Scope.SEARCH])
    assert keys.has_any()
    keys.revoke(key.id)
    assert keys.has_any()


def test_key_names_are_unique(keys: ApiKeyRepository) -> None:
    key, _ = keys.create("door", [Scope.SEARCH])
    keys.revoke(key.id)
    with pytest.raises(Conflict, match="'door'") as caught:
        keys.create("door", [Scope.ADMIN])
    assert caught.value.code == "key_exists"
    assert len(keys.list()) == 1


def test_one_of_several_concurrent_keys_gets_the_name(keys: ApiKeyRepository) -> None:
    def make() -> str:
        try:
            return keys.create("door", [Scope.SEARCH])[1]
        except Conflict:
            return ""

    (key_text,) = filter(None, in_threads([make] * 4))
    assert keys.authenticate(key_text) == keys.list()[0]


def test_keys_are_listed_by_name(keys: ApiKeyRepository) -> None:
    for name in ("b", "d", "a", "e", "c"):
        keys.create(name, [Scope.SEARCH])
    assert [key.name for key in keys.list()] == ["a", "b", "c", "d", "e"]
    assert [key.name for key in keys.list("b", 2)] == ["c", "d"]
    assert list(keys.list("e")) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"scopes": []}, "search, investigate, enroll, admin"),
        ({"galleries": []}, "galleries"),
        ({"galleries": ["ok", "a\0"]}, "gallery"),
        ({"galleries": [str(n) for n in range(MAX_GALLERIES + 1)]}, str(MAX_GALLERIES)),
        ({"expires_at": datetime(2101, 1, 1)}, "time zone"),  # noqa: DTZ001
        ({"expires_at": datetime(2020, 1, 1, tzinfo=UTC)}, "in the future"),
        ({"per_minute": 0}, "per_minute is 0"),
        ({"per_minute": MAX_PER_MINUTE + 1}, "per_minute"),
        ({"daily_probes": 0}, "daily_probes is 0"),
    ],
)
def test_invalid_key_settings_are_rejected(keys: ApiKeyRepository, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        keys.create(**{"name": "door", "scopes": [Scope.SEARCH]} | wrong)
    assert not keys.has_any()


def test_limits_are_accepted_up_to_their_maximum(keys: ApiKeyRepository) -> None:
    galleries = [str(n) for n in range(MAX_GALLERIES)]
    latest = datetime.max.replace(tzinfo=UTC)
    key, key_text = keys.create("x" * 200, [Scope.SEARCH], galleries, latest, MAX_PER_MINUTE)
    assert keys.authenticate(key_text) == key
    assert key.expires_at == latest


def test_key_expires_at_its_time(keys: ApiKeyRepository) -> None:
    expires = datetime(2101, 1, 1, tzinfo=UTC)
    key, _ = keys.create("door", [Scope.SEARCH], expires_at=expires)
    assert not key.is_expired(expires - timedelta(microseconds=1))
    assert key.is_expired(expires)


def test_unreachable_database_authenticates_nobody() -> None:
    engine = open_database("postgresql://me@127.0.0.1:1/x")
    keys = ApiKeyRepository(engine)
    for call in (lambda: keys.authenticate(f"wt_{'0' * 16}_{'A' * 43}"), keys.has_any, keys.list):
        with pytest.raises(StorageUnavailable):
            call()
    engine.dispose()
