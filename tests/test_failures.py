"""Exceptions across the wire: declared ones keep their type, of others only a neutral text arrives."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any, ClassVar
from uuid import UUID

import attrs
import pytest
from hypothesis import given, strategies as st

from trio_rpc import Code, ConnectionLost, Overloaded, RemoteError, RpcError
from trio_rpc._failures import Failures
from trio_rpc.codecs import adapter_for

ID = UUID(int=5)
NOON = dt.datetime(2024, 1, 1, 12)
PEER = "tcp://10.0.0.1:7000"


class Plain(Exception):
    pass


class Narrower(Plain):
    pass


class OutOfStock(Exception):
    code = Code.FAILED_PRECONDITION

    def __init__(self, sku: str, left: int) -> None:
        INITS.append(sku)
        super().__init__(f"only {left} of {sku} left")
        self.sku = sku
        self.left = left
        self.connection = object()
        self._token = "secret"

    def reserve(self) -> None: ...


INITS: list[str] = []


@attrs.define
class Missing(Exception):
    id: UUID
    at: dt.datetime
    tries: int = 0
    _private: bytes = b"p"


@attrs.frozen
class Frozen(Exception):
    ids: list[UUID]
    text: str = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "text", "made")


@attrs.define
class Worded(Exception):
    sku: str

    def __attrs_post_init__(self) -> None:
        super().__init__(f"no {self.sku}")


@dataclasses.dataclass
class Dated(Exception):
    on: dt.date
    why: str = "because"


class Coded(Exception):
    def __init__(self, code: Code) -> None:
        super().__init__("coded")
        self.code = code


class Group(ExceptionGroup[Exception]):
    pass


@attrs.define
class Loose(Exception):
    text: str = "default"


class Own(RpcError):
    default_code: ClassVar[Code] = Code.ABORTED


class Sized(Exception):
    def __len__(self) -> int:
        return 0


class NoInit(Exception):
    def __new__(cls, *args: Any) -> NoInit:
        if not args or args == ("again",):
            raise RuntimeError("must not run again")
        return super().__new__(cls, *args)


def over(codec: str, exc: BaseException, raises: Any = (), **options: Any) -> Any:
    """What the caller gets."""
    failures = Failures(adapter_for(codec), raises)
    return failures.load(*failures.dump(exc, **options), PEER)


def content(exc: BaseException) -> tuple[Any, ...]:
    """What of an exception should arrive."""
    cls = type(exc)
    fields = [f.name for f in attrs.fields(cls)] if attrs.has(cls) else []
    public = {name: value for name, value in vars(exc).items() if not name.startswith("_") and name != "connection"}
    return cls, exc.args, str(exc), public, [getattr(exc, name) for name in fields]


DECLARED: list[BaseException] = [
    Plain(),
    Plain("a", 1, None, [2], {"b": 1.5}),
    OutOfStock("A-1", 2),
    Missing(ID, NOON, 3),
    Frozen([ID]),
    Worded("A-1"),
    Dated(dt.date(2024, 1, 1)),
    Coded(Code.NOT_FOUND),
    Sized("a"),
    NoInit("a"),
    ValueError("v"),
    KeyError("k"),
    OSError(2, "no such thing"),
    UnicodeDecodeError("utf-8", b"a", 0, 1, "bad"),
    StopIteration(5),
]


@pytest.mark.parametrize("exc", DECLARED, ids=lambda exc: type(exc).__name__)
def test_a_declared_exception_keeps_type_and_contents(codec: str, exc: BaseException) -> None:
    """Type, arguments, fields by their types, public attributes, text."""
    back = over(codec, exc, [OSError if isinstance(exc, OSError) else type(exc)])
    if isinstance(exc, OSError):
        assert (type(back), back.errno, back.args) == (FileNotFoundError, 2, exc.args)
    elif isinstance(exc, UnicodeDecodeError) and codec == "json":  # it holds bytes, in an untyped place
        assert (type(back), back.args) == (UnicodeDecodeError, ("utf-8", "b'a'", 0, 1, "bad"))
    else:
        assert content(back) == content(exc)


def test_no_constructor_of_a_program_runs(codec: str) -> None:
    """Neither `__init__` nor `__new__`, whose signatures are nobody's business."""
    exc = OutOfStock("A-1", 2)
    INITS.clear()
    back = over(codec, exc, [OutOfStock])
    assert (type(back), back.sku, INITS) == (OutOfStock, "A-1", [])
    assert not hasattr(back, "connection")
    assert not hasattr(back, "_token")


def test_a_subclass_travels_as_the_nearest_named_class(codec: str) -> None:
    """And as itself where it is named."""
    assert type(over(codec, Narrower("n"), [Plain, Exception])) is Plain
    assert type(over(codec, Narrower("n"), [Plain, Narrower])) is Narrower
    assert type(over(codec, Narrower("n"), [Exception])) is Exception
    assert type(over(codec, FileNotFoundError(2, "x"), [OSError])) is FileNotFoundError


CODES: list[tuple[BaseException, Code]] = [
    (Plain("x"), Code.UNKNOWN),
    (OutOfStock("A", 1), Code.FAILED_PRECONDITION),
    (Coded(Code.NOT_FOUND), Code.NOT_FOUND),
    (Coded(Code.OK), Code.UNKNOWN),
    (Own("x"), Code.ABORTED),
    (ExceptionGroup("g", [OutOfStock("A", 1), OutOfStock("B", 1)]), Code.FAILED_PRECONDITION),
    (ExceptionGroup("g", [OutOfStock("A", 1), Plain()]), Code.UNKNOWN),
]


@pytest.mark.parametrize(("exc", "code"), CODES)
def test_an_attribute_chooses_the_code(codec: str, exc: BaseException, code: Code) -> None:
    """Of the class or of the instance; UNKNOWN without one."""
    assert Failures(adapter_for(codec), [Plain, OutOfStock, Coded, Own]).dump(exc)[0] is code


UNDECLARED: list[BaseException] = [
    ValueError("secret"),
    OutOfStock("secret", 1),
    NotImplementedError("secret"),
    RpcError("secret"),
    Overloaded("secret"),
    ConnectionLost("secret", may_have_run=True),
    RemoteError("secret", peer="tcp://elsewhere:1", name="secret", data=["secret"]),
    RecursionError("secret"),
]


@pytest.mark.parametrize("exc", UNDECLARED, ids=lambda exc: type(exc).__name__)
def test_of_an_undeclared_exception_nothing_is_told(codec: str, exc: BaseException) -> None:
    """A RemoteError that may have run, with an id for the log; `raises=[Plain]` is no excuse."""
    exc.add_note("secret")
    failures = Failures(adapter_for(codec), [Plain])
    code, message, payload = failures.dump(exc, error_id="e-1")
    assert b"secret" not in payload
    assert "secret" not in message
    back: Any = failures.load(code, message, payload, PEER)
    assert type(back) is RemoteError
    assert (back.code, back.may_have_run, back.peer, back.error_id) == (Code.UNKNOWN, True, PEER, "e-1")
    assert back.message == "internal error (error id e-1)"
    assert not hasattr(back, "__notes__")


@pytest.mark.parametrize("exc", [NotImplementedError(), Overloaded("x"), RemoteError("x", peer="p")])
def test_exception_does_not_name_the_librarys_own(codec: str, exc: BaseException) -> None:
    """`raises=[Exception]` means a program's exceptions; an RpcError from elsewhere must be named."""
    assert type(over(codec, exc, [Exception, RuntimeError])) is RemoteError
    assert type(over(codec, exc, [type(exc)])) is type(exc)


def test_debug_tells_text_and_traceback(codec: str) -> None:
    """The traceback as a note, for declared ones too."""

    def fail(exc: Exception) -> Exception:
        try:
            raise exc
        except Exception as raised:
            return raised

    for exc in (ValueError("secret"), Plain("secret")):
        back = over(codec, fail(exc), [Plain], debug=True, error_id="e-1")
        assert "secret" in str(back)
        [note] = back.__notes__
        assert "in fail" in note
        assert len(over(codec, fail(ValueError("x" * 10**6)), debug=True).__notes__[0]) < 20_000


def test_a_remote_error_raised_on_purpose_is_meant_for_the_caller(codec: str) -> None:
    """Its code, message and data travel; who sent it is the caller's to say."""
    back = over(codec, RemoteError("no such sku", code=Code.NOT_FOUND, data={"sku": "A"}))
    assert type(back) is RemoteError
    assert (back.code, back.message, back.data) == (Code.NOT_FOUND, "no such sku", {"sku": "A"})
    assert (back.may_have_run, back.peer) == (True, PEER)
    assert over(codec, RemoteError("m", data=object)).data == "<class 'object'>"


def test_notes_travel(codec: str) -> None:
    """Sixteen of them, each bounded; what is no text is left."""
    exc = Frozen([])
    sent = [5, *(f"{number}" + "x" * 5000 for number in range(30))]
    object.__setattr__(exc, "__notes__", sent)
    notes = over(codec, exc, [Frozen]).__notes__
    assert [note[:2] for note in notes] == [
        "0x",
        "1x",
        "2x",
        "3x",
        "4x",
        "5x",
        "6x",
        "7x",
        "8x",
        "9x",
        *map(str, range(10, 15)),
    ]
    assert {len(note) for note in notes} == {1024}


def tree(exc: BaseException) -> Any:
    """Types and texts of a group."""
    if isinstance(exc, BaseExceptionGroup):
        return type(exc), exc.message, [tree(member) for member in exc.exceptions]
    return type(exc), str(exc)


def test_groups_cross_as_groups(codec: str) -> None:
    """Each member on its own: declared, or neutral; a declared class of groups is kept, and its message with it."""
    group = ExceptionGroup(
        "all", [Plain("p"), ExceptionGroup("in", [ValueError("secret"), KeyError("k")]), Group("g", [Plain("q")])]
    )
    back = over(codec, group, [Plain, KeyError, Group])
    neutral = (RemoteError, f"internal error (peer {PEER})")
    assert tree(back) == (
        ExceptionGroup,
        "several failures",
        [
            (Plain, "p"),
            (ExceptionGroup, "several failures", [neutral, (KeyError, "'k'")]),
            (Group, "g", [(Plain, "q")]),
        ],
    )
    with pytest.raises(ExceptionGroup) as caught:
        try:
            raise back
        except* Plain:
            pass
    assert caught.value.subgroup(Plain) is None
    assert caught.value.subgroup(KeyError) is not None


def test_a_base_group_of_exceptions_is_a_group(codec: str) -> None:
    """One with a KeyboardInterrupt in it arrives as a group of errors."""
    assert type(over(codec, BaseExceptionGroup("b", [Plain()]), [Plain])) is ExceptionGroup
    back = over(codec, BaseExceptionGroup("b", [Plain(), KeyboardInterrupt("secret")]), [Plain])
    assert tree(back) == (
        ExceptionGroup,
        "several failures",
        [(Plain, ""), (RemoteError, f"internal error (peer {PEER})")],
    )


def test_groups_are_bounded(codec: str) -> None:
    """Members in all, depth, and text."""
    wide = over(codec, Group("w" * 10_000, [Plain(str(n)) for n in range(5000)]), [Plain, Group])
    assert (len(wide.exceptions), len(wide.message)) == (100, 1024)
    assert "more exceptions left out" in str(wide.exceptions[-1])
    deep: Any = Plain("deepest")
    for _ in range(50):
        deep = Group("level", [deep])
    back = over(codec, deep, [Plain, Group])
    assert str(tree(back)).count("level") == 8
    big = ExceptionGroup("big", [Plain("x" * 60_000, "y" * 60_000) for _ in range(100)])
    _, _, payload = Failures(adapter_for(codec), [Plain]).dump(big)
    assert len(payload) < 500_000


class Awkward(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    @property
    def code(self) -> Code:
        raise RuntimeError("no code")


class NoArguments(Exception):
    @property
    def args(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no arguments")


def too_deep() -> Exception:
    """A real RecursionError."""

    def again() -> None:
        again()

    try:
        again()
    except RecursionError as error:
        return error
    raise AssertionError


def deeply(depth: int) -> Any:
    """Lists in lists."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


AWKWARD: list[tuple[Exception, type, Any]] = [
    (Awkward(1), Awkward, (1,)),
    (NoArguments(1), RemoteError, None),
    (too_deep(), RecursionError, None),
    (Plain("\ud800"), Plain, ("\\ud800",)),
    (Plain("\ud800" * 9000), Plain, None),
    (Plain(2**70), Plain, (str(2**70),)),
    (Plain(UUID(int=5), {1: 2}, {3}), Plain, (str(UUID(int=5)), "{1: 2}", "{3}")),
    (Plain(deeply(60)), Plain, (str(deeply(60)),)),
    (Plain(b"x" * 100_000), Plain, None),
    (Plain(*range(1000)), Plain, tuple(range(100))),
    (Plain(Awkward()), Plain, ("<Awkward>",)),
    (Missing(ID, "not a datetime"), RemoteError, None),  # type: ignore[arg-type]
    (Missing(ID, NOON, 2**70), RemoteError, None),
    (Worded("x" * 100_000), RemoteError, None),
    (Loose("x" * 100_000), RemoteError, None),
]


@pytest.mark.parametrize(("exc", "type_", "args"), AWKWARD, ids=range(len(AWKWARD)))
def test_an_awkward_exception_breaks_nothing(codec: str, exc: Exception, type_: Any, args: Any) -> None:
    """P07: what does not travel becomes text, or the exception a RemoteError that names it; never an error of ours."""
    raises = [Awkward, NoArguments, Plain, Missing, Worded, Loose, RecursionError]
    back = over(codec, exc, raises, debug=True)
    assert back.__class__ is type_
    assert args is None or back.args == args
    if type_ is RemoteError and not isinstance(exc, NoArguments):
        assert back.name == type(exc).__name__
        assert any("its fields could not be sent" in note for note in back.__notes__)


def test_a_class_that_the_caller_does_not_know(codec: str) -> None:
    """Arrives as a RemoteError with its name and its data; nothing is looked up or imported."""
    server = Failures(adapter_for(codec), [OutOfStock, Missing])
    client = Failures(adapter_for(codec), [])
    back: Any = client.load(*server.dump(OutOfStock("A-1", 2)), PEER)
    assert (type(back), back.name, back.data) == (RemoteError, "OutOfStock", ["only 2 of A-1 left"])
    assert (back.code, back.message) == (Code.FAILED_PRECONDITION, "only 2 of A-1 left")
    back = client.load(*server.dump(Missing(ID, NOON)), PEER)
    assert (back.name, back.data["id"], back.data["tries"]) == ("Missing", str(ID), 0)


def test_an_older_peer_may_leave_fields_out(codec: str) -> None:
    """Defaults apply, as for any attrs class; a required one makes it a RemoteError."""
    failures = Failures(adapter_for(codec), [Missing])
    encode = adapter_for(codec).carrier(Any).encode
    fields = {"id": str(ID), "at": NOON.isoformat(), "new": 1}
    back: Any = failures.load(2, "m", encode({"name": "Missing", "fields": fields})[0], PEER)
    assert (type(back), back.tries, back._private) == (Missing, 0, b"p")
    back = failures.load(2, "m", encode({"name": "Missing", "fields": {"id": str(ID)}})[0], PEER)
    assert (type(back), back.name, back.message) == (RemoteError, "Missing", "m")


HOSTILE_ATTRIBUTES = dict.fromkeys(
    ("args", "with_traceback", "add_note", "__notes__", "__class__", "__dict__", "_token", "reserve", "setter"), 5
)


class WithSetter(OutOfStock):
    @property
    def setter(self) -> int:
        return 1

    @setter.setter
    def setter(self, value: int) -> None:
        raise AssertionError("ran with a stranger's value")


def test_a_hostile_peer_sets_plain_attributes_only(codec: str) -> None:
    """No method is hidden, no setter runs, nothing private changes."""
    failures = Failures(adapter_for(codec), [WithSetter])
    node = {"name": "WithSetter", "args": ["a"], "attributes": {**HOSTILE_ATTRIBUTES, "sku": "A"}}
    back: Any = failures.load(2, "m", adapter_for(codec).carrier(Any).encode(node)[0], PEER)
    assert (type(back), back.args, vars(back)) == (WithSetter, ("a",), {"sku": "A"})
    assert callable(back.with_traceback)


NODE = st.recursive(
    st.none() | st.integers(-5, 20) | st.text(max_size=3) | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["name", "args", "given", "fields", "attributes", "notes", "members", "code", "message", "coded"]
            )
            | st.sampled_from(["id", "at", "tries", "sku", "data", "error_id"]),
            inner | st.sampled_from(["Plain", "Missing", "Group", "OSError", "Own"]),
            max_size=6,
        )
    ),
    max_leaves=15,
)


@given(node=NODE, code=st.integers(-1, 20), junk=st.binary(max_size=20))
def test_any_payload_becomes_an_exception(node: Any, code: int, junk: bytes) -> None:
    """Whatever the peer sends, the call gets one Exception, which may be raised and noted."""
    for name in ("msgpack", "json"):
        failures = Failures(adapter_for(name), [Plain, Missing, Group, OSError, Own, UnicodeDecodeError, Worded])
        for payload in (adapter_for(name).carrier(Any).encode(node)[0], junk):
            back = failures.load(code, "m", payload, None)
            assert isinstance(back, Exception)
            back.add_note(f"{back!r} {back}")


@pytest.mark.parametrize(
    ("raises", "message"),
    [
        ([int], "raises= takes subclasses of Exception, not <class 'int'>"),
        (["Plain"], "raises= takes subclasses of Exception, not 'Plain'"),
        ([KeyboardInterrupt], "raises= takes subclasses of Exception"),
        ([Plain, type("Plain", (Exception,), {})], "raises= names two classes Plain, and the name is what travels"),
        (
            [attrs.make_class("Bad", {"x": attrs.field(type=complex)}, (Exception,))],
            "field 'x' of Bad: no codec carries",
        ),
    ],
)
def test_a_wrong_declaration_is_told_early(codec: str, raises: Any, message: str) -> None:
    """When the contract is read, not when the exception is raised."""
    with pytest.raises(TypeError, match=message):
        Failures(adapter_for(codec), raises)


@pytest.fixture(params=["msgpack", "json"])
def codec(request: pytest.FixtureRequest) -> str:
    """The name of a codec."""
    name: str = request.param
    return name
