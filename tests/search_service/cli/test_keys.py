"""`whosthere keys`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from search_service.store.api_keys import ApiKey, ApiKeyRepository, Scope
from tests.indexer.cli.command import Command
from tests.postgres import connected


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def authenticated(command: Command, text: str) -> ApiKey:
    with connected(f"sqlite:///{command.home / 'whosthere.db'}") as engine:
        key = ApiKeyRepository(engine).authenticate(text)
    assert key is not None
    return key


def test_key_is_printed_only_when_it_is_created(command: Command) -> None:
    ran = command.ok("keys", "create", "--name", "door", "--scope", "search", "--json")
    assert set(ran.json) == {"id", "key"}
    key = authenticated(command, ran.json["key"])
    assert (key.id, key.name, key.galleries) == (ran.json["id"], "door", None)
    assert key.scopes == {Scope.SEARCH}
    listed = command.ok("keys", "list", "--json")
    assert [row["id"] for row in listed.json] == [key.id]
    for shown in (listed, command.ok("keys", "list")):
        assert ran.json["key"][-43:] not in shown.out
        assert key.id in shown.out


def test_standard_output_contains_only_the_key(command: Command) -> None:
    ran = command.ok("keys", "create", "--name", "door", "--scope", "admin")
    key = authenticated(command, ran.out.strip())
    assert "cannot be shown again" in ran.err
    assert key.id in ran.err


def test_every_option_is_stored(command: Command) -> None:
    arguments = ["--scope", "search", "--scope", "enroll", "--gallery", "b", "-g", "a", "--expires", "2101-01-01"]
    arguments += ["--per-minute", "60", "--daily-probes", "500"]
    ran = command.ok("keys", "create", "--name", "door", *arguments, "--json")
    (row,) = command.ok("keys", "list", "--json").json
    created = datetime.fromisoformat(row.pop("created_at"))
    assert timedelta() <= datetime.now(UTC) - created < timedelta(minutes=1)
    assert row == {
        "id": ran.json["id"],
        "name": "door",
        "scopes": ["enroll", "search"],
        "galleries": ["a", "b"],
        "per_minute": 60,
        "daily_probes": 500,
        "expires_at": "2101-01-01T00:00:00+00:00",
        "revoked_at": None,
    }
    assert "no gallery a yet" in ran.err
    shown = command.ok("keys", "list").out
    assert "a, b" in shown
    assert "valid until 2101-01-01T00:00+00:00" in shown


def test_expiry_in_days_is_counted_from_now(command: Command) -> None:
    before = datetime.now(UTC)
    command.ok("keys", "create", "--name", "door", "--scope", "search", "--expires", "90d")
    (row,) = command.ok("keys", "list", "--json").json
    expires = datetime.fromisoformat(row["expires_at"]) - timedelta(days=90)
    assert before <= expires <= datetime.now(UTC)


@pytest.mark.parametrize("expires", ["soon", "90", "d", "-1d", "0d", "99999999d", "2020-01-01", "2027-13-01"])
def test_invalid_expiry_is_wrong_usage(command: Command, expires: str) -> None:
    ran = command("keys", "create", "--name", "door", "--scope", "search", f"--expires={expires}")
    assert ran.code == 2
    assert "expires" in ran.err
    assert ran.out == ""
    assert command.ok("keys", "list", "--json").json == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--name", "door"],
        ["--scope", "search"],
        ["--name", "door", "--scope", "root"],
        ["--name", "", "--scope", "search"],
        ["--name", "door", "--scope", "search", "--per-minute", "0"],
        ["--name", "door", "--scope", "search", "--gallery", ""],
    ],
)
def test_invalid_options_are_wrong_usage(command: Command, arguments: list[str]) -> None:
    ran = command("keys", "create", *arguments)
    assert ran.code == 2
    assert ran.err.strip() != ""
    assert command.ok("keys", "list", "--json").json == []


def test_second_key_of_a_name_fails(command: Command) -> None:
    command.ok("keys", "create", "--name", "door", "--scope", "search")
    ran = command("keys", "create", "--name", "door", "--scope", "search")
    assert (ran.code, ran.out) == (1, "")
    assert "'door'" in ran.err


def test_key_is_revoked(command: Command) -> None:
    created = command.ok("keys", "create", "--name", "door", "--scope", "search", "--json").json
    assert created["id"] in command.ok("keys", "revoke", created["id"]).out
    again = command.ok("keys", "revoke", created["id"], "--json").json
    assert again["revoked_at"] is not None
    assert "revoked" in command.ok("keys", "list").out
    assert authenticated(command, created["key"]).revoked_at is not None


def test_revoking_an_unknown_key_fails(command: Command) -> None:
    ran = command("keys", "revoke", "0" * 16)
    assert ran.code == 1
    assert "0000" in ran.err


def test_list_without_keys_prints_a_message(command: Command) -> None:
    assert "There are no keys" in command.ok("keys", "list").out
