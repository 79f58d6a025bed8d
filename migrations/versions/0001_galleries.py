"""Galleries, identities, faces and the change log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_time = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "galleries",
        sa.Column("id", _id, nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("dim", sa.Integer(), nullable=False),
        sa.Column("seq", _id, nullable=False),
        sa.Column("created_at", _time, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_galleries"),
        sa.UniqueConstraint("name", name="uq_galleries_name"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "identities",
        sa.Column("id", _id, nullable=False),
        sa.Column("gallery_id", _id, nullable=False),
        sa.Column("external_id", sa.String(200), nullable=False),
        sa.Column("name", sa.String(200)),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("valid_from", _time),
        sa.Column("valid_until", _time),
        sa.Column("created_at", _time, nullable=False),
        sa.Column("updated_at", _time, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_identities"),
        sa.ForeignKeyConstraint(["gallery_id"], ["galleries.id"], name="fk_identities_gallery_id", ondelete="CASCADE"),
        sa.UniqueConstraint("gallery_id", "external_id", name="uq_identities_gallery_id_external_id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "faces",
        sa.Column("id", _id, nullable=False),
        sa.Column("gallery_id", _id, nullable=False),
        sa.Column("identity_id", _id, nullable=False),
        sa.Column("image_sha256", sa.String(64), nullable=False),
        sa.Column("box", sa.JSON(), nullable=False),
        sa.Column("landmarks", sa.JSON(), nullable=False),
        sa.Column("detection_score", sa.Float(), nullable=False),
        sa.Column("quality", sa.JSON(), nullable=False),
        sa.Column("embedding", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", _time, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_faces"),
        sa.ForeignKeyConstraint(["gallery_id"], ["galleries.id"], name="fk_faces_gallery_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["identity_id"], ["identities.id"], name="fk_faces_identity_id", ondelete="CASCADE"),
        sa.UniqueConstraint("gallery_id", "image_sha256", name="uq_faces_gallery_id_image_sha256"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_faces_identity_id", "faces", ["identity_id"])
    op.create_table(
        "changes",
        sa.Column("gallery_id", _id, nullable=False),
        sa.Column("seq", _id, autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("identity_id", _id, nullable=False),
        sa.Column("face_id", _id),
        sa.Column("at", _time, nullable=False),
        sa.PrimaryKeyConstraint("gallery_id", "seq", name="pk_changes"),
        sa.ForeignKeyConstraint(["gallery_id"], ["galleries.id"], name="fk_changes_gallery_id", ondelete="CASCADE"),
    )


def downgrade() -> None:
    for table in ("changes", "faces", "identities", "galleries"):
        op.drop_table(table)
