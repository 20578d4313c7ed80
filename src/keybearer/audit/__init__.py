"""The audit trail: no credential leaves before its intent is recorded, and nobody can change the record unseen.

Terms
    line        one JSON object that says what happened: ``use``, ``outcome``, ``open``, ``close`` or ``manage``
    entry       a line with its place: writer, sequence number, nonce, ``d`` and ``h``
    ``d``       SHA-256(nonce | line): stands for the line where the line itself is not shown
    ``h``       SHA-256(``h`` of the entry before | ``d``); 32 zero bytes before a writer's first entry
    writer      whoever numbers entries: each process start is one, and one more is kept for management records
    journal     the files of one process's writer: a directory with a lock and segments of entries
    checkpoint  a signed statement of the log: so many entries, under this root
    management  records that commit together with the change they tell of

``lines``       what entries look like, to the byte (pure)
``segments``    where a journal's files lie, who holds them, and reading them back
``journal``     writing a use before the key leaves, and its outcome after
``gathering``   dealing together with what comes in one turn of the event loop, or in two
``management``  chaining a record into the transaction of its change
``refusals``    attempts that were turned away: recorded, and bounded
``batch``       what entries mean for the database (pure)
``ship``        moving entries to the database, each exactly once
``verify``      proving that nothing is missing, changed or reordered
``merkle``      the tree over all entries, its tiles and proofs (pure)
``notes``       signed checkpoints (pure)
``tree``        what its leaves are, and proofs from what the database holds
``seal``        appending to it, signing its sizes, pushing what was signed
``publish``     checkpoints in a file
``sealed``      proving records, tree, checkpoints and what was pushed against each other
``proof``       checking a record's proof with nothing but the public key (pure)
``archive``     the whole sealed log in a file that proves itself
``export``      the access log as JSON lines and CSV
``retention``   emptying old records, so that proofs stay valid
``access_log``  what a caller may read of it
"""
