#!/usr/bin/env bash
# Packages: onnxslim 0.1.98, onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6.
#
# Expected: slimming a network keeps its answers. A constant that multiplies the columns of a feature map (shape [W] or
#   [1, 1, 1, W]) broadcasts along the width and cannot be moved into the weights of the convolution before it.
# Seen: when the width equals the number of output channels, onnxslim multiplies the channels instead: the answers have
#   nothing to do with the original's (cosine about 0). With one channel more the same network is left right. Nothing is
#   reported; the file is valid and a node shorter. onnxslim.slim(..., model_check=True) would print that outputs differ.
# Cause: onnxslim/core/pattern/fusion/convmul.py squeezes the constant and compares its length with the number of output
#   channels, without looking at the axis it stands on.
# Why it matters: face networks have square shapes and round numbers: masks and position weights over 14, 28, 56 or 112
#   columns meet layers of 28, 56 or 112 channels. A network that is slimmed before it is published embeds noise,
#   and its checksum verifies.
# What to do: never take a converted network on trust. Run the original and the slimmed file on a few real crops and refuse
#   a cosine below 0.999.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  onnxslim==0.1.98 onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import sys

import numpy as np
import onnx
import onnxruntime
import onnxslim
from onnx import TensorProto, helper, numpy_helper

random = np.random.default_rng(0)
WIDTH = 28


def network(channels):
    """Returns a convolution whose feature map is multiplied column by column."""
    nodes = [
        helper.make_node("Conv", ["face", "weights"], ["map"], pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["map", "columns"], ["masked"]),
        helper.make_node("Flatten", ["masked"], ["embedding"]),
    ]
    weights = random.normal(size=(channels, 3, 3, 3)).astype(np.float32)
    columns = random.normal(size=(1, 1, 1, WIDTH)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "embedder",
        [helper.make_tensor_value_info("face", TensorProto.FLOAT, [1, 3, WIDTH, WIDTH])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, channels * WIDTH * WIDTH])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(columns, "columns")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


face = random.normal(size=(1, 3, WIDTH, WIDTH)).astype(np.float32)


def embed(model):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"face": face})[0][0]


cosines = {}
for channels in (WIDTH, WIDTH + 1):
    original = network(channels)
    slimmed = onnxslim.slim(original)
    a, b = embed(original), embed(slimmed)
    cosines[channels] = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    left = [node.op_type for node in slimmed.graph.node]
    print(f"{channels} channels, {WIDTH} columns: nodes left {left}, cosine to the original {cosines[channels]:.4f}")
if not (cosines[WIDTH] < 0.5 and cosines[WIDTH + 1] > 0.9999):
    sys.exit("CHANGED: onnxslim keeps a multiplication over columns")
EOF
