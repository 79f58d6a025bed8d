#!/usr/bin/env bash
# Package: libosdp 3.2.9.
#
# Expected: a reader (OSDP peripheral device) submits a card event with `direction` and a format, and the control panel gets the
#   same event. `submit_event` returns False for what cannot be sent. `CardFormat.ASCII` suits a badge number as text.
# Seen: `direction` 1 (backward) always arrives as 0 (forward) with raw and Wiegand data. An ASCII event is accepted (True) and
#   never sent; the only sign is a line in the library's log. Later events arrive as usual.
# Cause: OSDP's reply for raw card data has no field for a direction; only the formatted reply has, and version 2.2.2 of the
#   standard deprecates that one, so osdp_pd.c drops ASCII events with a warning and the panel fills in 0.
# Why it matters: a face terminal that stands in for a card reader announces the recognized badge like this. Leaving is
#   booked as entering, or nobody is booked at all, and both ends report success.
# What to do: give each direction a peripheral device with its own address, send badges as raw or Wiegand bits, left-aligned,
#   with `length` in bits, and test with the real panel. The package `osdp` installs the same import name: use one of them.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check libosdp==3.2.9
"$work/venv/bin/python" - <<'EOF'
import queue
import sys
import time

from osdp import Capability, CardFormat, Channel, ControlPanel, Event, LogLevel, PDCapabilities, PDInfo, PeripheralDevice

ADDRESS = 1


class Wire(Channel):
    """One end of a serial line between the two devices."""

    def __init__(self, number, incoming, outgoing):
        self.id, self.incoming, self.outgoing = number, incoming, outgoing

    def read(self, max_bytes):
        try:
            return self.incoming.get_nowait()
        except queue.Empty:
            return b""

    def write(self, buf):
        self.outgoing.put(bytes(buf))
        return len(buf)

    def flush(self):
        pass


to_reader, to_panel = queue.Queue(), queue.Queue()
capabilities = PDCapabilities([(Capability.OutputControl, 1, 1)])
reader = PeripheralDevice(PDInfo(ADDRESS, Wire(1, to_reader, to_panel)), capabilities, log_level=LogLevel.Error)
panel = ControlPanel([PDInfo(ADDRESS, Wire(2, to_panel, to_reader))], log_level=LogLevel.Error)
reader.start()
panel.start()
try:
    deadline = time.monotonic() + 20
    while not panel.is_online(ADDRESS) and time.monotonic() < deadline:
        time.sleep(0.05)
    card = {"event": Event.CardRead, "reader_no": 0, "direction": 1}
    text = {**card, "format": CardFormat.ASCII, "length": 5, "data": b"00042"}
    wiegand = {**card, "format": CardFormat.Wiegand, "length": 26, "data": bytes([0x1A, 0x2B, 0x3C, 0x40])}
    accepted = reader.submit_event(text), reader.submit_event(wiegand)
    arrived = panel.get_event(ADDRESS, timeout=10)
    another = panel.get_event(ADDRESS, timeout=1)
finally:
    reader.teardown()
    panel.teardown()
print(f"submitted: ASCII {text['data']!r}, then Wiegand {wiegand['data'].hex()}, direction 1; accepted: {accepted}")
print(f"arrived: {arrived}, then {another}")
dropped = arrived and arrived["format"] == CardFormat.Wiegand and another is None
if not (accepted == (True, True) and dropped and arrived["direction"] == 0):
    sys.exit("CHANGED: the direction or the ASCII event arrives")
EOF
