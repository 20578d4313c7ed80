"""Migrations by Alembic, run by the program itself (``store.migrate``).

Rules for a new one, ``versions/v<number>_<noun>.py``:

* The code of the version before must still run after it: add first, fill, and remove a release later.
* It writes its tables out and imports nothing of ``store.schema``, which goes on changing.
* It runs in one transaction, on PostgreSQL with a lock time-out of 5 s and a statement time-out of 5 min: fill large tables in
  batches from a job instead.
* A table with tenant data gets its grants and its forced policy in the same migration (a test counts).
* ``HEAD`` below is its number.
"""

HEAD = "0014"
"""The newest revision. Stands here so that a server start need not import Alembic to see that there is nothing to do."""
