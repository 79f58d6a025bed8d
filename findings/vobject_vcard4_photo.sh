#!/usr/bin/env bash
# Package: vobject 0.9.9.
#
# Expected: vobject reads the photo of a vCard 4.0 contact, or refuses the card: it parses the card, keeps VERSION:4.0, and
#   gives the photo of the same contact in version 3.0 as bytes.
# Seen: `card.photo.value` is the text "data:image/jpeg;base64" without the picture, and `serialize()` writes that, so a card
#   that is read and written back has lost its photo.
# Cause: vobject/vcard.py has rules for version 3.0 only and applies them to every version. It takes PHOTO for a text, which
#   ends at the first comma; in version 4.0 (RFC 6350, 6.2.4) it is a URI, and a data URI has a comma before its content.
# Why it matters: address books (CardDAV, directory exports) are where many sites have their employees' portraits. A sync
#   through vobject finds people without photos, and one that writes cards back deletes the photos at the source.
# What to do: read PHOTO from the unfolded lines yourself for VERSION:4.0, never write such a card back, and count contacts
#   that name a photo and give none.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check vobject==0.9.9
"$work/venv/bin/python" - <<'EOF'
import base64
import sys

import vobject

picture = bytes(range(256))
encoded = base64.b64encode(picture).decode()
photos = {"3.0": f"PHOTO;ENCODING=b;TYPE=JPEG:{encoded}", "4.0": f"PHOTO:data:image/jpeg;base64,{encoded}"}
seen = {}
for version, photo in photos.items():
    lines = ["BEGIN:VCARD", f"VERSION:{version}", "UID:00042", "FN:Ana Specimen", "N:Specimen;Ana;;;", photo, "END:VCARD"]
    card = vobject.readOne("\r\n".join(lines) + "\r\n")
    written = card.serialize().replace("\r\n ", "")
    seen[version] = card.photo.value, encoded in written
    print(f"version {version}: read {str(card.photo.value)[:40]!r}, photo kept when written: {encoded in written}")
if seen != {"3.0": (picture, True), "4.0": ("data:image/jpeg;base64", False)}:
    sys.exit("CHANGED: the photo of a vCard 4.0 contact is read")
EOF
