"""Parquet files that cannot be imported, and the model packs that imports are bound to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexer.app_context import AppContext
from indexer.enrollment.parquet import file as parquet_file
from indexer.enrollment.parquet.export import export_gallery
from indexer.enrollment.parquet.file import open_gallery_file
from indexer.errors import Conflict, InvalidRequest, ModelUnavailable, NotFound, WhosthereError
from indexer.models.packs import BUFFALO_L, SFACE
from tests.indexer.enrollment.parquet.galleries import (
    DIM,
    GOOD,
    contents,
    fill,
    floats,
    import_file,
    make_gallery,
    outcomes,
    plain,
    write,
)
from tests.indexer.gallery.faces import vector


def test_file_that_is_not_parquet_is_refused(path: Path, tmp_path: Path) -> None:
    for data in (b"", b"external_id,embedding\n", b"PAR1" * 30):
        path.write_bytes(data)
        with (
            pytest.raises(InvalidRequest, match=r"some\.parquet cannot be read as a Parquet file"),
            open_gallery_file(path),
        ):
            pass
    for wrong in (tmp_path, tmp_path / "none.parquet"):
        with pytest.raises(InvalidRequest, match=f"{wrong} cannot be read as a Parquet file"), open_gallery_file(wrong):
            pass


def test_damaged_file_never_yields_a_wrong_embedding(context: AppContext, path: Path) -> None:
    fill(context)
    export_gallery(context.migrated_engine, "staff", path)
    right, whole = contents(context), path.read_bytes()
    for cut in (len(whole) - 1, len(whole) // 2, 10):
        path.write_bytes(whole[:cut])
        with pytest.raises(InvalidRequest, match=r"some\.parquet cannot be read"):
            import_file(context, path)
    vectors = whole.index(vector(3, DIM).tobytes())
    path.write_bytes(whole[:vectors] + bytes([whole[vectors] ^ 1]) + whole[vectors + 1 :])
    with pytest.raises(InvalidRequest, match=r"some\.parquet cannot be read.*CRC"):
        import_file(context, path, "copy")
    numbers = np.random.default_rng(0)
    for n in range(150):
        at = int(numbers.integers(len(whole)))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << int(numbers.integers(8)))]) + whole[at + 1 :])
        try:
            results = import_file(context, path, f"copy{n}")
        except WhosthereError:
            continue
        if outcomes(results) == {"enrolled": 5}:
            assert contents(context, f"copy{n}")[0][-1] == right[0][-1]


def json_text(text: str) -> pa.Array:
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array([text]))


def squares() -> pa.Array:
    """Returns a tensor of two dimensions, whose numbers may be stored in another order."""
    return pa.FixedShapeTensorArray.from_numpy_ndarray(GOOD.reshape(1, 8, 16))


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"embedding": floats([GOOD])}, "has no column 'external_id'; it has embedding"),
        ({"external_id": ["ana"]}, "has no column 'embedding'; it has external_id"),
        ({**plain(1), "external_id": [7]}, "the column 'external_id' of .* is of type int64; expected text"),
        ({**plain(1), "external_id": [b"ana"]}, "the column 'external_id' of .* is of type binary; expected text"),
        ({**plain(1), "embedding": [0.5]}, "'embedding' of .* is of type double; expected lists of floats"),
        ({**plain(1), "embedding": [[1, 2]]}, "'embedding' of .* expected lists of floats"),
        ({**plain(1), "embedding": [["a"]]}, "'embedding' of .* expected lists of floats"),
        ({**plain(1), "metadata": [{"a": 1}]}, "'metadata' of .* is of type struct<a: int64>; expected text with JSON"),
        ({**plain(1), "name": json_text('"Ana"')}, "'name' of .* is of type extension<arrow.json>; expected text"),
        ({**plain(1), "embedding": squares()}, r"'embedding' of .* shape=\[8,16\].* expected lists of floats"),
        ({**plain(1), "valid_from": ["2024-05-01"]}, "'valid_from' of .* is of type string; expected timestamps"),
        ({**plain(1), "box": ["1,2,3,4"]}, "'box' of .* expected lists of 4 floats or integers"),
        (
            {**plain(1), "landmarks": [[1.0] * 10]},
            "'landmarks' of .* expected lists of 5 lists of 2 floats or integers",
        ),
        ({**plain(1), "detection_score": ["high"]}, "'detection_score' of .* expected floats or integers"),
        ({**plain(1), "detection_score": [Decimal("0.9")]}, "is of type decimal.* expected floats or integers"),
        (
            {**plain(1), "embedding": floats([[1.0, 0.0]], pa.list_(pa.float32(), 2))},
            f"'embedding' of .* holds 2 numbers a face; expected {DIM}, as model pack sface",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_missing_or_wrongly_typed_column_is_refused(
    context: AppContext, path: Path, columns: dict[str, object], why: str
) -> None:
    with pytest.raises(InvalidRequest, match=why) as caught:
        import_file(context, write(path, columns))
    assert "some.parquet" in caught.value.message
    assert context.store.galleries.list() == []


def test_duplicate_column_is_refused(context: AppContext, path: Path) -> None:
    ids = pa.array(["ana"])
    pq.write_table(pa.table([ids, floats([GOOD]), ids], names=["external_id", "embedding", "external_id"]), path)
    with pytest.raises(InvalidRequest, match=r"some\.parquet has 2 columns named 'external_id'"):
        import_file(context, path)


def test_text_that_is_not_utf_8_is_refused(context: AppContext, path: Path) -> None:
    latin = pa.Array.from_buffers(pa.string(), 1, pa.array([b"Gr\xf6\xdfl"]).buffers())
    with pytest.raises(InvalidRequest, match=r"the column 'name' of .*some\.parquet is not UTF-8"):
        import_file(context, write(path, plain(1) | {"name": latin}))


@pytest.mark.parametrize(
    ("header", "why"),
    [
        (b"{", "cannot be read"),
        (b'{"format": 1}', "cannot be read: gallery: Field required"),
        (
            json.dumps(
                {"format": 2, "gallery": "g", "model": "m", "fingerprint": "f", "dim": 1, "identities": 1, "faces": 1}
                | {"made_at": "2026-01-01T00:00:00Z"}
            ).encode(),
            "has format 2 of a newer whosthere",
        ),
    ],
)
def test_invalid_header_is_refused(context: AppContext, path: Path, header: bytes, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why) as caught:
        import_file(context, write(path, plain(1), {b"whosthere": header}))
    assert "some.parquet" in caught.value.message


def header(model: str, fingerprint: str, dim: int = DIM) -> dict[bytes, bytes]:
    written = parquet_file.Header(
        format=1,
        gallery="staff",
        model=model,
        fingerprint=fingerprint,
        dim=dim,
        identities=1,
        faces=1,
        made_at=datetime.now(UTC),
    )
    return {b"whosthere": written.model_dump_json().encode()}


def test_gallery_is_bound_to_the_pack_of_the_file(context: AppContext, path: Path) -> None:
    """The pack need not be installed: the file has its fingerprint."""
    wide = {"external_id": ["ana"], "embedding": floats([vector(1, 512)])}
    assert outcomes(import_file(context, write(path, wide, header("ir50", "0123456789abcdef", 512)))) == {"enrolled": 1}
    made = context.store.galleries.get("staff")
    assert (made.model, made.fingerprint, made.dim) == ("ir50", "0123456789abcdef", 512)
    assert outcomes(import_file(context, write(path, wide), "other", "buffalo_l")) == {"enrolled": 1}
    made = context.store.galleries.get("other")
    assert (made.model, made.fingerprint, made.dim) == ("buffalo_l", BUFFALO_L.fingerprint, 512)
    with pytest.raises(ModelUnavailable, match="ir50 is not installed"):
        import_file(context, path, "third", "ir50")


@pytest.mark.parametrize(
    ("metadata", "model", "there", "why"),
    [
        (
            header("ir50", "aaaa"),
            None,
            True,
            "by model pack ir50 aaaa, and gallery 'staff' by model pack sface {sface}",
        ),
        (
            header("sface", "aaaa"),
            None,
            True,
            "by model pack sface aaaa, and gallery 'staff' by model pack sface {sface}",
        ),
        (
            header("sface", "aaaa"),
            None,
            False,
            "by model pack sface aaaa, and model pack sface {sface} is installed",
        ),
        (header("ir50", "aaaa"), "sface", False, "by model pack ir50 aaaa, and model pack sface {sface} was requested"),
        (header("ir50", "aaaa"), "sface", True, "by model pack ir50 aaaa, and model pack sface {sface} was requested"),
        (
            None,
            "buffalo_l",
            True,
            "by model pack buffalo_l {buffalo_l}, and gallery 'staff' by model pack sface {sface}",
        ),
        (None, "ir50", True, "by model pack ir50, and gallery 'staff' by model pack sface {sface}"),
    ],
)
def test_packs_are_never_mixed(
    context: AppContext, path: Path, metadata: Mapping[bytes, bytes] | None, model: str | None, there: bool, why: str
) -> None:
    if there:
        make_gallery(context)
    with pytest.raises(Conflict) as caught:
        import_file(context, write(path, plain(1), metadata), model=model)
    assert caught.value.code == "model_mismatch"
    named = why.format(sface=SFACE.fingerprint, buffalo_l=BUFFALO_L.fingerprint)
    assert caught.value.message == f"{path} holds embeddings {named}; a gallery never mixes packs"
    assert sum(context.store.galleries.counts(gallery.id)[0] for gallery in context.store.galleries.list()) == 0


def test_unknown_pack_is_refused_unless_the_gallery_has_it(context: AppContext, path: Path) -> None:
    for metadata, model in ((header("mine", "aaaa"), None), (None, "mine")):
        with pytest.raises(NotFound, match="no model pack 'mine'"):
            import_file(context, write(path, plain(1), metadata), model=model)
    gallery = context.store.galleries.create("staff", "mine", "aaaa", DIM)
    assert outcomes(import_file(context, write(path, plain(1), header("mine", "aaaa")))) == {"enrolled": 1}
    assert context.store.galleries.counts(gallery.id) == (1, 1)
