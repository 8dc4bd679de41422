"""The journal's tables as they were before schemas had numbers; an old database has them already."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "nodes",
        sa.Column("client", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("node", sa.String(200)),
        sa.Column("name", sa.String(200)),
        sa.Column("version", sa.String(200)),
        sa.Column("state", sa.String(200)),
        sa.Column("since", sa.Float, nullable=False),
        sa.Column("seen", sa.Float, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "jobs",
        sa.Column("job", sa.String(200), primary_key=True),
        sa.Column("client", sa.Integer),
        sa.Column("seed", sa.Integer),
        sa.Column("record", sa.JSON),
        sa.Column("finished", sa.Float, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "rounds",
        sa.Column("job", sa.String(200), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("losses", sa.JSON),
        sa.Column("class_counts", sa.JSON),
        sa.Column("state_file", sa.String(200)),
        sa.Column("finished", sa.Float, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "uploads",
        sa.Column("job", sa.String(200), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("client", sa.Integer),
        sa.Column("content", sa.LargeBinary),
        sa.Column("accepted", sa.Float, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "selections",
        sa.Column("job", sa.String(200), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("content", sa.LargeBinary),
        sa.Column("chosen", sa.Float, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "students",
        sa.Column("job", sa.String(200), primary_key=True),
        sa.Column("version", sa.String(200)),
        sa.Column("file", sa.String(200)),
        sa.Column("bytes", sa.Integer),
        sa.Column("made", sa.Float, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "traffic",
        sa.Column("row", sa.Integer, primary_key=True),
        sa.Column("job", sa.String(200)),
        sa.Column("client", sa.Integer),
        sa.Column("round", sa.Integer),
        sa.Column("action", sa.String(200)),
        sa.Column("up_bytes", sa.Integer),
        sa.Column("down_bytes", sa.Integer),
        sa.Column("at", sa.Float, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "privacy",
        sa.Column("job", sa.String(200), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("client", sa.Integer),
        sa.Column("kind", sa.String(200)),
        sa.Column("clips", sa.Integer),
        sa.Column("epsilon", sa.Float),
        sa.Column("delta", sa.Float),
        sa.Column("released", sa.Float, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "failures",
        sa.Column("job", sa.String(200), primary_key=True),
        sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("record", sa.JSON),
        sa.Column("at", sa.Float, nullable=False),
        if_not_exists=True,
    )
