"""The client of the REST API that the command line uses. Imports ``errors`` only: ``pip install keybearer`` stays small."""

from keybearer.client.http import Client

__all__ = ["Client"]
