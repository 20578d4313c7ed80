"""Benchmarks: Keybearer beside nginx, Portkey and LiteLLM, in one run on one machine. ``python -m bench`` (``make bench``).

Everything runs on loopback. The server under test is pinned to the first core; the mock provider and the load generator share the
second. Peers take turns within a round and rounds repeat, so that a noisy machine is noisy to all; ratios are medians of rounds.

Glossary: a **peer** is what stands between client and provider (``direct``: nothing); the **subject** is the peer that the others
are compared with (Keybearer, where it runs); a **scenario** is one question to all peers; a **figure** is one line of the answer.

=============  ======================================================================================
processes.py   starting, pinning and ending processes; their CPU time and memory
load.py        the load generator, a process of its own
peers.py       how each peer is installed, started and spoken to
scenarios.py   the questions to peers
opening.py     and those to Keybearer alone: opening a secret, ``rotation.py``, ``seal.py``
report.py      the table, and ``bench/latest.json``
=============  ======================================================================================
"""
