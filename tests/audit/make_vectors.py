"""Makes the frozen journal under ``vectors``: run once for a format, never to make a test pass."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from uuid import UUID

from keybearer.audit import lines
from keybearer.audit.lines import GENESIS, Opened
from keybearer.domain import Client, KeySource, OutcomeRecord, Owner, OwnerKind, Usage, UseRecord

VECTORS = Path(__file__).parent / "vectors"
WRITER = UUID("5bb87d26-36a6-4f3b-b3a6-2a3d8b1d7f01")
USER, SECRET = UUID(int=0xA), UUID(int=0xB)


def use(request_id: str, operation: str) -> UseRecord:
    return UseRecord(
        request_id=request_id,
        at=1767225600.25,
        user_id=USER,
        token_id="kbtest000001",
        secret_id=SECRET,
        secret_version=3,
        owner=Owner(OwnerKind.USER, USER),
        source=KeySource.USER,
        provider="openai",
        model="gpt-5-mini",
        operation=operation,
        streamed=True,
        workflow="nightly ünïcode",
        node="node\x1b[31m",
        client=Client("192.0.2.1", "openai-python/2.0"),
    )


def entries() -> list[bytes]:
    ended = OutcomeRecord("req-1", 1767225601.5, 200, "ok", 12.5, 3.25, Usage(100, 20, 10, None, 5, "gpt-5-mini-2026"), 1234)
    texts = [
        lines.open_line(Opened(WRITER, 1767225600.0, "host.example", 42, "journal")),
        lines.use_line(use("req-1", "chat.completions")),
        lines.outcome_line(ended),
        lines.use_line(use("req-2", "test")),
        lines.close_line(1767225602.0),
    ]
    made, h = [], GENESIS
    for number, text in enumerate(texts, 1):
        nonce = sha256(b"kbtest nonce %d" % number).digest()[:16]
        h, entry = lines.next_entries(lines.entry_head(WRITER), number - 1, nonce, h, [text])
        made.append(entry)
    return made


def main() -> None:
    made = entries()
    home = VECTORS / WRITER.hex
    home.mkdir(parents=True, exist_ok=True)
    (home / f"{1:020d}.jsonl").write_bytes(b"".join(made))
    changed = made[1].replace(b"gpt-5-mini", b"gpt-5-maxi")
    digest = made[1].replace(b'"d":"', b'"d":"0')[:-1].replace(b'","h"', b'","h"', 1)
    invalid = {
        "2-changed-line": [made[0], changed, *made[2:]],
        "2-long-digest": [made[0], digest + b"\n", *made[2:]],
        "2-missing": [made[0], *made[2:]],
        "3-duplicate": [*made[:2], made[1], *made[2:]],
        "2-reordered": [made[0], made[2], made[1], *made[3:]],
        "2-renumbered": [made[0], made[2].replace(b'"n":3', b'"n":2'), *made[3:]],
        "1-first-missing": made[1:],
        "1-other-writer": [made[0].replace(b'{"w":"5b', b'{"w":"5c'), *made[1:]],
        "3-blank-line": [*made[:2], b"\n", *made[2:]],
        "3-zeros": [*made[:2], bytes(64) + b"\n", *made[2:]],
        "2-added-space": [made[0], made[1].replace(b',"h"', b', "h"'), *made[2:]],
        "5-changed-end": [*made[:4], made[4].replace(b"1767225602.0", b"1767225602.1")],
    }
    for name, parts in invalid.items():
        (VECTORS / "invalid").mkdir(exist_ok=True)
        (VECTORS / "invalid" / name).write_bytes(b"".join(parts))


if __name__ == "__main__":
    main()
