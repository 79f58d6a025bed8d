"""Parsing the address of Milvus, without secrets in errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from indexer.errors import InvalidSetting
from indexer.vectors.milvus.client import INDEX_TYPES, Address, parse
from indexer.vectors.milvus.index import MilvusEngine


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("milvus://db.example", Address("http://db.example:19530")),
        ("milvus://db.example:99/faces", Address("http://db.example:99", "faces")),
        ("milvus+https://tok%40en@db.example", Address("https://db.example:443", token="tok@en")),
        ("milvus://root:Milv%3Aus@db:1/", Address("http://db:1", token="root:Milv:us")),
        (
            "milvus://db?index=rabitq&shards=4&replicas=2&consistency=session&prefix=hall_2",
            Address("http://db:19530", "", "", INDEX_TYPES["rabitq"], 4, 2, "Session", "hall_2"),
        ),
    ],
)
def test_server_address_is_parsed(uri: str, expected: Address) -> None:
    assert parse(uri) == expected


def test_file_address_is_parsed(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    assert parse(f"milvus://{folder}/x.db?index=sq8") == Address(f"{folder}/x.db", index_type=INDEX_TYPES["sq8"])
    assert parse(f"milvus://{tmp_path}/a%20b/x.db").uri == f"{folder}/x.db"
    with pytest.raises(InvalidSetting, match="there is no folder"):
        parse(f"milvus://{tmp_path}/none/x.db")


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("http://db", "starts with 'http'; expected milvus://"),
        ("milvus://db:port", "cannot be read; expected milvus://"),
        ("milvus://db:99999", "cannot be read; expected milvus://"),
        ("milvus://", "names neither a host nor a .db file"),
        ("milvus:///data/faces", "names neither a host nor a .db file"),
        ("milvus+https:///data/faces.db", "names neither a host nor a .db file"),
        ("milvus://user:secret@/faces.db", "names neither a host nor a .db file"),
        ("milvus://user:secret@db/a/b", "'a/b' cannot be a database"),
        ("milvus://user:secret@db?index=hnsw", "index is 'hnsw'; expected index=flat|sq8|rabitq|rabitq8"),
        ("milvus://user:secret@db?shards=0", "shards is '0'"),
        ("milvus://user:secret@db?consistency=none", "consistency is 'none'"),
        ("milvus://user:secret@db?prefix=A-b", "prefix is 'A-b'"),
        ("milvus://user:secret@db?indx=flat", "indx is 'flat'"),
    ],
)
def test_invalid_address_is_reported_without_secrets(uri: str, problem: str) -> None:
    with pytest.raises(InvalidSetting) as raised:
        MilvusEngine(uri)
    assert problem in str(raised.value)
    assert "secret" not in str(raised.value)


def test_repr_hides_the_token() -> None:
    assert "cret" not in repr(parse("milvus://user:s%65cret@db"))
