"""The database: SQLite or PostgreSQL, one schema, one set of queries.

``schema``      the tables; ``trail`` has those of the audit trail, ``columns`` what their columns are made of
``db``          transactions; the differences between the databases end there and in ``engine``, which connects
``guard``       what a database must be before it is used
``bulk``        very many rows in one statement
``whole``       all of a database, read for a backup and filled for a restore
``changes``     the feed that tells every process what changed; ``notifications`` wakes it on PostgreSQL
``queries``     named functions by noun, each taking a transaction
``migrations``  Alembic, run by ``migrate``; the previous version of the code must still run after each one
"""
