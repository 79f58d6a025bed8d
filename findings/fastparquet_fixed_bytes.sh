#!/usr/bin/env bash
# Packages: fastparquet 2026.9.0, pyarrow 26.0.1 (the writer), pandas 3.1.1, numpy 2.4.6.
#
# Expected: a Parquet column of fixed-length bytes (a SHA-256, a UUID, a key, an embedding) is read byte for byte, as
#   pyarrow, DuckDB and Polars read it. The same fault in columns of variable length was reported in 2020 and is gone.
# Seen: values that end with zero bytes are shortened: 1 in 256 digests has 31 bytes, and 512 half floats whose last is 0.0
#   arrive as 1,022 bytes, that is 511 floats. No warning. Variable-length columns are right.
# Cause: fastparquet/encoding.py and converted_types.py give FIXED_LEN_BYTE_ARRAY NumPy's type S (bytes that a zero
#   ends), and NumPy drops the zeros when a value is taken out.
# Why it matters: photos are found again by their hash, people by their UUID. One row in 256 is missing from a join, so a
#   comparison of two exports reports people as new and as deleted, and tests with a few rows pass.
# What to do: read such files with pyarrow, or write bytes with variable length; after reading, check that every length is
#   the declared one, and pad with zero bytes where it is not.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  fastparquet==2026.9.0 pyarrow==26.0.1 pandas==3.1.1 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'EOF'
import hashlib
import sys

import fastparquet
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

digests = [hashlib.sha256(str(number).encode()).digest() for number in range(5000)]
embedding = np.linspace(1, 0, 512, dtype=np.float16).tobytes()
table = {
    "fixed": pa.array(digests, pa.binary(32)),
    "variable": pa.array(digests, pa.binary()),
    "embedding": pa.array([embedding] * len(digests), pa.binary(1024)),
}
pq.write_table(pa.table(table), "faces.parquet")
read = fastparquet.ParquetFile("faces.parquet").to_pandas()
same = pq.read_table("faces.parquet")["fixed"].to_pylist() == digests
ending = sum(digest.endswith(b"\0") for digest in digests)
short = sum(len(value) < 32 for value in read["fixed"])
wrong = sum(value != digest for value, digest in zip(read["variable"], digests))
print(f"{len(digests)} digests, {ending} end with a zero byte; pyarrow reads all of them right: {same}")
print(f"fastparquet, fixed length: {short} are shorter than 32 bytes; variable length: {wrong} are wrong")
print(f"fastparquet, embedding of 512 half floats: {np.frombuffer(read['embedding'][0], np.float16).size} values")
if not (same and short == ending > 0 and wrong == 0 and len(read["embedding"][0]) == 1022):
    sys.exit("CHANGED: fastparquet keeps the zero bytes at the end of fixed-length values")
EOF
