"""Embeddings in a table of their own, so that those by another pack can lie beside; kept crops."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_time = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "embeddings",
        sa.Column("face_id", _id, autoincrement=False, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("embedding", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("face_id", "fingerprint", name="pk_embeddings"),
        sa.ForeignKeyConstraint(["face_id"], ["faces.id"], name="fk_embeddings_face_id", ondelete="CASCADE"),
    )
    op.create_table(
        "crops",
        sa.Column("face_id", _id, autoincrement=False, nullable=False),
        sa.Column("image", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("face_id", name="pk_crops"),
        sa.ForeignKeyConstraint(["face_id"], ["faces.id"], name="fk_crops_face_id", ondelete="CASCADE"),
    )
    op.create_table(
        "reembeddings",
        sa.Column("gallery_id", _id, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("dim", sa.Integer(), nullable=False),
        sa.Column("started_at", _time, nullable=False),
        sa.Column("was_bound", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("gallery_id", "fingerprint", name="pk_reembeddings"),
        sa.ForeignKeyConstraint(
            ["gallery_id"], ["galleries.id"], name="fk_reembeddings_gallery_id", ondelete="CASCADE"
        ),
    )
    op.execute(
        "INSERT INTO embeddings (face_id, fingerprint, embedding) "
        "SELECT faces.id, galleries.fingerprint, faces.embedding "
        "FROM faces JOIN galleries ON galleries.id = faces.gallery_id ORDER BY faces.id"
    )
    # Not as a batch: on SQLite that makes the table anew, and dropping the old one would delete what refers to it.
    op.drop_column("faces", "embedding")


def downgrade() -> None:
    """Crops, and embeddings by other packs than their gallery's, are lost."""
    op.add_column("faces", sa.Column("embedding", sa.LargeBinary(), nullable=False, server_default=sa.text("''")))
    op.execute(
        "UPDATE faces SET embedding = (SELECT e.embedding FROM embeddings e "
        "JOIN galleries g ON g.fingerprint = e.fingerprint WHERE e.face_id = faces.id AND g.id = faces.gallery_id)"
    )
    for table in ("reembeddings", "crops", "embeddings"):
        op.drop_table(table)
