"""Alembic's entry: runs on the connection that app.migrations hands over."""

from alembic import context

from app.db import Base
from app.migrations import TABLES

assert TABLES  # noqa: S101 importing them is what fills Base.metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True)
with context.begin_transaction():
    context.run_migrations()
