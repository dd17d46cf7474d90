"""What holds for any traffic: however it is split, mutated or invented."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import attrs
import pytest
from hypothesis import given, strategies as st

from trio_rpc import Code, RemoteProtocolError
from trio_rpc.wire import Event, Hello, Outcome, Protocol, Role, message_size, method_block

SMALL = Hello(max_frame_size=1024, max_message_size=16 * 1024, credentials={"token": "t"}, services=("A", "B"))

payloads = st.binary(max_size=3000)
blobs = st.lists(st.binary(max_size=2500), max_size=3)
metadata = st.none() | st.dictionaries(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    st.text(st.characters(codec="utf-8"), max_size=20) | st.binary(max_size=20),
    max_size=3,
)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=60)
Said = tuple[str, dict[str, Any]]
"""A sending method's name and its arguments."""
requests: st.SearchStrategy[Said] = st.tuples(
    st.just("request"),
    st.builds(
        dict,
        method=names.map(method_block),
        payload=payloads,
        blobs=blobs,
        timeout=st.none() | st.floats(0, 1e6),
        metadata=metadata,
        streaming=st.booleans(),
    ),
)
replies: st.SearchStrategy[Said] = st.one_of(
    st.tuples(st.just("response"), st.builds(dict, payload=payloads, blobs=blobs, metadata=metadata)),
    st.tuples(
        st.just("items"),
        st.builds(dict, count=st.integers(1, 2**32 - 1), payload=payloads, blobs=blobs, metadata=metadata),
    ),
    st.tuples(
        st.just("error"),
        st.builds(
            dict,
            code=st.sampled_from([code for code in Code if code]),
            outcome=st.just(Outcome.FAILED) | st.sampled_from([Outcome.STOPPED, Outcome.EXPIRED, Outcome.CANCELLED]),
            started=st.booleans(),
            text=st.text(st.characters(codec="utf-8"), max_size=100),
            payload=payloads,
            metadata=metadata,
        ),
    ),
    st.tuples(st.just("end"), st.builds(dict, metadata=metadata)),
    st.tuples(st.just("credit"), st.builds(dict, size=st.integers(1, 2**32 - 1), items=st.integers(0, 2**32 - 1))),
)
unasked: st.SearchStrategy[Said] = st.one_of(
    st.tuples(st.just("ping"), st.builds(dict, data=st.binary(min_size=8, max_size=8))),
    st.tuples(st.just("pong"), st.builds(dict, data=st.binary(min_size=8, max_size=8))),
    st.tuples(
        st.just("goaway"),
        st.builds(dict, last_id=st.integers(0, 2**32 - 1), code=st.sampled_from(Code), text=st.text(max_size=20)),
    ),
)
sessions = st.lists(requests | replies | unasked, max_size=8)
"""What an acceptor says behind its HELLO; replies are to request 1."""

NO_ID = {"request", "ping", "pong", "goaway"}


def flat(sent: Any) -> bytes:
    """All bytes of what any sending method returned."""
    if isinstance(sent, bytes):
        return sent
    first, rest = sent[1] if isinstance(sent[0], int) else sent
    return bytes(first + b"".join(b"".join(chunk) for chunk in rest or ()))


def traffic(session: list[Said]) -> bytes:
    """The bytes of a session, to a dialler that accepts little at once."""
    acceptor = Protocol(Role.ACCEPTOR, SMALL)
    greeting = acceptor.greeting()
    acceptor.receive_data(Protocol(Role.DIALLER, SMALL).greeting())
    return greeting + b"".join(
        flat(getattr(acceptor, what)(*() if what in NO_ID else (1,), **how)) for what, how in session
    )


def reader() -> Protocol:
    """The dialler, with requests 1 and 3 under way."""
    dialler = Protocol(Role.DIALLER, SMALL)
    for _ in range(2):
        dialler.request(method_block("m"), b"")
    return dialler


def plain(event: Event) -> dict[str, Any]:
    """An event's fields, with bytes for views and lists for tuples."""
    fields = attrs.asdict(event, recurse=False)
    for key, value in fields.items():
        if isinstance(value, memoryview | tuple):
            fields[key] = bytes(value) if isinstance(value, memoryview) else list(value)
    return {"type": type(event), **fields}


def read(data: bytes, cuts: list[int]) -> list[dict[str, Any]]:
    """The events of `data`, fed in pieces."""
    protocol = reader()
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    pieces = [data[start:end] for start, end in pairwise(edges)]
    return [plain(event) for piece in pieces for event in protocol.receive_data(piece)]


@given(sessions, st.lists(st.integers(min_value=0), max_size=12))
def test_split_anywhere_it_reads_the_same(session: list[Said], cuts: list[int]) -> None:
    """W05, N11: whole, in random pieces, and one byte at a time."""
    data = traffic(session)
    at_once = read(data, [])
    assert len(at_once) == 1 + len(session)
    assert read(data, cuts) == at_once
    assert read(data, list(range(len(data)))) == at_once


@given(requests | replies)
def test_every_message_comes_back(sent: Said) -> None:
    """What was put in comes out, in one frame or in chunks."""
    what, how = sent
    [_, event] = read(traffic([sent]), [])
    wanted = {key: value for key, value in how.items() if key not in {"method", "timeout", "text"}}
    if "metadata" in wanted:
        wanted["metadata"] = wanted["metadata"] or None
    assert {key: event[key] for key in wanted} == wanted
    if what == "request":
        assert event["id"] == 2
        assert method_block(event["method"]) == how["method"]
        assert event["timeout"] == (None if how["timeout"] is None else pytest.approx(how["timeout"], abs=2e-6))
    if what == "error":
        assert event["message"] == how["text"]


@given(payloads, blobs, metadata)
def test_both_sides_count_the_same_credit(payload: bytes, blobs: list[bytes], metadata: dict[str, Any] | None) -> None:
    """A batch costs its receiver what it costs its sender, in one frame or in chunks."""
    acceptor, dialler = Protocol(Role.ACCEPTOR, SMALL), reader()
    acceptor.receive_data(dialler.greeting())
    dialler.receive_data(acceptor.greeting())
    frames = acceptor.items(1, 1, payload, blobs, metadata)
    cost = message_size(frames)
    [event] = dialler.receive_data(flat(frames))
    assert plain(event)["size"] == cost


def read_or_refused(data: bytes, cuts: list[int]) -> tuple[int, str]:
    """How many events came, or the sentence that refused the peer."""
    try:
        return len(read(data, cuts)), ""
    except RemoteProtocolError as exc:
        return 0, exc.message or "no sentence"


@given(st.binary(max_size=200))
def test_junk_is_refused_in_a_sentence(junk: bytes) -> None:
    """Whatever a stranger sends, before HELLO or behind it, nothing but RemoteProtocolError is raised."""
    for data in junk, traffic([]) + junk:
        assert read_or_refused(data, [])[1] != "no sentence"


@given(
    sessions.filter(bool),
    st.lists(st.tuples(st.integers(min_value=0), st.integers(0, 255)), min_size=1, max_size=4),
    st.lists(st.integers(min_value=0), max_size=6),
)
def test_mutated_traffic(session: list[Said], mutations: list[tuple[int, int]], cuts: list[int]) -> None:
    """W20: a few wrong bytes are read or refused, never anything else, and the same however they are split."""
    data = bytearray(traffic(session))
    start = len(traffic([]))
    for place, value in mutations:
        data[start + place % (len(data) - start)] = value
    assert read_or_refused(bytes(data), cuts) == read_or_refused(bytes(data), [])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_ids_never_collide(turns: list[tuple[bool, bool]]) -> None:
    """Two sides that call each other never use the same id, nor one twice, whether or not a request is sent."""
    sides = Protocol(Role.DIALLER, Hello()), Protocol(Role.ACCEPTOR, Hello())
    sides[1].receive_data(sides[0].greeting())
    sides[0].receive_data(sides[1].greeting())
    used: list[int] = []
    for which, delivered in turns:
        request_id, (frame, _) = sides[which].request(method_block("m"), b"")
        used.append(request_id)
        assert request_id % 2 == (0 if which else 1)
        if delivered:
            assert len(sides[not which].receive_data(frame)) == 1
    assert len(set(used)) == len(used)
