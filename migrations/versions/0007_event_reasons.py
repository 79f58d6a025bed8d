"""Why an event is no match or a review, and the liveness of its face."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("events", sa.Column("reasons", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("events", sa.Column("liveness", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    op.drop_column("events", "liveness")
    op.drop_column("events", "reasons")
