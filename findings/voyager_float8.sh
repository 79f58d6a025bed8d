#!/usr/bin/env bash
# Packages: voyager 2.2.3, numpy 2.4.6.
#
# Expected: an index with 8-bit storage (StorageDataType.Float8, Space.Cosine) returns cosine distances of unit vectors with an
#   error of a few thousandths: rounding 512 components to steps of 1/127 gives a standard error of about 0.003, and engines
#   that scale each vector before rounding stay near 0.001.
# Seen: the distances of mates, 512-d unit vectors, are too large by about 0.1. A true score of 0.78 becomes 0.67, and a
#   vector is not at distance 0 from itself.
# Cause: voyager's cpp/src/array_utils.h (normalizeVector) multiplies the unit vector by 127 and assigns the float to an
#   8-bit integer, which cuts off the fraction. A component of a 512-d unit vector is about 5.6 such steps, so a tenth
#   of each is lost, in the stored vector and in the query. NumPy's trunc() gives the same distances below. The
#   documentation gives the range of the values and mentions recall.
# Why it matters: the ranking hardly changes, so recall looks fine, but a decision compares the score with a threshold. A
#   threshold that was calibrated on float32 scores rejects mates after the change of the storage type.
# What to do: rescore the candidates with the float32 embeddings before deciding, or calibrate on scores of the same
#   index. StorageDataType.E4M3 takes the same space and is about ten times closer.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check voyager==2.2.3 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import sys

import numpy as np
from voyager import Index, Space, StorageDataType

random = np.random.default_rng(0)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


gallery = unit(random.normal(size=(2000, 512))).astype(np.float32)
probes = unit(gallery[:200] + 0.8 * unit(random.normal(size=(200, 512)))).astype(np.float32)
mated = np.einsum("ij,ij->i", probes, gallery[:200])


def scores_of_mates(storage):
    index = Index(Space.Cosine, 512, storage_data_type=storage)
    index.add_items(gallery, ids=list(range(len(gallery))))
    found, distances = index.query(probes, k=1, query_ef=len(gallery))
    assert (found[:, 0] == np.arange(len(probes))).all(), "another rank 1"
    return 1 - distances[:, 0]


float8 = scores_of_mates(StorageDataType.Float8) - mated
e4m3 = scores_of_mates(StorageDataType.E4M3) - mated
cut = np.einsum("ij,ij->i", np.trunc(probes * 127), np.trunc(gallery[:200] * 127)) / 127**2 - mated
rounded = np.einsum("ij,ij->i", np.rint(probes * 127), np.rint(gallery[:200] * 127)) / 127**2 - mated
print(f"true scores of mates: {mated.min():.3f} to {mated.max():.3f}")
for name, error in {"Float8": float8, "E4M3": e4m3, "trunc() in NumPy": cut, "rint() in NumPy": rounded}.items():
    print(f"{name:17} mean error {error.mean():+.4f}, largest {np.abs(error).max():.4f}")
if not (float8.mean() < -0.05 and np.abs(float8 - cut).max() < 0.002 and np.abs(rounded).max() < 0.02):
    sys.exit("CHANGED: Float8 no longer cuts off the fractions of the components")
EOF
