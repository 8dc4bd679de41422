"""What a task answers; all tasks from before choose one class."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column(
        "task_versions", sa.Column("output", sa.String(16), nullable=False, server_default="classes")
    )
