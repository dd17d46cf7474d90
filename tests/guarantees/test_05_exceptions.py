"""Guarantee 5: exceptions keep their type, and what was not declared stays at home."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator

import attrs
import pytest
import trio
import trio.lowlevel

from tests.guarantees.kit import Lab
from trio_rpc import Code, RemoteError, current_call, method
from trio_rpc.testing import open_loopback


class Shortage(Exception):
    """What the contract names."""

    built = 0

    def __init__(self, sku: str) -> None:
        Shortage.built += 1
        super().__init__(sku)


class SevereShortage(Shortage):
    """What the contract does not name."""


@attrs.define
class Typed(Exception):
    left: int


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


class Failing:
    """`fault` is what each handler raises."""

    def __init__(self) -> None:
        self.fault: BaseException = ValueError("secret text")

    @method(raises=[Shortage, Typed, trio.TooSlowError])
    async def fail(self) -> None:
        raise self.fault

    @method(raises=[Shortage])
    async def stream(self) -> AsyncGenerator[int, None]:
        yield 1
        raise self.fault

    @method
    async def bad_result(self) -> int:
        return "seven"  # type: ignore[return-value]

    @method
    async def bad_item(self) -> AsyncGenerator[int, None]:
        yield 1
        yield "two"  # type: ignore[misc]

    @method
    async def bad_metadata(self) -> int:
        current_call().reply_metadata["key"] = 5  # type: ignore[assignment]
        return 1

    @method
    async def bad_metadata_at_the_end(self) -> AsyncGenerator[int, None]:
        yield 1
        await trio.lowlevel.checkpoint()
        current_call().reply_metadata["key"] = 5  # type: ignore[assignment]

    @method
    async def echo(self, number: int) -> int:
        return number


async def test_declared_classes_come_back_as_themselves() -> None:
    """5: what `raises` names arrives as that class, with its arguments or fields, and its `__init__` does not run."""
    service = Failing()
    async with open_loopback(service) as pool:
        service.fault = Shortage("A-1")
        built = Shortage.built
        with pytest.raises(Shortage) as caught:
            await pool.stub(Failing).fail()
        assert (caught.value.args, Shortage.built) == (("A-1",), built)
        service.fault = Typed(left=3)
        with pytest.raises(Typed) as typed:
            await pool.stub(Failing).fail()
        assert typed.value.left == 3


async def test_a_subclass_travels_as_the_nearest_named_class() -> None:
    """5: a subclass that the contract does not name arrives as the one it does."""
    service = Failing()
    service.fault = SevereShortage("A-2")
    async with open_loopback(service) as pool:
        with pytest.raises(Shortage) as caught:
            await pool.stub(Failing).fail()
    assert type(caught.value) is Shortage


@pytest.mark.parametrize(
    "fault", [ValueError("secret text"), Unprintable(), StopIteration(1), SystemExit("secret text")]
)
async def test_what_is_not_declared_stays_at_home(caplog: pytest.LogCaptureFixture, fault: BaseException) -> None:
    """P05, X10, Rule 13, 5: anything else is a RemoteError with an error id that finds text and traceback in the
    server's log only.
    """
    service = Failing()
    service.fault = fault
    async with open_loopback(service) as pool:
        with caplog.at_level(logging.ERROR), pytest.raises(RemoteError) as caught:
            await pool.stub(Failing).fail()
        assert await pool.stub(Failing).echo(1) == 1
    error = caught.value
    assert "secret" not in str(error)
    assert error.may_have_run
    assert error.error_id
    assert error.error_id in caplog.text


async def test_debug_tells_the_text() -> None:
    """5: with `debug=True` the caller sees what happened."""
    async with open_loopback(Failing(), debug=True) as pool:
        with pytest.raises(RemoteError) as caught:
            await pool.stub(Failing).fail()
    assert "secret text" in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))


async def test_groups_cross_as_groups() -> None:
    """P07, 5: an ExceptionGroup arrives as one, with its structure, so that `except*` works on it."""
    service = Failing()
    service.fault = ExceptionGroup("two", [Shortage("A"), ExceptionGroup("inner", [Typed(1), ValueError("secret")])])
    async with open_loopback(service) as pool:
        with pytest.raises(ExceptionGroup) as caught:
            await pool.stub(Failing).fail()
    assert caught.group_contains(Shortage, depth=1)
    assert caught.group_contains(Typed, depth=2)
    assert caught.group_contains(RemoteError, depth=2)


async def test_an_error_in_a_stream_comes_behind_its_items() -> None:
    """S17, 5: a generator's declared error is raised where the next item would have been."""
    service = Failing()
    service.fault = Shortage("A-3")
    async with open_loopback(service) as pool:
        async with pool.stub(Failing).stream() as items:
            assert await items.receive() == 1
            with pytest.raises(Shortage, match="A-3"):
                await items.receive()


async def test_a_handler_may_choose_its_code() -> None:
    """5: a RemoteError that a handler raises on purpose arrives with its code and text."""
    service = Failing()
    service.fault = RemoteError("no such sku", code=Code.NOT_FOUND)
    async with open_loopback(service) as pool:
        with pytest.raises(RemoteError, match="no such sku") as caught:
            await pool.stub(Failing).fail()
    assert (caught.value.code, caught.value.error_id) == (Code.NOT_FOUND, "")


@pytest.mark.parametrize("name", ["bad_result", "bad_item", "bad_metadata", "bad_metadata_at_the_end"])
async def test_what_cannot_be_sent_costs_its_own_call(name: str) -> None:
    """W17, 5 and 7: a result, item or metadata that cannot be encoded fails its call, and nothing else on the
    connection.
    """
    async with open_loopback(Failing()) as pool:
        stub = pool.stub(Failing)
        with pytest.raises(RemoteError):
            if name in ("bad_result", "bad_metadata"):
                await getattr(stub, name)()
            else:
                async with getattr(stub, name)() as items:
                    async for _ in items:
                        pass
        assert await stub.echo(1) == 1
        assert (pool.statistics().connects, pool.statistics().lost) == (1, 0)


class Suspending(Lab):
    @method
    async def raises_after_a_wait(self) -> None:
        await trio.sleep(0.001)
        raise RuntimeError("secret text")


async def test_it_does_not_matter_whether_the_handler_had_suspended(caplog: pytest.LogCaptureFixture) -> None:
    """5: the same for a failure at once and one after a wait; each is logged once, with its own id."""
    async with open_loopback(Suspending()) as pool:
        ids = set()
        for _ in range(5):
            with pytest.raises(RemoteError) as caught:
                await pool.stub(Suspending).raises_after_a_wait()
            ids.add(caught.value.error_id)
    assert len(ids) == 5
    assert caplog.text.count("RuntimeError: secret text") == 5
