#!/usr/bin/env bash
# Packages: lancedb 0.40.0, pyarrow 26.0.1, numpy 2.4.6.
#
# Expected: with `distance_type("cosine")` the `_distance` of a face to a probe is 1 - cosine, whether the table has an index
#   or not. An index may miss rows and round a little.
# Seen: it depends on what happened to the table before. Without an index 0.099; with a scalar-quantized cosine index 0.197,
#   twice as much; after one more row was added, 0.099 again for the same old face; after `optimize()`, 0.197. And
#   once there is an index, `distance_range` below 0.15 finds nobody, even where the distance is given as 0.099.
# Cause: Lance normalizes the vectors of a cosine index and compares them by squared L2, which is 2 * (1 - cosine) for unit
#   vectors, and returns that. While rows exist that the index does not cover, both parts are recomputed exactly
#   before they are merged. The project's issue 3530 (open) describes the first half.
# Why it matters: the decision flips with the state of the table. A threshold of 0.15 accepts this mate after a new
#   colleague was enrolled and rejects it after the nightly optimization. Tests on small tables without an index
#   see neither.
# What to do: use `.refine_factor(1)` in every query (it recomputes 1 - cosine) and compare with the threshold yourself:
#   `distance_range` filters before the refinement, on the scale of the index.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  lancedb==0.40.0 pyarrow==26.0.1 numpy==2.4.6
cd "$work"
RUST_LOG=error "$work/venv/bin/python" - <<'EOF'
import sys

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import IvfSq

random = np.random.default_rng(0)


def rows(ids, embeddings):
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), embeddings.shape[1])
    return pa.table({"id": pa.array(ids), "vector": vectors})


def unit(embeddings):
    return (embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)).astype(np.float32)


gallery = unit(random.normal(size=(2000, 128)))
probe = unit(gallery[5:6] + 0.5 * unit(random.normal(size=(1, 128))))[0]
true = float(1 - probe @ gallery[5])
table = lancedb.connect("faces.lance").create_table("face", rows(range(2000), gallery))
seen = {}


def look(state, refine=False):
    query = table.search(probe).distance_type("cosine").limit(1)
    best = (query.refine_factor(1) if refine else query).to_list()[0]
    assert best["id"] == 5, best["id"]
    within = table.search(probe).distance_type("cosine").distance_range(upper_bound=0.15).limit(1).to_list()
    seen[state] = best["_distance"], len(within)
    print(f"{state:31} distance {best['_distance']:.4f} (1 - cosine is {true:.4f}), faces below 0.15: {len(within)}")


look("no index")
table.create_index("vector", config=IvfSq(distance_type="cosine", num_partitions=1))
look("cosine index")
look("cosine index, refine_factor(1)", refine=True)
table.add(rows([2000], unit(random.normal(size=(1, 128)))))
look("one row added")
table.optimize()
look("optimized")
exact = ("no index", "cosine index, refine_factor(1)", "one row added")
factors = {state: distance / true for state, (distance, _) in seen.items()}
wrong_scale = any(abs(factor - (1 if state in exact else 2)) > 0.05 for state, factor in factors.items())
if wrong_scale or [within for _, within in seen.values()] != [1, 0, 0, 0, 0]:
    sys.exit("CHANGED: the distance no longer doubles and halves with the state of the index")
EOF
