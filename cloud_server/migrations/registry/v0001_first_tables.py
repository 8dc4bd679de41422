"""The registry's tables as they were before schemas had numbers; an old database has them already."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "task_versions",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("class_names", sa.String, nullable=False),
        sa.Column("trunk", sa.String(64), nullable=False),
        sa.Column("parameters", sa.String(64), nullable=False),
        sa.Column("prompts", sa.String, nullable=False),
        sa.Column("latency_ms", sa.Float, nullable=False),
        sa.Column("utility", sa.Float, nullable=False),
        sa.Column("accuracy", sa.Float, nullable=False),
        sa.Column("created", sa.String(32), nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "active_tasks",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        if_not_exists=True,
    )
    op.create_table("changes", sa.Column("generation", sa.Integer, primary_key=True), if_not_exists=True)
