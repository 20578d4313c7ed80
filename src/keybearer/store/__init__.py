"""The database: SQLite or PostgreSQL, one schema, one set of queries.

``schema``      the tables; ``trail`` has those of the audit trail, ``columns`` what their columns are made of
``db``          engines and transactions; the differences between the databases end there
``changes``     the feed that tells every process what changed
``queries``     named functions by noun, each taking a transaction
``migrations``  Alembic; the previous version of the code must still run after each one
"""
