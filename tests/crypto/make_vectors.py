"""Write ``vectors/*.json``. They freeze the formats: ``python -m tests.crypto.make_vectors`` was run once; a test compares.

If that test fails, the formats have changed and what people have stored no longer opens: make a new format number instead.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import b64encode
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.crypto import reference

VECTORS = Path(__file__).parent / "vectors"

Json = dict[str, Any]


def draw(label: str, size: int = 32) -> bytes:
    """Fixed bytes that look random."""
    return hashlib.shake_256(b"keybearer test vectors: " + label.encode()).digest(size)


def draw_id(label: str) -> str:
    return str(UUID(bytes=draw(label, 16), version=4))


KEY, KEY_ID = draw("key"), draw_id("key id")
PLAINTEXT = b"kbtest-sk-proj-4f9c2b7d81e64a05"
BASE: Json = {
    "purpose": "secret",
    "deployment": draw_id("deployment"),
    "owner": draw_id("owner"),
    "record": draw_id("record"),
    "version": 1,
    "field": "value",
    "egress": ["https://api.openai.com:443"],
    "fetchable": False,
}


def contexts() -> dict[str, Json]:
    return {
        "usual": BASE,
        "fetchable": BASE | {"fetchable": True},
        "no egress": BASE | {"egress": []},
        "several origins": BASE
        | {
            "egress": [
                "https://eu.api.openai.com:443",
                "http://10.1.2.3:8080",
                "https://[2001:db8::1]:8443",
                "https://api.openai.com:443",
            ]
        },
        "version 0": BASE | {"version": 0},
        "largest version": BASE | {"version": 2**63 - 1},
        "empty text": BASE | {"purpose": "", "field": ""},
        "text beyond ASCII": BASE | {"field": "schlüssel 鍵 🔑"},
        "nil ids": BASE | {name: str(UUID(int=0)) for name in ("deployment", "owner", "record")},
    }


def envelope_vectors() -> Json:
    valid = [case(f"context: {name}", context, PLAINTEXT) for name, context in contexts().items()] + [
        case("empty plaintext", BASE, b""),
        case("one byte", BASE, b"x"),
        case("100 bytes", BASE, draw("100", 100)),
        case("1000 equal bytes", BASE, bytes(1000)),
    ]
    return {
        "format": "envelope v1; bytes are hex",
        "contexts": [
            {
                "name": name,
                "context": context,
                "encoded": reference.encode_context(context).hex(),
                "digest": hashlib.sha256(reference.encode_context(context)).hexdigest(),
            }
            for name, context in contexts().items()
        ],
        "egress": [
            {"origins": context["egress"], "digest": reference.egress_digest(context["egress"]).hex()}
            for context in contexts().values()
            if context["egress"] != BASE["egress"] or context is BASE
        ],
        "valid": valid,
        "invalid": invalid(),
    }


def case(name: str, context: Json, plaintext: bytes) -> Json:
    salt = draw(f"salt of {name}")
    return {
        "name": name,
        "key": KEY.hex(),
        "key_id": KEY_ID,
        "salt": salt.hex(),
        "context": context,
        "plaintext": plaintext.hex(),
        "envelope": reference.seal(KEY, KEY_ID, context, plaintext, salt).hex(),
    }


def invalid() -> list[Json]:
    """Cases that must not open: the key, context and envelope to try, and what was done to them."""
    good = reference.seal(KEY, KEY_ID, BASE, PLAINTEXT, draw("salt"))
    found: list[Json] = []

    def add(name: str, envelope: bytes, context: Json = BASE, key: bytes = KEY) -> None:
        found.append({"name": name, "key": key.hex(), "context": context, "envelope": envelope.hex()})

    for field, start, end in fields(good):
        for position, mask in ((start, 0x80), ((start + end) // 2, 0x10), (end - 1, 0x01)):
            add(f"bit flipped in {field}, byte {position}", flipped(good, position, mask))
    for size in sorted(
        {0, 1, 99, len(good) - 1, *(end for _, _, end in fields(good)[:-1]), *(start + 1 for _, start, _ in fields(good))}
    ):
        add(f"truncated to {size} bytes", good[:size])
    add("first byte cut off", good[1:])
    add("a byte too many", good + b"\x00")
    add("a byte put in before the tag", good[:-16] + b"\x00" + good[-16:])
    add("twice", good + good)
    for name, context in swapped().items():
        add(f"swapped: {name}", good, context)
    for form, suite in ((0, 1), (2, 1), (255, 1), (1, 0), (1, 2), (1, 255), (2, 2)):
        head = reference.header(KEY_ID, form, suite)
        add(f"format {form}, suite {suite}, consistently", reference.seal_under(KEY, head, BASE, PLAINTEXT, draw("salt")))
    add("other magic, consistently", reference.seal_under(KEY, b"Kb" + good[2:20], BASE, PLAINTEXT, draw("salt")))
    add("wrong key", good, key=draw("another key"))
    add("key id of another key", reference.header(draw_id("another key id")) + good[20:])
    add("key too short", good, key=KEY[:16])
    add("key too long", good, key=KEY + KEY)
    other = reference.seal(KEY, KEY_ID, BASE, PLAINTEXT[::-1], draw("another salt"))
    for field, start, end in fields(good)[4:]:
        add(f"{field} of another envelope", good[:start] + other[start:end] + good[end:])
    add("no commitment", good[:52] + bytes(32) + good[84:])
    add("text instead", b"kbtest-plain-value-that-nobody-sealed-".ljust(120, b"x"))
    two = two_keys()
    add("two keys, one ciphertext: the other key", bytes.fromhex(two["envelope"]), key=bytes.fromhex(two["other_key"]))
    return found


def two_keys() -> Json:
    """The commitment attack: GCM alone opens this under both keys; the envelope is committed to the first."""
    other = draw("another key")
    envelope = reference.two_key_envelope((KEY, other), KEY_ID, BASE, draw("salt of two keys"))
    return {
        "key": KEY.hex(),
        "other_key": other.hex(),
        "context": BASE,
        "envelope": envelope.hex(),
        "plaintext": reference.open_without_commitment(KEY, BASE, envelope).hex(),
        "plaintext_under_other_key_without_commitment": reference.open_without_commitment(other, BASE, envelope).hex(),
    }


def fields(envelope: bytes) -> list[tuple[str, int, int]]:
    tag = len(envelope) - 16
    return [
        ("magic", 0, 2),
        ("format", 2, 3),
        ("suite", 3, 4),
        ("key id", 4, 20),
        ("salt", 20, 52),
        ("commitment", 52, 84),
        ("ciphertext", 84, tag),
        ("tag", tag, len(envelope)),
    ]


def flipped(data: bytes, position: int, mask: int) -> bytes:
    return data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :]


def swapped() -> dict[str, Json]:
    """Every neighbour of the usual context that an attacker with write access to the database could make of it."""
    origins = BASE["egress"]
    return {
        "owner": BASE | {"owner": draw_id("another owner")},
        "record": BASE | {"record": draw_id("another record")},
        "owner and record with one another": BASE | {"owner": BASE["record"], "record": BASE["owner"]},
        "version": BASE | {"version": 2},
        "version 0": BASE | {"version": 0},
        "field": BASE | {"field": "refresh_token"},
        "purpose": BASE | {"purpose": "owner-key"},
        "a letter from purpose to field": BASE | {"purpose": "secre", "field": "tvalue"},
        "deployment": BASE | {"deployment": draw_id("another deployment")},
        "fetchable": BASE | {"fetchable": True},
        "egress: another host": BASE | {"egress": ["https://evil.example:443"]},
        "egress: widened": BASE | {"egress": [*origins, "https://evil.example:443"]},
        "egress: emptied": BASE | {"egress": []},
        "egress: another port": BASE | {"egress": ["https://api.openai.com:8443"]},
        "egress: another scheme": BASE | {"egress": ["http://api.openai.com:443"]},
        "egress: two origins run together": BASE | {"egress": ["https://api.openai.co:44", "m://x:3"]},
    }


def deployment_vectors() -> Json:
    """A whole small database: wrapping key, root key, system owner, one user and their secret."""
    deployment, root_id, system = draw_id("deployment"), draw_id("root key id"), str(UUID(int=0))
    wrapping, root = draw("wrapping key"), draw("root key")
    owners = {name: (draw_id(f"{name} owner") if name != "system" else system) for name in ("system", "user")}
    aad = b"keybearer/v1/root-key" + UUID(deployment).bytes + UUID(root_id).bytes

    def context(purpose: str, owner: str, record: str, field: str) -> Json:
        return BASE | {"purpose": purpose, "owner": owner, "record": record, "field": field, "egress": []}

    owner_keys: dict[str, Json] = {
        name: {
            "id": draw_id(f"{name} key id"),
            "owner_id": owner,
            "version": 1,
            "root_key_id": root_id,
            "envelope": reference.seal(
                root,
                root_id,
                context("owner-key", owner, draw_id(f"{name} key id"), "key"),
                draw(f"{name} key"),
                draw(f"salt of {name} key"),
            ).hex(),
        }
        for name, owner in owners.items()
    }
    mac_context = context("row-mac-key", system, deployment, "key")
    secret = {"record": draw_id("secret"), "version": 1, "field": "value", "egress": BASE["egress"], "fetchable": False}
    return {
        "format": "a deployment of envelope v1; bytes are hex",
        "wrapping_key": b64encode(wrapping).decode(),
        "wrapping_key_id": reference.wrapping_key_id(wrapping),
        "other_wrapping_key": b64encode(draw("another wrapping key")).decode(),
        "deployment": {
            "id": deployment,
            "row_mac_key": reference.seal(
                draw("system key"), owner_keys["system"]["id"], mac_context, draw("row MAC key"), draw("salt of row MAC key")
            ).hex(),
        },
        "root_key": {
            "id": root_id,
            "wrapped": reference.wrap(wrapping, aad, root, draw("salt of root key")).hex(),
            "proof": reference.seal(
                root, root_id, context("root-key-proof", system, root_id, "proof"), b"keybearer root key", draw("salt of proof")
            ).hex(),
            "aad": aad.hex(),
            "unwrapped": root.hex(),
        },
        "owner_keys": owner_keys,
        "secret": {
            "owner": "user",
            "binding": secret,
            "plaintext": PLAINTEXT.hex(),
            "envelope": reference.seal(
                draw("user key"),
                owner_keys["user"]["id"],
                BASE | {"owner": owners["user"]} | secret,
                PLAINTEXT,
                draw("salt of secret"),
            ).hex(),
        },
        "row_macs": row_macs(draw("row MAC key")),
    }


def row_macs(key: bytes) -> list[Json]:
    rows: list[tuple[str, list[list[Any]]]] = [
        (
            "access_token",
            [["s", "AbCdEf012345"], ["y", "00ff"], ["u", draw_id("user")], ["l", ["gateway:use", "admin"]], ["n", None]],
        ),
        ("session", [["t", "2026-01-31T12:00:00.000000+00:00"], ["b", True], ["b", False], ["i", -5], ["i", 2**63 - 1]]),
        ("user_account", [["s", ""], ["l", []], ["n", None], ["s", "schlüssel 鍵 🔑"]]),
        ("user_account", []),
    ]
    return [
        {
            "table": table,
            "fields": fields,
            "encoded": reference.encode_row(table, fields).hex(),
            "mac": hmac.new(key, reference.encode_row(table, fields), hashlib.sha256).hexdigest(),
        }
        for table, fields in rows
    ]


def documents() -> dict[str, str]:
    """File names and their text."""
    made = {"envelope_v1.json": envelope_vectors(), "two_keys.json": two_keys(), "deployment_v1.json": deployment_vectors()}
    return {name: json.dumps(document, indent=1, ensure_ascii=False) + "\n" for name, document in made.items()}


def main() -> None:
    VECTORS.mkdir(exist_ok=True)
    for name, text in documents().items():
        (VECTORS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
