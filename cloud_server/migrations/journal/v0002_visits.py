"""A service remembers when it gave a device its student, and which devices were asked to get another."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "visits",
        sa.Column("client", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("visit", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("cause", sa.String(200)),
        sa.Column("device", sa.String(200)),
        sa.Column("outcome", sa.String(200)),
        sa.Column("reason", sa.String(1000)),
        sa.Column("student", sa.String(200)),
        sa.Column("attempts", sa.Integer),
        sa.Column("started", sa.Float, nullable=False),
        sa.Column("ended", sa.Float),
    )
    op.create_table(
        "requests",
        sa.Column("row", sa.Integer, primary_key=True),
        sa.Column("client", sa.Integer),
        sa.Column("asked", sa.Float, nullable=False),
    )
