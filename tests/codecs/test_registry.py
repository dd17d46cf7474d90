"""Codecs by name, codecs of one's own, and hooks for types of one's own."""

from __future__ import annotations

import ast
import datetime as dt
import threading
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import attrs
import pytest

from trio_rpc import DecodeError, EncodeError, codecs

ID = UUID(int=5)


class Literals:
    """A codec that writes Python literals."""

    name = "literals"

    def encode(self, value: object, blobs: list[codecs.Buffer]) -> bytes:
        try:
            return repr(value).encode()
        except UnicodeEncodeError as error:
            raise EncodeError(str(error)) from error

    def decode(self, data: bytes | memoryview, blobs: Sequence[bytes]) -> object:
        try:
            return ast.literal_eval(str(data, "utf-8"))
        except (ValueError, SyntaxError) as error:
            raise DecodeError(str(error)) from error


@attrs.frozen
class Record:
    id: UUID
    at: dt.datetime
    data: bytes


def test_codecs_have_names() -> None:
    """The built-in ones are found; an unknown name is told with those there are."""
    assert codecs.names()[:2] == ("msgpack", "json")
    assert codecs.get("json").name == "json"
    for find in (codecs.get, codecs.adapter_for):
        with pytest.raises(LookupError, match="no codec is named 'pickle': choose one of msgpack, json"):
            find("pickle")


def test_adapters_and_carriers_are_made_once(codec: str) -> None:
    """So that asking again costs nothing."""
    adapter = codecs.adapter_for(codec)
    assert codecs.adapter_for(codec) is adapter
    assert adapter.carrier(Record) is adapter.carrier(Record)
    assert adapter.codec is codecs.get(codec)


def test_an_own_codec_is_adapted_like_json() -> None:
    """It needs to know plain values only; large buffers travel beside its payload all the same."""
    own = Literals()
    codecs.register(own)
    codecs.register(own)
    with pytest.raises(ValueError, match="a codec named 'literals' is registered already"):
        codecs.register(Literals())
    carrier = codecs.adapter_for("literals").carrier(Record)
    for data in (b"small", bytes(100_000)):
        record = Record(ID, dt.datetime(2024, 1, 1, tzinfo=dt.UTC), data)
        payload, blobs = carrier.encode(record)
        assert len(payload) < 1000
        assert carrier.decode(payload, [bytes(blob) for blob in blobs]) == record


class Money:
    """A type that nothing knows."""

    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and self.cents == other.cents

    __hash__ = None  # type: ignore[assignment]


@attrs.frozen
class Bill:
    total: Money
    extra: list[Money | int | None]
    id: UUID


@pytest.mark.parametrize("make", [codecs.MessagePack, codecs.Json])
def test_a_program_registers_hooks_for_its_own_types(make: type[codecs.MessagePack | codecs.Json]) -> None:
    """With cattrs, before the first use; they hold inside other types, and what they raise gets a path."""
    adapter = codecs.Adapter(make())
    adapter.converter.register_unstructure_hook(Money, lambda money: f"{money.cents} ct")
    adapter.converter.register_structure_hook(Money, lambda text, _: Money(int(text.removesuffix(" ct"))))
    adapter.converter.register_unstructure_hook(UUID, lambda value: value.hex)
    adapter.converter.register_structure_hook(UUID, lambda text, _: UUID(hex=text))
    carrier = adapter.carrier(Bill)
    bill = Bill(Money(5), [Money(7), 8, None], ID)
    payload, _ = carrier.encode(bill)
    assert carrier.decode(payload, ()) == bill
    assert adapter.carrier(Any).decode(payload, ()) == {
        "total": "5 ct",
        "extra": [{"Money": "7 ct"}, 8, None],
        "id": ID.hex,
    }
    bad, _ = adapter.carrier(Any).encode({"total": "much", "extra": [], "id": ID.hex})
    with pytest.raises(DecodeError, match=r"^\$\.total: ValueError: invalid literal for int"):
        carrier.decode(bad, ())


def test_the_converter_is_strict_for_whoever_calls_it(codec: str) -> None:
    """Hooks of a program may call it for what they hold."""
    converter = codecs.Adapter(codecs.get(codec)).converter
    assert converter.unstructure(Record(ID, dt.datetime(2024, 1, 1), b"").id) == str(ID)
    assert converter.structure([1, 2], list[int]) == [1, 2]
    assert converter.structure("a", str) == "a"
    with pytest.raises(Exception, match="expected int, got str '7'"):
        converter.structure("7", int)


def test_threads_may_share_a_codec(codec: str) -> None:
    """Each call has a packer and buffers of its own."""
    carrier = codecs.adapter_for(codec).carrier(dict[str, bytes])
    failures = []

    def work(number: int) -> None:
        value = {"a": bytes([number]) * (70_000 if number % 2 else 10)}
        for _ in range(50):
            payload, blobs = carrier.encode(value)
            if carrier.decode(payload, [bytes(blob) for blob in blobs]) != value:
                failures.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
