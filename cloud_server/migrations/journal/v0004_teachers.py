"""A service may have one teacher after another, and knows of which one a device's student is made."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "teachers",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.String(200)),
        sa.Column("made", sa.Float, nullable=False),
    )
    op.add_column("visits", sa.Column("teacher", sa.Integer, nullable=False, server_default="1"))
