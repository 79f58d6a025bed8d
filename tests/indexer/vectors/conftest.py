"""Every test here runs over SQLite and over PostgreSQL."""

from __future__ import annotations

from tests.postgres import database as database
from tests.postgres import empty_database as empty_database
from tests.postgres import postgres as postgres
from tests.postgres import sqlite_template as sqlite_template
from tests.postgres import store as store
