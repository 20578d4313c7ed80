"""Encryption at rest: the words and what lies where.

wrapping key  what the operator keeps: a key file, an environment variable, a passphrase or a key in a KMS; it wraps the root key
root key      random 256 bit, one per deployment and generation; lies wrapped in the database and, once unwrapped, in memory
owner key     random 256 bit, one per user, team and system, versioned; lies sealed under the root key
envelope      one sealed value with its header, bound to where it belongs; the format is in ``envelope``
context       where an envelope belongs: purpose, deployment, owner, record, version, field, egress set, fetchable
commitment    32 bytes that only one key can produce; checked before decrypting, so that no envelope opens under two keys
key id        which key sealed an envelope; in its header, so keys are looked up and never tried
proof         a known value sealed under a root key: shows at the start that the root key is the right one
row MAC       32 bytes over a database row under a sealed system key: an inserted or edited row is found out

``envelope`` is pure, as are ``rows``, which says what a row MAC covers, and ``legacy``, which reads other programs' formats. ``kms``
wraps and unwraps root keys. ``keyring`` holds the keys of a running process. ``memory`` keeps them out of core dumps. Every failed
opening is one opaque ``EnvelopeError``; a missing or wrong root key is a ``RootKeyError``.
"""
