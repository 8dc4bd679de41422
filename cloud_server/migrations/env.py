"""What Alembic runs for every upgrade: on the connection of ``upgrade``, inside its transaction."""

from alembic import context

given = context.config.attributes
context.configure(connection=given["connection"], version_table=given["version_table"])
context.run_migrations()
