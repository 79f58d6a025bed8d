"""The scope `investigate`, which the keys of the scope `search` get, and the daily budget of probes of each key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_keys = sa.table("keys", sa.column("id", sa.String), sa.column("scopes", sa.JSON))


def upgrade() -> None:
    op.add_column("keys", sa.Column("daily_probes", sa.Integer(), nullable=True))
    op.create_table(
        "probe_counts",
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("probes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "day", name="pk_probe_counts"),
        sa.ForeignKeyConstraint(["key_id"], ["keys.id"], name="fk_probe_counts_key_id", ondelete="CASCADE"),
    )
    _rename("search", "investigate")  # what the scope `search` opened until now


def downgrade() -> None:
    _rename("investigate", "search")
    op.drop_table("probe_counts")
    op.drop_column("keys", "daily_probes")


def _rename(scope: str, to: str) -> None:
    connection = op.get_bind()
    for key in connection.execute(sa.select(_keys.c.id, _keys.c.scopes)).all():
        if scope in key.scopes:
            scopes = sorted({to if one == scope else one for one in key.scopes})
            connection.execute(sa.update(_keys).where(_keys.c.id == key.id).values(scopes=scopes))
