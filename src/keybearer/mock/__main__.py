"""``python -m keybearer.mock``: the mock provider without the command line's other parts, as benchmarks start it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from keybearer.mock.server import run
from keybearer.mock.site import Options, parse_keys


def main(arguments: list[str] | None = None) -> None:
    """Serve as told on the command line; the first line printed is the URL."""
    parser = argparse.ArgumentParser(prog="python -m keybearer.mock", description="Speaks like the providers, for tests.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--key", action="append", default=[], metavar="PROVIDER=KEY", help="accept only these keys of a provider")
    parser.add_argument("--no-record", action="store_true", help="keep no requests: quicker")
    parser.add_argument("--certificate", type=Path, help="PEM file: serve HTTPS")
    parser.add_argument("--private-key", type=Path, help="PEM file")
    given = parser.parse_args(arguments)
    try:
        keys = parse_keys(given.key)
    except ValueError as error:
        parser.error(str(error))
    record = 0 if given.no_record else Options().record
    options = Options(keys=keys, record=record, certificate=given.certificate, private_key=given.private_key)
    run(given.host, given.port, options, announce=_print)


def _print(url: str) -> None:
    sys.stdout.write(url + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
