#!/usr/bin/env bash
# Packages: openvino 2026.4.1, onnxruntime 1.32.0, onnx 1.23.2, numpy 2.4.6.
#
# Expected: OpenVINO either honors `keep_aspect_ratio_policy` of ONNX's Resize (since opset 18) or refuses the file, as it
#   refuses the coordinate mode `half_pixel_symmetric` of the same operator.
# Seen: the attribute is ignored without a word. A picture of 480 x 640 resized with `not_larger` to a square of 320 becomes
#   320 x 320, stretched; ONNX Runtime returns 240 x 320. With a fixed input size of the following layers nothing fails.
# Cause: OpenVINO's ONNX frontend (src/frontends/onnx/frontend/src/op/resize.cpp) reads mode, coordinate mode, nearest
#   mode, antialias, cubic_coeff_a and axes. It does not look at keep_aspect_ratio_policy, exclude_outside or
#   extrapolation_value.
# Why it matters: a detector with the letterbox inside the file gets faces that are stretched by a third and boxes on
#   another scale. It still answers, so the loss looks like one of accuracy.
# What to do: compare each network's answers in both runtimes on a picture that is not square when it is added, and keep
#   resizing outside the file.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  openvino==2026.4.1 onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import sys

import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper


def resizer(**attributes):
    """Returns a checked model that resizes the last two axes to 320."""
    node = helper.make_node("Resize", ["image", "", "", "sizes"], ["resized"], mode="linear", axes=[2, 3], **attributes)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 480, 640])
    resized = helper.make_tensor_value_info("resized", TensorProto.FLOAT, [1, 3, "height", "width"])
    sizes = numpy_helper.from_array(np.array([320, 320], np.int64), "sizes")
    graph = helper.make_graph([node], "letterbox", [image], [resized], [sizes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


image = np.random.default_rng(0).random((1, 3, 480, 640), np.float32)
core = openvino.Core()
shapes = {}
for policy in ("stretch", "not_larger", "not_smaller"):
    model = resizer(keep_aspect_ratio_policy=policy)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    in_onnxruntime = session.run(None, {"image": image})[0].shape[2:]
    in_openvino = core.compile_model(core.read_model(model), "CPU")(image)[0].shape[2:]
    shapes[policy] = tuple(in_onnxruntime), tuple(in_openvino)
    print(f"{policy:12} ONNX Runtime {in_onnxruntime[0]} x {in_onnxruntime[1]}, OpenVINO {in_openvino[0]} x {in_openvino[1]}")
try:
    core.read_model(resizer(coordinate_transformation_mode="half_pixel_symmetric"))
    refused = False
except RuntimeError:
    refused = True
print("half_pixel_symmetric, also unsupported, is refused:", refused)
if not (shapes["not_larger"] == ((240, 320), (320, 320)) and shapes["not_smaller"] == ((320, 427), (320, 320))):
    sys.exit("CHANGED: OpenVINO honors keep_aspect_ratio_policy")
EOF
