"""What an entry looks like, whatever text clients and providers put into it."""

from __future__ import annotations

import json
import math
import os
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.audit.audit_samples import outcome, person

from keybearer.audit import lines
from keybearer.audit.batch import Batch
from keybearer.audit.lines import GENESIS, Entry, LineError
from keybearer.audit.segments import Broken, Tail
from keybearer.domain import Caller, Client, ManagementRecord, Role, Usage

WRITER = UUID("5bb87d26-36a6-4f3b-b3a6-2a3d8b1d7f01")
VECTORS = Path(__file__).parent / "vectors"

HOSTILE = st.one_of(
    st.text(max_size=700),
    st.text(alphabet=st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp", "Co"]), max_size=300),
    st.sampled_from(['"}\n{"w":"', "\x00", "\u2028", "\udcff", "\x9b2J", "\u202e", "\\", "a" * 201, "💥" * 300, "\r\n" * 400]),
)


def entry_of(line: bytes) -> bytes:
    return lines.next_entries(lines.entry_head(WRITER), 0, os.urandom(16), GENESIS, [line])[1]


@given(model=HOSTILE, workflow=HOSTILE, node=HOSTILE, agent=HOSTILE, operation=HOSTILE)
@example(model="\ud800", workflow="", node="", agent="", operation="")
def test_hostile_text_in_a_use_neither_breaks_nor_forges_a_line(
    model: str, workflow: str, node: str, agent: str, operation: str
) -> None:
    use = person().use("r1", model=model, workflow=workflow, node=node, operation=operation, client=Client("::1", agent))
    raw = entry_of(lines.use_line(use))
    assert raw.count(b"\n") == 1
    entry = lines.parse(raw[:-1])
    lines.check(entry, GENESIS)
    assert lines.kind_of(entry.line) == "use"
    back = lines.decode_use(entry.line)
    assert (back.user_id, back.secret_id, back.request_id, back.owner) == (use.user_id, use.secret_id, "r1", use.owner)
    shown = {"model": (back.model, 200), "workflow": (back.workflow, 200), "node": (back.node, 200)}
    shown |= {"operation": (back.operation, 40), "agent": (back.client.user_agent, 256)}
    for text, width in shown.values():
        assert text.isprintable()
        assert len(text) <= width or len(f"{model}{workflow}{node}{agent}openai{operation}") <= 200


@given(text=HOSTILE)
def test_printable_text_of_ordinary_length_is_kept_as_it_is(text: str) -> None:
    cleaned = lines.clean(text, 200)
    assert cleaned.isprintable()
    assert len(cleaned) <= 200
    assert (cleaned == text) == (text.isprintable() and len(text) <= 200)


def test_what_is_not_printable_is_shown_as_an_escape_and_what_is_cut_ends_in_an_ellipsis() -> None:
    assert lines.clean("a\x1b[31m\u202e\n\x00é", 64) == r"a\x1b[31m\u202e\n\x00é"
    assert lines.clean("x" * 65, 64) == "x" * 63 + "…"


@given(model=HOSTILE, name=HOSTILE, tokens=st.integers(), ms=st.floats())
@example(model="\ud800", name="ok", tokens=2**64, ms=math.nan)
def test_a_providers_words_and_figures_make_a_line_that_reads_back(model: str, name: str, tokens: int, ms: float) -> None:
    ended = outcome("r1", outcome=name, duration_ms=ms, usage=Usage(tokens, model=model, long_cache_write_tokens=tokens))
    entry = lines.parse(entry_of(lines.outcome_line(ended))[:-1])
    back = lines.decode_outcome(entry.line)
    assert back.usage.model is not None
    assert back.usage.model.isprintable()
    assert back.outcome.isprintable()
    assert lines.facts(entry.line, lambda _: None).outcome == back.outcome[:40]


@given(subject=HOSTILE, name=HOSTILE, value=HOSTILE, agent=HOSTILE)
def test_a_management_line_carries_what_people_typed_in_bounds(subject: str, name: str, value: str, agent: str) -> None:
    caller = Caller(uuid4(), Role.MEMBER, frozenset(), client=Client("127.0.0.1", agent))
    record = ManagementRecord("secret.create", caller, subject, detail=((name, value), *(((f"f{n}", "x")) for n in range(100))))
    managed = lines.decode_manage(lines.manage_line(record, 1.0))
    assert managed.subject.isprintable()
    assert managed.client is not None
    assert managed.client.user_agent == lines.clean(agent, 256)
    assert managed.detail[lines.clean(name, 64)] == lines.clean(value, 200) or name.startswith("f")
    assert len(managed.detail) <= 32


def test_only_the_one_spelling_of_an_entry_is_read() -> None:
    raw = entry_of(lines.close_line(1.5))[:-1]
    lines.parse(raw)
    as_json = json.loads(raw)
    for other in (
        json.dumps(as_json).encode(),  # spaces
        raw.replace(b'"n":1', b'"n":01'),
        raw.replace(b'"n":1', b'"n":1,"n":1'),
        raw.replace(b'"n":1', b'"n":-1'),
        raw.upper().replace(b'"W"', b'"w"'),
        raw.replace(b'{"w"', b'{"z":0,"w"'),
        raw + b" ",
        raw[:-1],
        b"",
        b"\0" * len(raw),
        b"[" * 100_000,
        raw.replace(b'"kind":"close"', b'"kind":"clos\xff"'),
    ):
        with pytest.raises(LineError):
            lines.check(lines.parse(other), GENESIS)


@pytest.mark.parametrize(
    "line", [b"{}", b'{"kind":"us"}', b'{"kind":"use","at":1}', b'{"kind":"close","at":1e300}', b'{"kind":"open",}']
)
def test_a_line_that_does_not_say_what_its_kind_must_say_is_refused(line: bytes) -> None:
    with pytest.raises(LineError):
        lines.facts(line, lambda _: None)


def test_the_format_is_frozen() -> None:
    """A journal of version 1, byte for byte: later versions must read it as this one does."""
    tail = Tail(VECTORS / WRITER.hex)
    entries = tail.read(100)
    tail.close()
    found = [lines.facts(entry.line, lambda _: None) for entry in entries]
    assert [(fact.kind, fact.action, fact.outcome, fact.request_id) for fact in found] == [
        ("open", "journal.open", "ok", None),
        ("use", "secret.use", "unknown", "req-1"),
        ("outcome", "secret.outcome", "ok", "req-1"),
        ("use", "secret.test", "unknown", "req-2"),
        ("close", "journal.close", "ok", None),
    ]
    assert entries[-1].h.hex() == "e3b9711203d436a150ddb88997677e579ed12db53773f720a224dff1a9107114"
    use = lines.decode_use(entries[1].line)
    assert (use.model, use.workflow, use.node, use.streamed) == ("gpt-5-mini", "nightly ünïcode", r"node\x1b[31m", True)
    ended = lines.decode_outcome(entries[2].line)
    assert (ended.usage.input_tokens, ended.cost_micro_usd, ended.first_byte_ms) == (100, 1234, 3.25)


@pytest.mark.parametrize("name", sorted(path.name for path in (VECTORS / "invalid").glob("*")))
def test_broken_journals_of_the_frozen_format_are_refused(name: str, tmp_path: Path) -> None:
    """Each is the frozen journal with one thing wrong; its name says which entry, and what."""
    home = tmp_path / WRITER.hex
    home.mkdir()
    (home / f"{1:020d}.jsonl").write_bytes((VECTORS / "invalid" / name).read_bytes())
    tail = Tail(home)
    before = int(name.split("-", maxsplit=1)[0]) - 1
    assert before == 0 or len(tail.read(before)) == before
    with pytest.raises(Broken) as broken:
        tail.read(1)
    tail.close()
    assert broken.value.seq == before + 1


def test_every_byte_of_a_journal_is_covered(tmp_path: Path) -> None:
    """Whatever byte is flipped, reading does not bring back the same entries without complaint."""
    whole = (VECTORS / WRITER.hex / f"{1:020d}.jsonl").read_bytes()
    home = tmp_path / WRITER.hex
    home.mkdir()
    path = home / f"{1:020d}.jsonl"
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        assert not _reads_whole(home, whole.count(b"\n")), position
    path.write_bytes(whole)
    assert _reads_whole(home, whole.count(b"\n"))


def _reads_whole(home: Path, count: int) -> bool:
    tail = Tail(home)
    try:
        return len(tail.read(100)) == count and not tail.read(100) and tail.torn == 0
    except Broken:
        return False
    finally:
        tail.close()


def test_an_entry_does_not_fit_elsewhere() -> None:
    first = lines.parse(entry_of(lines.close_line(1.0))[:-1])
    lines.check(first, GENESIS)
    with pytest.raises(LineError, match="out of place"):
        lines.check(first, bytes([1]) * 32)
    for name in ("nonce", "line", "d"):
        value = getattr(first, name)
        changed: Entry = first._replace(**{name: value[:-1] + bytes([value[-1] ^ 1])})  # digests may end in any byte
        with pytest.raises(LineError, match="changed"):
            lines.check(changed, GENESIS)
    with pytest.raises(LineError, match="out of place"):
        lines.check(first._replace(h=bytes(32)), GENESIS)


# --- the quick ways, which must tell what the plain ones tell


@given(at=st.floats(allow_nan=False, allow_infinity=False))
@example(at=1763718123.9999997)
@example(at=0.0000005)
@example(at=-0.0000005)
@example(at=253402300799.9999999)
def test_a_time_is_spelled_as_its_datetime_is(at: float) -> None:
    try:
        expected = datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")
    except (ValueError, OverflowError, OSError):
        with pytest.raises((ValueError, OverflowError, OSError)):
            lines.time_text(at)
    else:
        assert lines.time_text(at) == expected


@given(at=st.floats(min_value=1.6e9, max_value=2.2e9))
def test_a_time_of_our_days_is_spelled_as_its_datetime_is(at: float) -> None:
    assert lines.time_text(at) == datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")


def test_no_byte_of_an_entry_can_be_another() -> None:
    head, before = lines.entry_head(WRITER), os.urandom(32)
    h, entry = lines.next_entries(head, 11, os.urandom(16), before, [lines.use_line(person().use("r1", node="ünïcode"))])
    raw = entry[:-1]
    found = lines.following(raw, head, 12, before)
    read = lines.parse(raw)
    assert found == (read.nonce, read.d, read.h, read.line)
    assert read.h == h
    for place in range(len(raw)):
        for bit in range(8):
            changed = raw[:place] + bytes([raw[place] ^ 1 << bit]) + raw[place + 1 :]
            assert lines.following(changed, head, 12, before) is None, (place, bit)
    for other in (raw[:-1], raw[1:], raw + b" ", raw + b"}", b"", raw[:60], raw.replace(b'"n":12', b'"n":012')):
        assert lines.following(other, head, 12, before) is None
    assert lines.following(raw, head, 13, before) is None
    assert lines.following(raw, head, 12, bytes(32)) is None
    assert lines.following(raw, lines.entry_head(uuid4()), 12, before) is None


def test_a_line_that_is_no_text_is_none_though_its_digests_fit() -> None:
    head = lines.entry_head(WRITER)
    _, entry = lines.next_entries(head, 0, os.urandom(16), GENESIS, [b'{"kind":"close","at":"\xff"}'])
    assert lines.following(entry[:-1], head, 1, GENESIS) is None
    with pytest.raises(LineError):
        lines.parse(entry[:-1])


@given(model=HOSTILE, workflow=HOSTILE, node=HOSTILE)
@example(model='","user_id":"x', workflow=',"user_id":', node="")
def test_a_use_read_in_two_parts_is_the_same_use(model: str, workflow: str, node: str) -> None:
    line = lines.use_line(person().use("r1", model=model, workflow=workflow, node=node))
    start, rest = lines.split_use(line)
    request_id, at = start.request_id, start.at
    whole, part = lines.decode_use(line), lines.decode_rest(rest)
    assert (request_id, at) == (whole.request_id, whole.at)
    for name in part.__struct_fields__:
        assert getattr(part, name) == getattr(whole, name)


@pytest.mark.parametrize(
    "again",
    [
        '"request_id":"r2",',
        '"at":1.5,',
        '"kind":"outcome",',
        '"unheard_of":{"of":[1]},',
    ],
)
def test_what_is_said_twice_or_is_new_counts_as_the_plain_reader_reads_it(again: str) -> None:
    line = lines.use_line(person().use("r1", at=1763718123.5)).replace(b'"token_id"', again.encode() + b'"token_id"')
    with pytest.raises(ValueError, match="unknown field"):
        lines.decode_rest(lines.split_use(line)[1])
    batch = Batch({})
    batch.add(Entry(WRITER, 1, bytes(16), bytes(32), bytes(32), line))
    plain = lines.use_facts(lines.decode_use(line))
    ((_, _, at, _, _, user_id, _, _, request_id, *_),) = batch.records
    assert (at, user_id, request_id) == (
        plain.at.isoformat(timespec="microseconds"),
        str(plain.user_id).replace("-", ""),
        plain.request_id,
    )


def test_uses_that_differ_in_a_rest_are_told_apart() -> None:
    one, other = person(), person()
    batch = Batch({})
    for seq, use in enumerate([one.use("r1"), other.use("r2"), one.use("r3"), one.use("r4", model="gpt-6")], 1):
        batch.add(Entry(WRITER, seq, bytes(16), bytes(32), bytes(32), lines.use_line(use)))
    usage = dict(batch.usage())
    assert [usage[name][2] for name in ("r1", "r2", "r3", "r4")] == [who.user_id.hex for who in (one, other, one, one)]
    assert [usage[name][8] for name in ("r3", "r4")] == ["gpt-5-mini", "gpt-6"]
    assert {use.secret_id: use.count for use in batch.secrets()} == {one.secret_id: 3, other.secret_id: 1}
