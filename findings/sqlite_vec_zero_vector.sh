#!/usr/bin/env bash
# Packages: sqlite-vec 0.1.9, apsw 3.54.1.0 (SQLite that loads extensions), numpy 2.4.6.
#
# Expected: a stored vector of zeros (a failed or erased embedding) is the last candidate, because its cosine to
#   anything is undefined. PostgreSQL with pgvector does that: the distance is NaN, which sorts after every number.
# Seen: `ORDER BY vec_distance_cosine(embedding, ?) LIMIT 3` returns the vector of zeros first, before the mate. The same
#   table as `vec0` with `distance_metric=cosine` returns it last; but asked with a probe of zeros, `vec0` answers with the
#   first rows of the table and no distance.
# Cause: the extension divides zero by zero. SQLite has no NaN: sqlite3_result_double turns it into NULL, and SQLite
#   sorts NULL before all values.
# Why it matters: the row of zeros is rank 1 for every probe. Code that reads the best row only answers "nobody"
#   for everybody, or fails on `1 - None`. The documentation offers this query as the way to search an ordinary table.
# What to do: refuse zero and non-finite embeddings when they are stored and when they are searched, and write
#   `ORDER BY distance NULLS LAST` or `WHERE distance IS NOT NULL`.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check sqlite-vec==0.1.9 apsw==3.54.1.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import sys

import apsw
import numpy as np
import sqlite_vec

random = np.random.default_rng(0)
gallery = random.normal(size=(100, 128)).astype(np.float32)
gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
gallery[99] = 0
probe = (gallery[7] + 0.05 * random.normal(size=128)).astype(np.float32)

database = apsw.Connection(":memory:")
database.enable_load_extension(True)
database.load_extension(sqlite_vec.loadable_path())
database.execute("CREATE TABLE face (id INTEGER PRIMARY KEY, embedding BLOB)")
database.execute("CREATE VIRTUAL TABLE indexed USING vec0(embedding float[128] distance_metric=cosine)")
for number, row in enumerate(gallery):
    database.execute("INSERT INTO face VALUES (?, ?)", (number, row.tobytes()))
    database.execute("INSERT INTO indexed(rowid, embedding) VALUES (?, ?)", (number, row.tobytes()))

scan = "SELECT id, vec_distance_cosine(embedding, ?) AS distance FROM face ORDER BY distance{} LIMIT 3"
knn = "SELECT rowid, distance FROM indexed WHERE embedding MATCH ? AND k = 3 ORDER BY distance"
scanned = list(database.execute(scan.format(""), (probe.tobytes(),)))
last = list(database.execute(scan.format(" NULLS LAST"), (probe.tobytes(),)))
searched = list(database.execute(knn, (probe.tobytes(),)))
of_zeros = list(database.execute(knn, (bytes(4 * 128),)))
print("scan, ascending distance:    ", scanned)
print("scan, NULLS LAST:            ", last)
print("vec0, k = 3:                 ", searched)
print("vec0, probe of zeros, k = 3: ", of_zeros)
if not (scanned[0] == (99, None) and last[0][0] == searched[0][0] == 7 and [d for _, d in of_zeros] == [None] * 3):
    sys.exit("CHANGED: the vector of zeros is no longer the best candidate")
EOF
