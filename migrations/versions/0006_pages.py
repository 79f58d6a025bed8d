"""Indexes for pages of identities, faces and events, and the text in which a search of identities looks for words."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from indexer.gallery.spelling import search_text

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

Indexes = dict[str, list[tuple[str, ...]]]
"""Columns of indexes by table."""

NEW: Indexes = {
    "identities": [("gallery_id", "id", "search_text")],
    "faces": [("gallery_id", "id")],
    "events": [
        ("gallery_id", "id"),
        ("gallery_id", "at", "id"),
        ("gallery_id", "external_id", "id"),
        ("gallery_id", "device", "id"),
        ("gallery_id", "decision", "id"),
    ],
    "deliveries": [("webhook_id", "state", "id")],
}

OLD: Indexes = {"events": [("gallery_id", "at"), ("gallery_id", "external_id", "at")]}

PAGE = 10_000
"""Rows written at once."""


def upgrade() -> None:
    op.add_column("identities", sa.Column("search_text", sa.String(), nullable=False, server_default=""))
    _fill_search_text()
    _drop(OLD)
    _create(NEW)


def downgrade() -> None:
    _drop(NEW)
    _create(OLD)
    op.drop_column("identities", "search_text")


def _fill_search_text() -> None:
    """Folds ASCII, most of the text in most galleries, in one statement, and everything else in Python."""
    connection = op.get_bind()
    is_sqlite = connection.dialect.name == "sqlite"
    newline = "char(10)" if is_sqlite else "chr(10)"
    connection.execute(
        sa.text(f"UPDATE identities SET search_text = lower(external_id || {newline} || coalesce(name, ''))")  # noqa: S608
    )
    has_other_text = f"external_id || coalesce(name, '') {'GLOB' if is_sqlite else '~'} :pattern"
    query = sa.text(
        "SELECT id, external_id, name FROM identities "  # noqa: S608
        f"WHERE id > :after AND {has_other_text} ORDER BY id LIMIT {PAGE}"
    )
    change = sa.text("UPDATE identities SET search_text = :text WHERE id = :id")
    values = {"after": 0, "pattern": "*[^ -~]*" if is_sqlite else "[^ -~]"}
    while rows := connection.execute(query, values).all():
        connection.execute(change, [{"id": row.id, "text": search_text(row.external_id, row.name)} for row in rows])
        values["after"] = rows[-1].id


def _create(indexes: Indexes) -> None:
    for table, some in indexes.items():
        for columns in some:
            op.create_index(_name(table, columns), table, list(columns))


def _drop(indexes: Indexes) -> None:
    for table, some in indexes.items():
        for columns in some:
            op.drop_index(_name(table, columns), table)


def _name(table: str, columns: tuple[str, ...]) -> str:
    return "_".join(("ix", table, *columns))
