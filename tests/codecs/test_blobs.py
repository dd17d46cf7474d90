"""Large buffers travel beside the payload, uncopied."""

from __future__ import annotations

from typing import Any

import attrs
import msgpack
import pytest

from trio_rpc import DecodeError, EncodeError
from trio_rpc.codecs import BLOB_SIZE, Buffer, adapter_for

LARGE = bytes(BLOB_SIZE)
SMALL = bytes(BLOB_SIZE - 1)


@attrs.frozen
class File:
    name: str
    data: bytes
    parts: list[bytes] = attrs.field(factory=list)
    other: bytes | str | None = None


BUFFERS: list[Buffer] = [
    bytes(BLOB_SIZE),
    bytearray(BLOB_SIZE),
    memoryview(bytes(BLOB_SIZE)),
    memoryview(bytearray(BLOB_SIZE)),
]


@pytest.mark.parametrize("buffer", BUFFERS, ids=["bytes", "bytearray", "memoryview", "writable memoryview"])
def test_a_large_buffer_is_handed_out_itself(codec: str, buffer: Buffer) -> None:
    """The very same object, wherever it lies; the payload holds a few bytes for it."""
    for type_, value in [(bytes, buffer), (list[bytes], [buffer]), (File, File("n", buffer))]:  # type: ignore[arg-type]
        payload, [blob] = adapter_for(codec).carrier(type_).encode(value)
        assert blob is buffer
        assert len(payload) < 200


def test_buffers_come_back_where_they_were(codec: str) -> None:
    """Several in one message, between small ones."""
    second, third = b"2" * BLOB_SIZE, b"3" * (BLOB_SIZE + 1)
    file = File("n", LARGE, [b"small", second, LARGE], third)
    carrier = adapter_for(codec).carrier(File)
    payload, blobs = carrier.encode(file)
    assert [id(blob) for blob in blobs] == [id(LARGE), id(second), id(LARGE), id(third)]
    assert carrier.decode(payload, [bytes(blob) for blob in blobs]) == file


def test_smaller_ones_stay_inside(codec: str) -> None:
    """One byte less than 64 KiB is part of the payload."""
    for type_ in (bytes, File):
        payload, blobs = adapter_for(codec).carrier(type_).encode(SMALL if type_ is bytes else File("n", SMALL))
        assert blobs == []
        assert len(payload) > len(SMALL)


@pytest.mark.parametrize("value", [LARGE, [LARGE], {"a": [1, {"b": LARGE}]}, (1, LARGE), [LARGE, "x" * 100_000, LARGE]])
def test_untyped_places_of_msgpack_hand_them_out_too(value: Any) -> None:
    """However deep they lie."""
    carrier = adapter_for("msgpack").carrier(Any)
    payload, blobs = carrier.encode(value)
    assert blobs
    assert all(blob is LARGE for blob in blobs)
    assert carrier.decode(payload, blobs) == (list(value) if isinstance(value, tuple) else value)  # type: ignore[arg-type]


def test_typed_and_untyped_ones_share_the_numbering() -> None:
    """The indices of one message are those of its buffers."""
    other = b"o" * BLOB_SIZE
    carrier = adapter_for("msgpack").carrier(tuple[bytes, Any])
    payload, blobs = carrier.encode((LARGE, [other]))
    assert carrier.decode(payload, [bytes(blob) for blob in blobs]) == (LARGE, [other])


def test_wide_and_strided_views_become_bytes(codec: str) -> None:
    """A view's length is its number of bytes when it is handed out."""
    wide = memoryview(bytes(4 * BLOB_SIZE)).cast("I")
    payload, [blob] = adapter_for(codec).carrier(bytes).encode(wide)
    assert len(blob) == 4 * BLOB_SIZE
    strided = memoryview(b"ab" * BLOB_SIZE)[::2]
    payload, [blob] = adapter_for(codec).carrier(bytes).encode(strided)
    assert adapter_for(codec).carrier(bytes).decode(payload, [bytes(blob)]) == b"a" * BLOB_SIZE


def test_outside_of_a_message_buffers_stay_inside(codec: str) -> None:
    """The converter's hooks, called by a program between two messages, have nowhere to put them."""
    adapter = adapter_for(codec)
    adapter.carrier(bytes).encode(LARGE)
    assert len(adapter.converter.unstructure(LARGE)) >= len(LARGE)


def test_a_refused_value_hands_out_nothing(codec: str) -> None:
    """Its buffers do not turn up in the next message."""
    carrier = adapter_for(codec).carrier(list[bytes])
    with pytest.raises(EncodeError):
        carrier.encode([LARGE, "no bytes"])
    assert carrier.encode([b"x"])[1] == []


def test_json_placeholders_mean_something_in_typed_places_only() -> None:
    """An untyped map that looks like one is a map."""
    adapter = adapter_for("json")
    payload, _ = adapter.carrier(Any).encode({"$blob": 0})
    assert adapter.carrier(Any).decode(payload, [LARGE]) == {"$blob": 0}
    assert adapter.carrier(bytes).decode(payload, [LARGE]) == LARGE


@pytest.mark.parametrize(
    "plain", [{"$blob": 1}, {"$blob": -1}, {"$blob": True}, {"$blob": "0"}, {"$blob": 0, "a": 1}, {}]
)
def test_json_placeholders_are_checked(plain: Any) -> None:
    """A wrong number, or more than a number."""
    adapter = adapter_for("json")
    payload, _ = adapter.carrier(Any).encode(plain)
    with pytest.raises(DecodeError, match="expected the number of a buffer that came with the message"):
        adapter.carrier(bytes).decode(payload, [LARGE])


def test_msgpack_placeholders_are_checked() -> None:
    """A wrong number, and a buffer that nothing refers to."""
    carrier = adapter_for("msgpack").carrier(Any)
    with pytest.raises(DecodeError, match="buffer 1 did not come with the message"):
        carrier.decode(msgpack.packb(msgpack.ExtType(1, b"\0\0\0\x01")), [LARGE])
    with pytest.raises(DecodeError, match="1 of 1 buffers have no place in the message"):
        carrier.decode(b"\xc0", [LARGE])
