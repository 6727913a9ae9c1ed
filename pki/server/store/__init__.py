"""The system of record: the only home of SQLAlchemy, the same on SQLite and PostgreSQL."""
