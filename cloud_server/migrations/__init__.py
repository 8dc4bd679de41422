"""How the SQL schemas of the journal and of the task registry changed, one Alembic file per step."""
