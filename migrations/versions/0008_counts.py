"""Counts of a gallery's identities and faces, kept by the transactions that change them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    for table in ("identities", "faces"):
        op.add_column("galleries", sa.Column(table, _id, nullable=False, server_default="0"))
        op.execute(
            f"UPDATE galleries SET {table} = "  # noqa: S608
            f"(SELECT count(*) FROM {table} WHERE {table}.gallery_id = galleries.id)"
        )


def downgrade() -> None:
    for table in ("identities", "faces"):
        op.drop_column("galleries", table)
