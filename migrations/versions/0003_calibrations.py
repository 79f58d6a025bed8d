"""What a gallery's own scores say of its thresholds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "calibrations",
        sa.Column("gallery_id", _id, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("method", sa.Integer(), nullable=False),
        sa.Column("seq", _id, nullable=False),
        sa.Column("people", sa.Integer(), nullable=False),
        sa.Column("faces", sa.Integer(), nullable=False),
        sa.Column("curve", sa.JSON(), nullable=False),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("gallery_id", "fingerprint", name="pk_calibrations"),
        sa.ForeignKeyConstraint(
            ["gallery_id"], ["galleries.id"], name="fk_calibrations_gallery_id", ondelete="CASCADE"
        ),
    )


def downgrade() -> None:
    op.drop_table("calibrations")
