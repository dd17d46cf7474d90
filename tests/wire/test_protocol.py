"""Each rule that `wire.Protocol` keeps, one by one, from the bytes alone."""

from __future__ import annotations

import sys
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import pytest

from trio_rpc import Code, EncodeError, LocalProtocolError, RemoteProtocolError
from trio_rpc.wire import (
    MAX_ID,
    PREFACE,
    CancelReceived,
    EndReceived,
    ErrorReceived,
    Event,
    Flag,
    Frames,
    GoAwayReceived,
    Hello,
    HelloReceived,
    ItemsReceived,
    Kind,
    Metadata,
    Outcome,
    PingReceived,
    Protocol,
    RequestReceived,
    ResponseReceived,
    Role,
    message_size,
    method_block,
    restamp,
)

METHOD = method_block("m")
MORE, TIMEOUT, METADATA, BLOBS = Flag.MORE, Flag.TIMEOUT, Flag.METADATA, Flag.BLOBS


def number(value: int, size: int = 4) -> bytes:
    """An unsigned big-endian number."""
    return value.to_bytes(size, "big")


def frame(kind: int, request_id: int, body: bytes = b"", flags: int = 0, *, length: int | None = None) -> bytes:
    """A frame as the page specifies it; `length` is what its header says instead of the truth."""
    return number(len(body) if length is None else length) + number(request_id) + bytes([kind, flags]) + body


def whole(frames: Frames) -> bytes:
    """A message with all its chunks."""
    return frames[0] + b"".join(b"".join(chunk) for chunk in frames[1] or ())


def acquainted(d: Hello | None = None, a: Hello | None = None) -> tuple[Protocol, Protocol]:
    """A dialler and an acceptor behind their HELLOs."""
    dialler, acceptor = Protocol(Role.DIALLER, d or Hello()), Protocol(Role.ACCEPTOR, a or Hello())
    acceptor.receive_data(dialler.greeting())
    dialler.receive_data(acceptor.greeting())
    return dialler, acceptor


def calling(d: Hello | None = None, a: Hello | None = None) -> tuple[Protocol, Protocol]:
    """The same, with requests 1 and 2 under way."""
    dialler, acceptor = acquainted(d, a)
    acceptor.receive_data(whole(dialler.request(METHOD, b"")[1]))
    dialler.receive_data(whole(acceptor.request(METHOD, b"")[1]))
    return dialler, acceptor


def beginning(total: int, request_id: int = 1, kind: int = Kind.ITEMS) -> bytes:
    """The first frame of a message in chunks; four bytes of it are there."""
    prelude = METHOD if kind == Kind.REQUEST else number(1)
    return frame(kind, request_id, number(total) + prelude, MORE)


# -- before HELLO --------------------------------------------------------------------------------------------------

STRANGERS = [
    (b"GET / HTTP/1.1\r\n", "it speaks HTTP"),
    (b"PRI * HTTP/2.0\r\n", "it speaks HTTP"),
    (b"HTTP/1.1 400 Bad Request\r\n", "it speaks HTTP"),
    (b"\x16\x03\x01\x02\x00", "it speaks TLS: use that on both sides (tls://), or on neither"),
    (b"\x15\x03\x01\x00\x02", "it speaks TLS"),
    (b"SSH-2.0-x", "it began with b'SSH-2.0-x'"),
    (PREFACE[:3] + b"x", "does not speak trio_rpc"),
    (PREFACE.replace(b"\r\n", b"\n"), "does not speak trio_rpc"),
    (PREFACE[:-1] + b"\x02", "speaks version 2 of the wire; this side speaks 1"),
]


@pytest.mark.parametrize(("data", "said"), STRANGERS)
@pytest.mark.parametrize("role", Role)
def test_strangers_are_named(role: Role, data: bytes, said: str) -> None:
    """W01, W07: a peer that speaks something else is refused at its first bytes, and told from a wrong version."""
    with pytest.raises(RemoteProtocolError) as caught:
        Protocol(role, Hello()).receive_data(data)
    assert said in caught.value.message


def test_a_wrong_byte_is_noticed_at_once() -> None:
    """Nobody waits for the rest of a preface that has begun wrongly."""
    protocol = Protocol(Role.ACCEPTOR, Hello())
    assert protocol.receive_data(PREFACE[:2]) == []
    with pytest.raises(RemoteProtocolError, match="does not speak"):
        protocol.receive_data(b"?")


BEFORE_HELLO = [kind for kind in Kind if kind not in (Kind.HELLO, Kind.GOAWAY)]


@pytest.mark.parametrize("kind", BEFORE_HELLO)
@pytest.mark.parametrize("role", Role)
def test_nothing_comes_before_hello(role: Role, kind: Kind) -> None:
    """W09: any other kind of frame is refused by its name."""
    with pytest.raises(RemoteProtocolError, match=f"a {kind.name} frame before its HELLO"):
        Protocol(role, Hello()).receive_data(PREFACE + frame(kind, 1))


def test_only_an_acceptor_may_refuse_by_goaway() -> None:
    """A dialler hears why it is not welcome; an acceptor has not asked."""
    refusal = PREFACE + frame(Kind.GOAWAY, 0, number(0) + bytes([Code.UNAUTHENTICATED]) + b"who?")
    told = [GoAwayReceived(0, Code.UNAUTHENTICATED, "who?")]
    assert Protocol(Role.DIALLER, Hello()).receive_data(refusal) == told
    with pytest.raises(RemoteProtocolError, match="before its HELLO"):
        Protocol(Role.ACCEPTOR, Hello()).receive_data(refusal)


def test_hello_comes_once() -> None:
    """W09: a second HELLO is refused."""
    dialler, acceptor = acquainted()
    with pytest.raises(RemoteProtocolError, match="a HELLO frame after the HELLO"):
        acceptor.receive_data(dialler.greeting()[len(PREFACE) :])


@pytest.mark.parametrize(("length", "accepted"), [(16 * 1024 - 1, True), (16 * 1024, True), (16 * 1024 + 1, False)])
def test_a_stranger_may_send_16_kib(length: int, accepted: bool) -> None:
    """W01, X17: before HELLO the limit is small, and it holds at the header."""
    protocol = Protocol(Role.ACCEPTOR, Hello())
    header = PREFACE + frame(Kind.HELLO, 0, length=length)
    if accepted:
        assert protocol.receive_data(header) == []
    else:
        with pytest.raises(RemoteProtocolError, match=r"16385 bytes, above our limit of 16384 \(before HELLO\)"):
            protocol.receive_data(header)


def test_limits_of_hello_hold_for_what_follows_in_the_same_bytes() -> None:
    """What comes right behind HELLO is read with the limits that hold from there on."""
    dialler = Protocol(Role.DIALLER, Hello())
    data = dialler.greeting() + whole(dialler.request(METHOD, bytes(20_000))[1])
    events = Protocol(Role.ACCEPTOR, Hello()).receive_data(data)
    assert [type(event) for event in events] == [HelloReceived, RequestReceived]


BAD_HELLOS = [
    (b"\xff", "is not a JSON object in UTF-8"),
    (b"{", "is not a JSON object in UTF-8"),
    (b"[" * 9000, "is not a JSON object in UTF-8"),
    (b"[]", "must be a JSON object, not list"),
    (b'{"codecs":[]}', "codecs='[]': expected a list of codec names"),
    (b'{"codecs":"json"}', "codecs='json': expected a list of codec names"),
    (b'{"codecs":[1]}', "expected a list of codec names"),
    (b'{"max_in_flight":0}', "max_in_flight='0': expected a whole number of at least 1"),
    (b'{"max_in_flight":true}', "expected a whole number"),
    (b'{"max_in_flight":1.5}', "expected a whole number"),
    (b'{"max_frame_size":1023}', "expected a whole number of at least 1024"),
    (b'{"max_message_size":9007199254740993}', "expected a whole number"),
    (b'{"stream_window":0}', "expected a whole number of at least 1"),
    (b'{"ping_interval":-1}', "ping_interval='-1': expected seconds"),
    (b'{"ping_interval":NaN}', "expected seconds"),
    (b'{"ping_interval":1' + b"0" * 400 + b"}", "expected seconds"),
    (b'{"credentials":"secret"}', "expected an object"),
    (b'{"product":3}', "expected a short text"),
    (b'{"instance":"' + b"0" * 256 + b'"}', "expected a short text"),
]


@pytest.mark.parametrize(("body", "said"), BAD_HELLOS)
def test_bad_hellos(body: bytes, said: str) -> None:
    """A HELLO that does not fit is refused in a sentence that names the key."""
    with pytest.raises(RemoteProtocolError) as caught:
        Protocol(Role.ACCEPTOR, Hello()).receive_data(PREFACE + frame(Kind.HELLO, 0, body))
    assert said in caught.value.message
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("body", [b"{}", b'{"codecs":null,"later":[{}]}'])
def test_hello_with_defaults(body: bytes) -> None:
    """Missing and null keys have their defaults; unknown ones are ignored."""
    [event] = Protocol(Role.ACCEPTOR, Hello()).receive_data(PREFACE + frame(Kind.HELLO, 0, body))
    assert event == HelloReceived(Hello())


@pytest.mark.parametrize("credentials", [{"token": "x" * 17_000}, {"token": b"x"}, {"token": float("nan")}])
def test_a_hello_that_no_peer_would_take_is_not_sent(credentials: dict[str, object]) -> None:
    """It fails here, with a sentence, and not at the peer."""
    with pytest.raises(LocalProtocolError, match=r"smaller credentials|plain JSON"):
        Protocol(Role.DIALLER, Hello(credentials=credentials)).greeting()


# -- headers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [0, 13, 255])
def test_unknown_kinds(kind: int) -> None:
    """W08: a kind of frame that this version does not have ends the connection, at the header."""
    with pytest.raises(RemoteProtocolError, match=f"unknown kind {kind}"):
        acquainted()[1].receive_data(frame(kind, 1, length=9))


WELCOME = {
    Kind.REQUEST: MORE | TIMEOUT | METADATA | BLOBS | Flag.STREAM,
    Kind.RESPONSE: MORE | METADATA | BLOBS,
    Kind.ERROR: MORE | METADATA,
    Kind.ITEMS: MORE | METADATA | BLOBS,
    Kind.END: METADATA,
    Kind.CHUNK: MORE,
}


@pytest.mark.parametrize("bit", [1 << place for place in range(8)])
@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.HELLO])
def test_each_kind_has_its_flags_and_no_others(kind: Kind, bit: int) -> None:
    """W08: a flag that is not specified for a kind is refused at the header; one that is, is waited for."""
    _, acceptor = calling()
    header = frame(kind, 1, flags=bit, length=100)
    if bit & WELCOME.get(kind, 0):
        assert acceptor.receive_data(header) == []
    else:
        with pytest.raises(
            RemoteProtocolError, match=f"a {kind.name} frame with flags {bit:#04x}, which it cannot have"
        ):
            acceptor.receive_data(header)


@pytest.mark.parametrize("length", [1023, 1024, 1025, 2**31, 2**32 - 1])
@pytest.mark.parametrize("limit", [{"max_frame_size": 1024}, {"max_message_size": 1024}])
def test_frame_size_is_checked_at_the_header(limit: dict[str, Any], length: int) -> None:
    """W03: up to the limit the body is awaited; beyond it the header alone is too much."""
    _, acceptor = acquainted(a=Hello(**limit))
    header = frame(Kind.REQUEST, 1, length=length)
    if length <= 1024:
        assert acceptor.receive_data(header) == []
    else:
        with pytest.raises(RemoteProtocolError, match=f"frame of {length} bytes, above our limit of 1024"):
            acceptor.receive_data(header)


@pytest.mark.parametrize("total", [2047, 2048, 2049])
def test_message_size_is_checked_at_its_first_frame(total: int) -> None:
    """W03, R14: what a message in chunks announces is held against the limit before any chunk comes."""
    _, acceptor = acquainted(a=Hello(max_message_size=2048))
    first = beginning(total, kind=Kind.REQUEST)
    if total <= 2048:
        assert acceptor.receive_data(first) == []
    else:
        with pytest.raises(
            RemoteProtocolError, match=r"REQUEST of 2049 bytes, above our limit of 2048 \(max_message_size"
        ):
            acceptor.receive_data(first)


# -- ids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_id", [0, 2, 4, 1])
def test_a_request_takes_a_new_id_of_its_own_parity(request_id: int) -> None:
    """W19: zero, the other side's parity and a used id are refused; gaps are welcome."""
    _, acceptor = calling()
    with pytest.raises(RemoteProtocolError, match=f"opened request {request_id} after 1"):
        acceptor.receive_data(frame(Kind.REQUEST, request_id, METHOD))


def test_ids_may_leave_gaps_and_never_go_back() -> None:
    """An id below the latest is refused even if it was never used."""
    _, acceptor = acquainted()
    assert len(acceptor.receive_data(frame(Kind.REQUEST, 7, METHOD) + frame(Kind.REQUEST, MAX_ID, METHOD))) == 2
    with pytest.raises(RemoteProtocolError, match=f"opened request 9 after {MAX_ID}"):
        acceptor.receive_data(frame(Kind.REQUEST, 9, METHOD))


@pytest.mark.parametrize("role", Role)
def test_ids_are_used_up_once(role: Role) -> None:
    """A connection says in time that it should retire; the last id is used, and none after it."""
    protocol = Protocol(role, Hello())
    fresh = protocol.exhausted
    protocol.last_local_id = MAX_ID - (2 if role is Role.DIALLER else 3)
    assert (fresh, protocol.exhausted) == (False, True)
    assert protocol.request(METHOD, b"")[0] == MAX_ID - (0 if role is Role.DIALLER else 1)
    with pytest.raises(LocalProtocolError, match="open another one"):
        protocol.request(METHOD, b"")


OF_A_CALL = [
    (Kind.RESPONSE, b""),
    (Kind.ERROR, b"\x02\x80\0\0"),
    (Kind.ITEMS, number(1)),
    (Kind.END, b""),
    (Kind.CREDIT, number(1) * 2),
    (Kind.CANCEL, number(0) + b"\0"),
    (Kind.CHUNK, b"x"),
]


@pytest.mark.parametrize("request_id", [0, 3, 4, MAX_ID])
@pytest.mark.parametrize(("kind", "body"), OF_A_CALL)
def test_frames_for_calls_that_never_were(kind: Kind, body: bytes, request_id: int) -> None:
    """S05, S07: whoever answers, feeds or cancels what nobody has asked is refused."""
    _, acceptor = calling()
    with pytest.raises(RemoteProtocolError, match=r"which never was|which is ours"):
        acceptor.receive_data(frame(kind, request_id, body))


@pytest.mark.parametrize(("kind", "body"), OF_A_CALL[:2])
def test_nobody_answers_himself(kind: Kind, body: bytes) -> None:
    """W09: results come from the handler's side."""
    _, acceptor = calling()
    with pytest.raises(RemoteProtocolError, match="answered request 1, which is its own"):
        acceptor.receive_data(frame(kind, 1, body))


def test_only_the_caller_cancels() -> None:
    """CANCEL from the handler's side is refused."""
    dialler, _ = calling()
    with pytest.raises(RemoteProtocolError, match="cancelled request 1, which is ours"):
        dialler.receive_data(frame(Kind.CANCEL, 1, number(0) + b"\0"))


@pytest.mark.parametrize("kind", [Kind.PING, Kind.PONG, Kind.GOAWAY])
def test_frames_of_the_connection_have_no_id(kind: Kind) -> None:
    """A ping or go-away for one request makes no sense."""
    with pytest.raises(RemoteProtocolError, match=f"{kind.name} for request 1: it belongs to none"):
        calling()[0].receive_data(frame(kind, 1, bytes(8)))


# -- bodies --------------------------------------------------------------------------------------------------------


def blocks(*entries: tuple[bytes, int, bytes]) -> bytes:
    """A metadata block of (key, type, value)."""
    body = b"".join(
        bytes([len(key)]) + key + bytes([type_]) + number(len(value)) + value for key, type_, value in entries
    )
    return number(len(body)) + body


MALFORMED = [
    ("no method", Kind.REQUEST, b"", 0, "it ends too early"),
    ("empty method", Kind.REQUEST, b"\0", 0, "no whole method name"),
    ("short method", Kind.REQUEST, b"\3ab", 0, "no whole method name"),
    ("method not text", Kind.REQUEST, b"\1\xff", 0, "can't decode byte"),
    ("short timeout", Kind.REQUEST, bytes(7), TIMEOUT, "it ends too early"),
    ("short metadata", Kind.REQUEST, number(9) + b"x", METADATA, "its metadata is cut short"),
    ("empty key", Kind.REQUEST, blocks((b"", 0, b"")) + METHOD, METADATA, "an entry that does not fit"),
    ("unknown type", Kind.REQUEST, blocks((b"a", 2, b"")) + METHOD, METADATA, "an entry that does not fit"),
    ("key not text", Kind.REQUEST, blocks((b"\xff", 0, b"")) + METHOD, METADATA, "can't decode byte"),
    ("value not text", Kind.REQUEST, blocks((b"a", 0, b"\xff")) + METHOD, METADATA, "can't decode byte"),
    ("entry beyond block", Kind.REQUEST, number(8) + b"\1a\0" + number(9) + bytes(30), METADATA, "does not fit"),
    ("half an entry", Kind.REQUEST, number(3) + b"\1a\0", METADATA, "it ends too early"),
    ("short blob table", Kind.REQUEST, b"\0\2" + number(1), BLOBS, "it ends too early"),
    ("blobs too large", Kind.REQUEST, b"\0\1" + number(99) + METHOD, BLOBS, "larger than itself"),
    ("blob in a response", Kind.RESPONSE, b"\0\1" + number(1), BLOBS, "larger than itself"),
    ("no count", Kind.ITEMS, b"\0\0\0", 0, "it ends too early"),
    ("no items", Kind.ITEMS, number(0), 0, "it has no items"),
    ("short error", Kind.ERROR, b"\2\x80\0", 0, "it ends too early"),
    ("short text", Kind.ERROR, b"\2\x80\0\5abc", 0, "its text is cut short"),
    ("text not text", Kind.ERROR, b"\2\x80\0\1\xff", 0, "can't decode byte"),
    ("unknown outcome", Kind.ERROR, b"\2\5\0\0", 0, "5 is not a valid Outcome"),
    ("refused, but started", Kind.ERROR, b"\2\x81\0\0", 0, "cannot have been started"),
    ("END with a body", Kind.END, b"x", 0, "it is too long"),
    ("END behind metadata", Kind.END, blocks() + b"x", METADATA, "it is too long"),
    ("END without metadata", Kind.END, b"", METADATA, "it ends too early"),
    ("no total", Kind.ITEMS, b"\0\0\1", MORE, "ITEMS frame of 3 bytes, which cannot be"),
    ("short credit", Kind.CREDIT, bytes(7), 0, "CREDIT frame of 7 bytes, which cannot be"),
    ("long credit", Kind.CREDIT, bytes(9), 0, "CREDIT frame of 9 bytes, which cannot be"),
    ("credit of nothing", Kind.CREDIT, bytes(8), 0, "granted no credit at all"),
    ("short cancel", Kind.CANCEL, bytes(4), 0, "CANCEL frame of 4 bytes, which cannot be"),
    ("odd cancel", Kind.CANCEL, bytes(4) + b"\2", 0, "leaving=2"),
    ("short ping", Kind.PING, bytes(7), 0, "PING frame of 7 bytes, which cannot be"),
    ("long pong", Kind.PONG, bytes(9), 0, "PONG frame of 9 bytes, which cannot be"),
    ("short goaway", Kind.GOAWAY, bytes(4), 0, "GOAWAY frame of 4 bytes, which cannot be"),
]


@pytest.mark.parametrize(
    ("kind", "body", "flags", "said"), [row[1:] for row in MALFORMED], ids=[row[0] for row in MALFORMED]
)
def test_malformed_bodies(kind: Kind, body: bytes, flags: int, said: str) -> None:
    """Fields that do not fit end the connection, in a sentence that says what is wrong."""
    _, acceptor = calling()
    request_id = {Kind.REQUEST: 3, Kind.RESPONSE: 2, Kind.ERROR: 2, Kind.PING: 0, Kind.PONG: 0, Kind.GOAWAY: 0}.get(
        kind, 1
    )
    with pytest.raises(RemoteProtocolError) as caught:
        acceptor.receive_data(frame(kind, request_id, body, flags))
    assert said in caught.value.message


@pytest.mark.parametrize("code", [0, 99])
def test_codes_of_a_later_version(code: int) -> None:
    """A failure with a number that is no code here is UNKNOWN, and no fault."""
    dialler, _ = calling()
    [event] = dialler.receive_data(frame(Kind.ERROR, 1, bytes([code, 0x80, 0, 0])))
    assert isinstance(event, ErrorReceived)
    assert event.code is Code.UNKNOWN


@pytest.mark.parametrize("size", [63, 64, 65])
def test_metadata_limit(size: int) -> None:
    """R15: the whole block counts, on both sides; what is too large is not sent, and not taken."""
    value = "x" * (size - 11)  # around it: 4 for the block, 1 + 1 for the key, 1 for the type, 4 for the length
    metadata = {"k": value}
    dialler, acceptor = acquainted(a=Hello(max_metadata_size=64))
    received = frame(Kind.REQUEST, 1, blocks((b"k", 0, value.encode())) + METHOD, METADATA)
    if size <= 64:
        assert whole(dialler.request(METHOD, b"", metadata=metadata)[1]) == received
        [event] = acceptor.receive_data(received)
        assert isinstance(event, RequestReceived)
        assert event.metadata == metadata
    else:
        with pytest.raises(EncodeError, match=r"metadata of 65 bytes is more than the 64 .*max_metadata_size"):
            dialler.request(METHOD, b"", metadata=metadata)
        with pytest.raises(RemoteProtocolError, match=r"65 bytes is above our limit of 64 \(max_metadata_size\)"):
            acceptor.receive_data(received)


# -- chunks --------------------------------------------------------------------------------------------------------


def chunk(size: int, flags: int = 0) -> bytes:
    """A chunk of request 1."""
    return frame(Kind.CHUNK, 1, bytes(size), flags)


CHUNKS = [
    ("one", [chunk(2000)], True),
    ("two", [chunk(1024, MORE), chunk(976)], True),
    ("too short", [chunk(1999)], False),
    ("too long", [chunk(2001)], False),
    ("too long, not the last", [chunk(2001, MORE)], False),
    ("complete, but not the last", [chunk(2000, MORE)], False),
    ("empty", [chunk(0)], False),
    ("empty, not the last", [chunk(0, MORE)], False),
    ("small, not the last", [chunk(1023, MORE)], False),
    ("empty at the end", [chunk(2000, MORE), chunk(0)], False),
]


@pytest.mark.parametrize(("chunks", "fits"), [row[1:] for row in CHUNKS], ids=[row[0] for row in CHUNKS])
def test_chunks_hold_what_was_announced(chunks: list[bytes], fits: bool) -> None:
    """R14: exactly as many bytes, none of the pieces empty, and only the last one small."""
    dialler, _ = calling()
    data = beginning(2004) + b"".join(chunks)
    if fits:
        assert dialler.receive_data(data) == [ItemsReceived(1, 1, bytes(2000), [], 2004, None)]
    else:
        with pytest.raises(
            RemoteProtocolError, match=r"do not add up to the announced 2004|is not the last and below 1024"
        ):
            dialler.receive_data(data)


@pytest.mark.parametrize("total", [3, 4])
def test_a_message_in_chunks_has_some(total: int) -> None:
    """A first frame that already holds all it announces is refused: its end could never come."""
    with pytest.raises(RemoteProtocolError, match="bytes are there already"):
        calling()[0].receive_data(beginning(total))


@pytest.mark.parametrize(
    "intruder", [frame(Kind.ITEMS, 1, number(1)), beginning(2004), frame(Kind.END, 1)], ids=["whole", "begun", "end"]
)
def test_messages_of_one_direction_do_not_mix(intruder: bytes) -> None:
    """A caller's items come one batch behind the other."""
    with pytest.raises(RemoteProtocolError, match="in the middle of another message"):
        calling()[1].receive_data(beginning(2004) + intruder)


@pytest.mark.parametrize(
    ("ending", "event"),
    [
        (frame(Kind.END, 1), EndReceived(1, None)),
        (frame(Kind.RESPONSE, 1, b"\7"), ResponseReceived(1, b"\7", (), None)),
        (frame(Kind.ERROR, 1, b"\1\x84\0\0"), ErrorReceived(1, Code.CANCELLED, Outcome.CANCELLED, True, "", b"", None)),
    ],
    ids=["end", "response", "error"],
)
def test_the_end_of_a_call_may_cut_an_item_off(ending: bytes, event: Event) -> None:
    """A handler that is stopped in the middle of a large item leaves the rest out; chunks under way are dropped."""
    dialler, _ = calling()
    assert dialler.receive_data(beginning(2004) + ending) == [event]
    assert dialler.receive_data(chunk(2000)) == []


def test_a_result_may_not_cut_off_a_result() -> None:
    """Only items are ever left unfinished."""
    with pytest.raises(RemoteProtocolError, match="in the middle of another message"):
        calling()[0].receive_data(beginning(2004, kind=Kind.RESPONSE) + frame(Kind.RESPONSE, 1))


def test_messages_of_several_calls_interleave() -> None:
    """Chunks find their message by its id."""
    small = Hello(max_frame_size=1024)
    dialler, acceptor = acquainted(a=small)
    sent = [dialler.request(METHOD, bytes([n]) * 5000)[1] for n in range(3)]
    turns = zip_longest(*[[b"".join(part) for part in rest or ()] for _, rest in sent], fillvalue=b"")
    data = b"".join(first for first, _ in sent) + b"".join(map(b"".join, turns))
    events = acceptor.receive_data(data)
    assert [(e.id, e.payload) for e in events if isinstance(e, RequestReceived)] == [
        (1, bytes(5000)),
        (3, b"\1" * 5000),
        (5, b"\2" * 5000),
    ]


@pytest.mark.parametrize("begun", [3, 4])
def test_incomplete_requests_are_as_few_as_calls(begun: int) -> None:
    """R13, R14: a request takes its place when it begins: memory for those that never end is bounded."""
    _, acceptor = acquainted(a=Hello(max_in_flight=3))
    data = b"".join(beginning(2000, 2 * n + 1, Kind.REQUEST) for n in range(begun))
    if begun <= 3:
        assert acceptor.receive_data(data) == []
        assert acceptor.receiving_requests
    else:
        with pytest.raises(RemoteProtocolError, match=r"more requests at once than the 3 it may \(max_in_flight\)"):
            acceptor.receive_data(data)


def test_a_cancelled_request_need_not_be_finished() -> None:
    """CANCEL ends a request that is still arriving, frees its place, and says that it never came."""
    _, acceptor = acquainted(a=Hello(max_in_flight=1))
    cancel = frame(Kind.CANCEL, 1, number(1500) + b"\0")
    first = beginning(2000, kind=Kind.REQUEST)
    assert acceptor.receive_data(first + cancel + chunk(1024, MORE)) == [CancelReceived(1, 1.5, False, True)]
    assert not acceptor.receiving_requests
    assert acceptor.receive_data(beginning(2000, 3, Kind.REQUEST) + cancel) == [CancelReceived(1, 1.5, False, False)]


def test_a_promise_costs_nothing() -> None:
    """R14: memory grows with what has arrived of a message, and not with what its first frame announces."""
    dialler, _ = calling()
    tracemalloc.start()
    try:
        dialler.receive_data(beginning(4_000_000) + chunk(10_000, MORE))
        kept, _ = tracemalloc.get_traced_memory()
        dialler.receive_data(chunk(900_000, MORE))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 100_000
    assert peak < 3_500_000


@pytest.mark.parametrize("size", [200_000, 900_000, 1_100_000, 3_000_000])
def test_a_large_message_is_copied_once(size: int) -> None:
    """Its blob is put together where it stays: at the end there is nothing to join, and no second one beside it."""
    dialler, acceptor = calling()
    data = whole(acceptor.response(1, b"p", [bytes(range(256)) * (size // 256)]))
    pieces = [data[at : at + 65_536] for at in range(0, len(data), 65_536)]
    tracemalloc.start()
    try:
        for piece in pieces[:-1]:
            assert dialler.receive_data(piece) == []
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        [event] = dialler.receive_data(pieces[-1])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - before < 150_000
    assert isinstance(event, ResponseReceived)
    assert (event.payload, event.blobs) == (b"p", [bytes(range(256)) * (size // 256)])


def test_a_call_that_ends_in_the_middle_of_a_chunk() -> None:
    """The rest of the chunk passes by, and what is behind it is read."""
    dialler, acceptor = calling()
    data = beginning(20_004) + chunk(10_000, MORE)
    assert dialler.receive_data(data[:5000]) == []
    dialler.forget(1)
    assert dialler.receive_data(data[5000:9000]) == []
    assert dialler.receive_data(data[9000:] + acceptor.ping(b"12345678")) == [PingReceived(b"12345678")]


def test_nothing_is_kept_for_an_ended_call() -> None:
    """Large messages of calls that are over pass by without being stored."""
    dialler, _ = calling()
    dialler.is_open = lambda _id: False
    tracemalloc.start()
    try:
        for _ in range(50):
            assert dialler.receive_data(beginning(20_004) + chunk(10_000, MORE)) == []
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 20_000


def test_a_call_that_ends_here_is_forgotten() -> None:
    """`forget` drops what has come of a message; the rest of it passes by."""
    dialler, _ = calling()
    dialler.receive_data(beginning(2004))
    dialler.forget(1)
    assert dialler.receive_data(chunk(2000)) == []


# -- sending -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4095, 4096, 4097])
@pytest.mark.parametrize("blobs", [(), (bytes(1000), bytes(500))], ids=["plain", "blobs"])
def test_what_is_too_large_for_the_peer_is_not_sent(size: int, blobs: Sequence[bytes]) -> None:
    """The peer's limit counts, prelude and blobs included; it costs no id."""
    dialler, acceptor = acquainted(a=Hello(max_message_size=4096))
    overhead = len(METHOD) + (2 + 4 * len(blobs) + sum(map(len, blobs)) if blobs else 0)
    payload = bytes(size - overhead)
    if size <= 4096:
        request_id, frames = dialler.request(METHOD, payload, blobs)
        assert message_size(frames) == size
        assert len(acceptor.receive_data(whole(frames))) == 1
        assert request_id == 1
    else:
        with pytest.raises(
            EncodeError, match=r"request of 4097 bytes is more than the 4096 .*max_message_size"
        ) as caught:
            dialler.request(METHOD, payload, blobs)
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        assert dialler.request(METHOD, b"")[0] == 1


def test_a_prelude_that_fits_no_frame_is_not_sent() -> None:
    """Metadata within its own limit may still be too much for one frame, which the whole prelude must fit."""
    _, acceptor = calling(d=Hello(max_frame_size=1024, max_metadata_size=8192))
    metadata = {"k": "x" * 1024}
    with pytest.raises(EncodeError, match=r"the prelude of a result .* 1020 .*max_frame_size"):
        acceptor.response(1, bytes(2000), metadata=metadata)
    with pytest.raises(EncodeError, match="the prelude of a stream's end"):
        acceptor.end(1, metadata)


BAD_METADATA = [{"k": 5}, {"k": None}, {5: "v"}, {b"k": "v"}, {"": "v"}, {"k" * 256: "v"}, {"k": "\ud800"}]


@pytest.mark.parametrize("metadata", BAD_METADATA, ids=repr)
def test_metadata_that_cannot_be_sent(metadata: Metadata) -> None:
    """Only text and bytes under short names: anything else is the caller's mistake, and costs its call alone."""
    with pytest.raises(EncodeError, match="metadata must map str to str or bytes") as caught:
        acquainted()[0].request(METHOD, b"", metadata=metadata)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_too_many_blobs() -> None:
    """More than the table can count are an error of that call."""
    with pytest.raises(EncodeError, match="16385 blobs is more than the 16384"):
        acquainted()[0].request(METHOD, b"", [b""] * 16_385)


@pytest.mark.parametrize(
    ("text", "payload", "metadata", "kept"),
    [
        ("é" * 9000, b"p", {"k": "v"}, ("é" * 256, b"p", {"k": "v"})),
        ("\ud800", b"p", None, (r"\ud800", b"p", None)),
        ("t", b"p", {"k": "v" * 9000}, ("t", b"p", None)),
        ("t", bytes(5000), {"k": "v"}, ("t", b"", None)),
    ],
    ids=["text", "surrogate", "metadata", "payload"],
)
def test_an_error_always_fits(
    text: str, payload: bytes, metadata: Metadata | None, kept: tuple[str, bytes, dict[str, str | bytes] | None]
) -> None:
    """What is too large in a failure is cut or left out: the call's end is never lost for it."""
    dialler, acceptor = calling(d=Hello(max_frame_size=1024, max_message_size=4096))
    frames = acceptor.error(1, Code.UNKNOWN, Outcome.FAILED, True, text, payload, metadata)
    assert dialler.receive_data(whole(frames)) == [ErrorReceived(1, Code.UNKNOWN, Outcome.FAILED, True, *kept)]


def test_a_goaway_is_cut_between_characters() -> None:
    """Its text never outgrows the smallest frame, and stays text."""
    dialler, acceptor = acquainted(d=Hello(max_frame_size=1024))
    assert dialler.receive_data(acceptor.goaway(0, Code.OK, "é" * 400)) == [GoAwayReceived(0, Code.OK, "é" * 256)]


def test_a_ping_carries_eight_bytes() -> None:
    """Others are refused here: the peer would end the connection for them."""
    with pytest.raises(LocalProtocolError, match="8 bytes, not 3"):
        acquainted()[0].ping(b"abc")


@pytest.mark.parametrize(("seconds", "sent"), [(-1.0, 0.0), (0.0, 1e-6), (2.5, 2.500001), (float("inf"), 1e12)])
def test_timeouts_are_rounded_up(seconds: float, sent: float) -> None:
    """The other side's timer is never the earlier one; what is endless is sent as very long."""
    dialler, acceptor = acquainted()
    [event] = acceptor.receive_data(whole(dialler.request(METHOD, b"", timeout=seconds)[1]))
    assert isinstance(event, RequestReceived)
    assert event.timeout == pytest.approx(sent)


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_request_is_stamped_anew(size: int) -> None:
    """The time left of a request that has waited is replaced in place, in a single frame and in a first one."""
    dialler, acceptor = acquainted()
    _, (first, rest) = dialler.request(METHOD, bytes(size), timeout=9.0, metadata={"k": "v"})
    [event] = acceptor.receive_data(whole((restamp(first, 3.0), rest)))
    assert isinstance(event, RequestReceived)
    assert (event.timeout, event.metadata, len(event.payload)) == (3.000001, {"k": "v"}, size)


def test_an_endless_cancel_wait_can_be_said() -> None:
    """Infinity becomes the longest wait that the frame can tell."""
    dialler, acceptor = calling()
    assert acceptor.receive_data(dialler.cancel(1, float("inf"))) == [CancelReceived(1, 4294967.295, False, False)]


# -- cost ----------------------------------------------------------------------------------------------------------


def calls_made(data: bytes, step: int) -> Counter[str]:
    """Feed a fresh peer in pieces; count the calls of built-in functions, by name."""
    _, acceptor = acquainted()
    counted: Counter[str] = Counter()
    pieces = [data[at : at + step] for at in range(0, len(data), step)]

    def note(_frame: object, event: str, function: object) -> None:
        if event == "c_call":
            counted[getattr(function, "__name__", "")] += 1

    sys.setprofile(note)
    try:
        events = [event for piece in pieces for event in acceptor.receive_data(piece)]
    finally:
        sys.setprofile(None)
    assert len(events) == 1
    return counted


def test_a_dribbled_frame_is_not_copied_again_for_each_byte() -> None:
    """W05: four times the bytes are four times the work; what copies a whole buffer is called just as rarely."""
    short, long = (calls_made(frame(Kind.REQUEST, 1, METHOD + bytes(size)), 1) for size in (10_000, 40_000))
    assert sum(long.values()) < 4.1 * sum(short.values())
    per_byte = {name for name, count in long.items() if count > 100}
    assert per_byte <= {"len", "write", "append"}
    assert {name: long[name] for name in long.keys() - per_byte} == {
        name: short[name] for name in short.keys() - per_byte
    }


def test_a_megabyte_one_byte_at_a_time() -> None:
    """W05: it arrives whole, and not before its last byte."""
    _, acceptor = acquainted(a=Hello(max_frame_size=1 << 21))
    data = frame(Kind.REQUEST, 1, METHOD + bytes(range(256)) * 4096)
    assert not any(acceptor.receive_data(data[at : at + 1]) for at in range(len(data) - 1))
    [event] = acceptor.receive_data(data[-1:])
    assert isinstance(event, RequestReceived)
    assert event.payload == bytes(range(256)) * 4096


def test_a_dribbled_frame_takes_its_own_size() -> None:
    """W05: many small pieces take no more memory than one large one."""
    _, acceptor = acquainted()
    data = frame(Kind.REQUEST, 1, METHOD + bytes(200_000), length=300_000)
    tracemalloc.start()
    try:
        for at in range(0, len(data), 2):
            acceptor.receive_data(data[at : at + 2])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * len(data)


def test_what_is_kept_holds_no_large_buffer() -> None:
    """An item that waits for its consumer keeps at most twice its size alive, whatever it arrived with."""
    dialler, acceptor = calling()
    items = [whole(acceptor.items(1, 1, bytes(size))) for size in (100, 5000, 30_000, 5000)]
    for event in dialler.receive_data(b"".join(items)) + dialler.receive_data(items[2]):
        assert isinstance(event, ItemsReceived)
        held = len(event.payload.obj) if isinstance(event.payload, memoryview) else len(event.payload)  # type: ignore[arg-type]
        assert held <= 2.1 * len(event.payload) + 1


def test_ping_and_large_frame_in_one_read() -> None:
    """Frames behind an incomplete one wait for it; those before it do not."""
    dialler, acceptor = calling()
    response = whole(acceptor.response(1, bytes(10_000)))
    data = acceptor.ping(b"12345678") + response
    assert dialler.receive_data(data[:100]) == [PingReceived(b"12345678")]
    [event] = dialler.receive_data(data[100:])
    assert isinstance(event, ResponseReceived)
    assert event.payload == bytes(10_000)


def test_repr_tells_the_state() -> None:
    """What it is, whether it knows its peer, and how far the ids are."""
    assert repr(Protocol(Role.ACCEPTOR, Hello())).startswith("<Protocol, acceptor: awaiting HELLO")
    assert "open, ids up to 1 here and 2 there" in repr(calling()[0])
