"""Secrets brought in from elsewhere, taken out, and everything backed up.

Item      one secret (or model) of a file to be imported, with where it stands there
Place     where that is, in words: ``line 3``, ``row 2``, ``secrets[0]``
Outcome   what an import does with an item: ``create``, ``update``, ``unchanged``, ``conflict``, ``unknown``, ``invalid``
Backup    one encrypted file of all tables; see ``container`` for its form

``items``       an item, and whose key it is by its name (pure)    ``dotenv``     reading ``.env`` files (pure)
``documents``   reading JSON and CSV (pure)                        ``imports``    from items to secrets, as one transaction
``exports``     all of somebody's secrets as a file                ``container``  a stream of sealed chunks (pure but for its file)
``backup``      from the database to a backup                      ``restore``    and back, to either kind of database
``tables``      rows as they stand in a backup (pure)
"""
