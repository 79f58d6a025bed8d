#!/usr/bin/env bash
# Package: paho-mqtt 2.2.0.
#
# Expected: `message.timestamp` in `on_message` is when the message arrived, in Unix time, as `time.time()`.
# Seen: it is the time of a clock with an arbitrary start, usually the boot of the machine: hours instead of decades. As a
#   date it is in January 1970; after a restart it starts again.
# Cause: paho/mqtt/client.py sets it with `time_func`, which is time.monotonic where that exists. The class documents its
#   other attributes, not this one, and MQTT itself has no time of sending.
# Why it matters: readers and door controllers publish passages over MQTT. A service that stores this value books everybody
#   in 1970, or, if it subtracts two of them, works until the first reboot and then computes negative hours of work.
# What to do: have the device put its time into the payload, take datetime.now(UTC) on arrival as well, and treat retained
#   and redelivered messages (`message.retain`, `message.dup`) as old.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check paho-mqtt==2.2.0
"$work/venv/bin/python" - <<'EOF'
import socket
import sys
import threading
import time
from datetime import datetime, timezone

from paho.mqtt.client import CallbackAPIVersion, Client

TOPIC = b"door/1/passage"
listener = socket.create_server(("127.0.0.1", 0))
arrived = []


def broker():
    """Accepts one client of MQTT 3.1.1 and publishes one message to it at QoS 0."""
    connection, _ = listener.accept()
    with connection:
        connection.recv(1024)
        connection.sendall(b"\x20\x02\x00\x00")
        body = len(TOPIC).to_bytes(2, "big") + TOPIC + b"badge 00042"
        connection.sendall(bytes([0x30, len(body)]) + body)
        connection.recv(1024)


def on_message(client, userdata, message):
    arrived.append((message.timestamp, time.time(), time.monotonic()))
    client.disconnect()


threading.Thread(target=broker, daemon=True).start()
client = Client(CallbackAPIVersion.VERSION2)
client.on_message = on_message
client.connect("127.0.0.1", listener.getsockname()[1])
client.loop_forever(timeout=5)
timestamp, unix, monotonic = arrived[0]
print(f"message.timestamp {timestamp:.1f}, time.time() {unix:.1f}, time.monotonic() {monotonic:.1f}")
print("as a date:", datetime.fromtimestamp(timestamp, timezone.utc).isoformat())
if not (abs(timestamp - monotonic) < 60 and abs(timestamp - unix) > 86400):
    sys.exit("CHANGED: message.timestamp is Unix time")
EOF
