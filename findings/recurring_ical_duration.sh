#!/usr/bin/env bash
# Packages: recurring-ical-events 3.8.2, icalendar 7.3.2, tzdata 2026.6.
#
# Expected: a night shift in a calendar file with DURATION:PT8H lasts eight hours in every night. RFC 5545 (3.3.6)
#   distinguishes nominal durations (weeks and days), which stretch with clock changes, from accurate ones (hours, minutes
#   and seconds).
# Seen: the shift that starts at 22:00 in Berlin on 24 October 2026 ends at 06:00, after nine hours; in the night of 28 March
#   2027 it ends after seven. PT8H is treated as P1D is. The plain `Event.end` of icalendar does it too.
# Cause: recurring_ical_events/adapters/event.py adds the timedelta to an aware datetime, and Python adds in local time:
#   start + 8 hours is the time at which the clock shows eight hours more.
# Why it matters: attendance compares passages with planned shifts. In the autumn night everybody who leaves after
#   eight hours has left an hour early; in the spring night everybody works an hour of overtime.
# What to do: compute the end in UTC when the event has DURATION with hours, minutes or seconds:
#   (start.astimezone(UTC) + duration).astimezone(start.tzinfo). Write shifts that follow the clock with DTEND.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile --disable-pip-version-check \
  recurring-ical-events==3.8.2 icalendar==7.3.2 tzdata==2026.6
"$work/venv/bin/python" - <<'EOF'
import datetime
import sys

import icalendar
import recurring_ical_events

UTC = datetime.timezone.utc
SHIFT = """BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//example//shifts//EN
BEGIN:VEVENT
UID:night@example.org
DTSTAMP:20260901T000000Z
SUMMARY:Night shift
DTSTART;TZID=Europe/Berlin:20260901T220000
DURATION:PT8H
RRULE:FREQ=DAILY
END:VEVENT
END:VCALENDAR
"""
calendar = icalendar.Calendar.from_ical(SHIFT.replace("\n", "\r\n"))
hours = {}
for day in ((2026, 10, 23), (2026, 10, 24), (2027, 3, 27)):
    (shift,) = [e for e in recurring_ical_events.of(calendar).at(day) if e.start.date() == datetime.date(*day)]
    hours[day] = (shift.end.astimezone(UTC) - shift.start.astimezone(UTC)) / datetime.timedelta(hours=1)
    print(f"{shift.start.isoformat()} to {shift.end.isoformat()}: {hours[day]:.0f} hours")
single = icalendar.Event()
single.start = icalendar.Calendar.from_ical(SHIFT.replace("20260901T22", "20261024T22")).events[0].start
single.DURATION = datetime.timedelta(hours=8)
plain = (single.end.astimezone(UTC) - single.start.astimezone(UTC)) / datetime.timedelta(hours=1)
print(f"icalendar's Event.end in the night of 24 October: {plain:.0f} hours")
if list(hours.values()) != [8, 9, 7] or plain != 9:
    sys.exit("CHANGED: DURATION:PT8H is eight hours in the nights of the clock changes")
EOF
