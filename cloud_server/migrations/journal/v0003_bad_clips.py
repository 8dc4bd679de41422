"""An operator reads how many clips of each device cannot be used, and why."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "bad_clips",
        sa.Column("client", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("faults", sa.JSON),
        sa.Column("told", sa.Float, nullable=False),
    )
