#!/usr/bin/env bash
# Packages: usearch 2.26.6, numpy 2.4.6.
#
# Expected: `Index(ndim=128, metric="cos").load(path)` of a file that was saved with another metric refuses it, or searches
#   with the metric of the constructor. Failing that, `index.metric` names the one that is used.
# Seen: the file's metric is used, and `index.metric` and `index.specs` name the one from the constructor. A file with
#   squared L2 distances, opened as cosine, answers 0.191 for a mate at a cosine distance of 0.096, and the check
#   `index.metric == MetricKind.Cos` passes. `view` behaves the same.
# Cause: the compiled index takes metric, type and dimensions over from the file's header; usearch/index.py keeps the
#   metric that it was constructed with and returns that.
# Why it matters: for unit vectors squared L2 is twice the cosine distance, so rankings and recall are right and only
#   the threshold is off by a factor of two. It happens when a service changes its metric and old files remain.
# What to do: open files with `Index.restore(path)`, which reads the metric from the file, or compare
#   `Index.metadata(path)["kind_metric"]`, and store a probe with its known distance beside each index.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check usearch==2.26.6 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'EOF'
import sys

import numpy as np
from usearch.index import Index, MetricKind

random = np.random.default_rng(0)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


gallery = unit(random.normal(size=(500, 128)))
probe = unit(gallery[5:6] + 0.5 * unit(random.normal(size=(1, 128))))[0]
true = float(1 - probe @ gallery[5])
old = Index(ndim=128, metric="l2sq", dtype="f32")
old.add(np.arange(500), gallery)
old.save("faces.usearch")

opened = {name: Index(ndim=128, metric="cos", dtype="f32") for name in ("load", "view")}
for name, index in opened.items():
    getattr(index, name)("faces.usearch")
opened["restore"] = Index.restore("faces.usearch")
seen = {}
for name, index in opened.items():
    best = index.search(probe, 1)[0]
    assert best.key == 5, best
    seen[name] = index.metric, best.distance / true
    print(f"{name:8} metric {index.metric.name:5} distance {best.distance:.4f} (1 - cosine is {true:.4f})")
print("metadata:", Index.metadata("faces.usearch")["kind_metric"])
wrong = all(seen[name][0] == MetricKind.Cos and abs(seen[name][1] - 2) < 0.01 for name in ("load", "view"))
if not (wrong and seen["restore"][0] == MetricKind.L2sq):
    sys.exit("CHANGED: a loaded index names the metric it uses")
EOF
