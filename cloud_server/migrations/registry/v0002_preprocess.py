"""How the pictures of a task are prepared; tasks from before are prepared as all were then."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

BEFORE = (
    '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "crop_pct": 1.0, '
    '"crop_mode": "center"}'
)


def upgrade() -> None:
    op.add_column("task_versions", sa.Column("preprocess", sa.String, nullable=False, server_default=BEFORE))
