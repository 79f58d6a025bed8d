"""What schemathesis sends for images: some that show faces, some that show none, some that are no images."""

from __future__ import annotations

import base64

import schemathesis
from hypothesis import strategies

from tests import photos

IMAGES = [photos.astronaut(), photos.aligned_face(), photos.no_faces()[0], photos.astronaut()[:5000], b"no image", b""]

schemathesis.openapi.format("binary", strategies.sampled_from(IMAGES))
schemathesis.openapi.format("byte", strategies.sampled_from([base64.b64encode(data).decode() for data in IMAGES]))
