"""Exceptions across the wire: declared ones keep their type, the text of all others stays at home.

What a handler raised becomes a code, a text and a payload, a tree of plain maps; the other side rebuilds the exception
from the classes that its own contract names. Nothing is imported by name, and no `__init__` of a program's class runs.
"""

from __future__ import annotations

import dataclasses
import operator
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import attrs

from ._errors import Code, CodecError, EncodeError, RemoteError, RpcError
from ._text import readable
from .codecs import Adapter, Buffer
from .codecs._records import Fields, bare_exception, is_free, put

__all__ = ["MAX_TEXT", "NEUTRAL", "NOT_ENTERED", "Failures", "neutral"]

MAX_TEXT = 4096
"""Characters of a message. A refusal or a failure is read by people; data belongs in fields."""

MAX_NOTES = 16
MAX_NOTE = 1024
"""Notes of one exception, and the characters of each."""

MAX_TRACEBACK = 16 * 1024
"""Characters of a traceback (debug only); its end is kept, where the raise is."""

MAX_MEMBERS = 100
MAX_GROUPS_DEEP = 8
"""Exceptions in one tree, and groups inside groups: a nursery of 10,000 failures says no more than its first hundred."""

MAX_DATA = 64 * 1024
"""Bytes of all fields, arguments, attributes and notes in one tree; what does not fit is left out, or becomes text."""

MAX_ARGUMENTS = 100

WRAPPED = 2 * MAX_GROUPS_DEEP + 6
"""Containers around a value where it lies deepest: its depth must leave room for them."""

NEUTRAL = "internal error"
NEUTRAL_GROUP = "several failures"
NOT_ENTERED = "before the handler was entered"

Node = dict[str, Any]


class Failures:
    """The exceptions of one method, for one codec.

    Args:
        adapter: types for the connection's codec.
        raises: the classes that the contract names. TypeError for what is no subclass of Exception, for two of one
            name, and for fields that no codec carries.
    """

    def __init__(self, adapter: Adapter, raises: Sequence[type[BaseException]] = ()) -> None:
        self._codec = adapter.codec
        self._declared: dict[str, type[Exception]] = {}
        self._fields: dict[type, Fields] = {}
        for cls in raises:
            self._declare(cls, adapter)

    def _declare(self, cls: Any, adapter: Adapter) -> None:
        if not (isinstance(cls, type) and issubclass(cls, Exception)):
            raise TypeError(f"raises= takes subclasses of Exception, not {cls!r}")
        if self._declared.setdefault(cls.__name__, cls) is not cls:
            raise TypeError(f"raises= names two classes {cls.__name__}, and the name is what travels: rename one")
        if attrs.has(cls) or dataclasses.is_dataclass(cls):
            self._fields[cls] = adapter.fields(cls)

    def dump(self, exc: BaseException, *, debug: bool = False, error_id: str = "") -> tuple[Code, str, bytes]:
        """Return code, message and payload. Never raises for what the exception is or does.

        Args:
            exc: what the handler raised.
            debug: send the text and the traceback of exceptions that the contract does not name, too.
            error_id: what finds the traceback in the server's log.
        """
        node = _Dumper(self, debug, error_id).node(exc)
        if debug:
            node["notes"] = [*node.get("notes", ()), *_traceback(exc)]
        code, message = Code(node.pop("code")), node.pop("message")
        try:
            return code, message, self._codec.encode(node, [])
        except EncodeError:  # many members of moderate size together; the tree is worth less than the call
            return code, message, self._codec.encode({"error_id": error_id}, [])

    def load(self, code: int, message: str, payload: bytes | memoryview, peer: str | None) -> Exception:
        """Return the exception that `dump` was given, or a RemoteError. Never raises, whatever the payload is."""
        try:
            node = self._codec.decode(payload, ())
        except CodecError:
            node = None
        tree = node if isinstance(node, dict) else {}
        return _Loader(self, peer).exception({**tree, "code": code, "message": message})

    def nearest(self, exc: BaseException) -> type[Exception] | None:
        """Return the class that the contract names for `exc`, if it does.

        `raises=[Exception]` does not mean the library's own errors and NotImplementedError: these must be named.
        """
        special = next((kind for kind in (RpcError, NotImplementedError) if isinstance(exc, kind)), Exception)
        for cls in type(exc).__mro__:
            if self._declared.get(cls.__name__) is cls and issubclass(cls, special):
                return cls
        return None

    def named(self, name: object) -> type[Exception] | None:
        """Return the class that the contract names so."""
        return self._declared.get(name) if isinstance(name, str) else None

    def fields(self, cls: type) -> Fields | None:
        """Return the typed fields of a named class, if it is an attrs class or a dataclass."""
        return self._fields.get(cls)

    def size(self, value: Any) -> int | None:
        """Return the bytes that an untyped value takes, or None if it would not arrive as it is."""
        beside: list[Buffer] = []
        for _ in range(WRAPPED):
            value = [value]
        try:
            data = self._codec.encode(value, beside)
            self._codec.decode(data, ())
        except CodecError:
            return None
        return None if beside else len(data)


class _Dumper:
    """One failure on its way out."""

    def __init__(self, failures: Failures, debug: bool, error_id: str) -> None:
        self._failures = failures
        self._debug = debug
        self._error_id = error_id
        self._members_left = MAX_MEMBERS
        self._bytes_left = MAX_DATA

    def node(self, exc: BaseException, depth: int = 0) -> Node:
        """Return one exception as a map; it always has `code` and `message`."""
        self._members_left -= 1
        try:
            node = self._known(exc, depth)
        except BaseException:  # its attributes may be properties, which may do anything
            node = None
        if node is None:
            return self._undeclared(exc)
        own = _notes(exc) if self._may_tell(exc) else ()
        node["notes"] = [note for note in [*node.get("notes", ()), *own] if self._takes(note)]
        return node

    def _may_tell(self, exc: BaseException) -> bool:
        """Whether the words of what crosses may cross as well: a group's, of no class that the contract names, stay."""
        return self._debug or not isinstance(exc, BaseExceptionGroup) or self._failures.nearest(exc) is not None

    def _known(self, exc: BaseException, depth: int) -> Node | None:
        if isinstance(exc, BaseExceptionGroup):
            return self._group(exc, depth)
        if (cls := self._failures.nearest(exc)) is not None:
            message = _cut(_string(exc), MAX_NOTE if depth else MAX_TEXT)
            return {"code": _code(exc), "message": message, **self._declared(cls, exc)}
        if isinstance(exc, RemoteError) and exc.peer is None:
            return self._deliberate(exc)
        return None

    def _takes(self, value: Any) -> bool:
        """Whether a value arrives as it is, within what this failure may still spend."""
        size = self._failures.size(value)
        if size is None or size > self._bytes_left:
            return False
        self._bytes_left -= size
        return True

    def _group(self, group: BaseExceptionGroup[Any], depth: int) -> Node:
        if depth >= MAX_GROUPS_DEEP:
            return _left_out("a group that lies too deep")
        cls = self._failures.nearest(group)
        members: list[Node] = []
        for member in group.exceptions:
            if self._members_left <= 0:
                members.append(_left_out(f"{len(group.exceptions) - len(members)} more exceptions"))
                break
            members.append(self.node(member, depth + 1))
        codes = {member["code"] for member in members}
        node: Node = {"code": codes.pop() if len(codes) == 1 else Code.UNKNOWN.value, "members": members}
        message = _cut(_string(group.message), MAX_NOTE) if self._may_tell(group) else NEUTRAL_GROUP
        return {**node, "message": message, "name": cls.__name__ if cls else ""}

    def _declared(self, cls: type[Exception], exc: BaseException) -> Node:
        node: Node = {"name": cls.__name__, "coded": isinstance(dict(_own_attributes(exc)).get("code"), Code)}
        fields = self._failures.fields(cls)
        if fields is None:
            return node | self._arguments(exc) | self._attributes(exc)
        try:
            values = fields.dump(exc)
        except EncodeError as error:
            return {**node, "notes": [f"its fields could not be sent: {error.outline or error.message}"]}
        if not self._takes(values):
            return {**node, "notes": ["its fields could not be sent: they are too large"]}
        return {**node, "fields": values, **self._arguments_in(exc, fields.parameters)}

    def _arguments_in(self, exc: BaseException, parameters: tuple[str, ...]) -> Node:
        """Return how many of its fields are its arguments too, or the arguments, where they are something else."""
        values = [getattr(exc, name) for name in parameters[: len(exc.args)]]
        if len(values) == len(exc.args) and all(map(operator.is_, values, exc.args)):
            return {"given": len(values)}
        return self._arguments(exc)

    def _arguments(self, exc: BaseException) -> Node:
        args = exc.args[:MAX_ARGUMENTS]
        return {"args": [value if self._takes(value) else _cut(_string(value), MAX_NOTE) for value in args]}

    def _attributes(self, exc: BaseException) -> Node:
        """Return its public instance attributes, those that arrive as they are."""
        own = [(name, value) for name, value in _own_attributes(exc) if not isinstance(value, Code)]
        return {"attributes": {name: value for name, value in own[:MAX_ARGUMENTS] if self._takes([name, value])}}

    def _deliberate(self, exc: RemoteError) -> Node:
        """Return a RemoteError that the handler has made: its words are meant for the caller."""
        data = exc.data if self._takes(exc.data) else _cut(_string(exc.data), MAX_NOTE)
        named = {"name": _cut(_string(exc.name), MAX_NOTE), "error_id": _cut(_string(exc.error_id), MAX_NOTE)}
        return {"code": _code(exc), "message": _cut(_string(exc.message), MAX_TEXT), "data": data, **named}

    def _undeclared(self, exc: BaseException) -> Node:
        message = neutral(self._error_id)
        if self._debug:
            message = _cut(f"{type(exc).__name__}: {_string(exc)}", MAX_NOTE)
        return {"code": Code.UNKNOWN.value, "message": message, "error_id": self._error_id}


class _Loader:
    """One failure on its way in. The peer may have sent anything."""

    def __init__(self, failures: Failures, peer: str | None) -> None:
        self._failures = failures
        self._peer = peer
        self._left = 2 * MAX_MEMBERS

    def exception(self, node: Node, depth: int = 0) -> Exception:
        """Return what one map stands for."""
        self._left -= 1
        code, message = _as_code(node.get("code")), _as_text(node.get("message"), MAX_TEXT)
        exc = self._group(node, message, depth)
        if exc is None:  # not by truth: an exception may have a length
            exc = self._declared(node, code)
        if exc is None:
            exc = self._remote(node, code, message)
        notes = node.get("notes")
        if isinstance(notes, list) and notes:
            put(exc, "__notes__", [_as_text(note, MAX_TRACEBACK) for note in notes[: MAX_NOTES + 2]])
        return exc

    def _group(self, node: Node, message: str, depth: int) -> Exception | None:
        members = node.get("members")
        if not isinstance(members, list) or depth > MAX_GROUPS_DEEP:
            return None
        nodes = [member for member in members if isinstance(member, dict)][: max(0, self._left)]
        inner = [self.exception(member, depth + 1) for member in nodes]
        cls = self._failures.named(node.get("name"))
        if not inner:
            return None
        if cls is None or not issubclass(cls, ExceptionGroup):
            return ExceptionGroup(message, inner)
        return ExceptionGroup.__new__(cls, message, inner)

    def _declared(self, node: Node, code: Code) -> Exception | None:
        cls = self._failures.named(node.get("name"))
        fields = self._failures.fields(cls) if cls else None
        if cls is None or (fields and "fields" not in node):
            return None
        try:
            values = fields.load(node.get("fields")) if fields else {}
        except CodecError:
            return None
        exc = bare_exception(cls, _arguments(node, fields, values))
        if exc is None:
            return None
        if not fields:
            values = _attributes(cls, node)
        if node.get("coded") is True:
            values["code"] = code
        if isinstance(exc, RpcError):
            values |= {"code": code, "may_have_run": True, "peer": self._peer}
        for name, value in values.items():
            put(exc, name, value)
        return exc

    def _remote(self, node: Node, code: Code, message: str) -> RemoteError:
        data = next((node[key] for key in ("data", "fields", "args") if node.get(key) is not None), None)
        return RemoteError(
            message,
            code=code,
            may_have_run=True,
            peer=self._peer,
            name=_as_text(node.get("name"), MAX_NOTE),
            data=data,
            error_id=_as_text(node.get("error_id"), MAX_NOTE),
        )


def _arguments(node: Node, fields: Fields | None, values: dict[str, Any]) -> tuple[Any, ...]:
    args, given = node.get("args"), node.get("given")
    if isinstance(args, list):
        return tuple(args)
    if fields and isinstance(given, int):
        return tuple(values[name] for name in fields.parameters[: max(0, given)])
    return ()


def _attributes(cls: type, node: Node) -> dict[str, Any]:
    """Return the attributes to set: public names that hide no method and run no setter of the class."""
    attributes = node.get("attributes")
    if not isinstance(attributes, dict):
        return {}
    return {name: value for name, value in attributes.items() if isinstance(name, str) and is_free(cls, name)}


def _own_attributes(exc: BaseException) -> Iterator[tuple[str, Any]]:
    for name, value in getattr(exc, "__dict__", {}).items():
        if isinstance(name, str) and not name.startswith("_"):
            yield name, value


def _code(exc: BaseException) -> int:
    """Return the code that the exception chooses, by an attribute of its own or of its class."""
    try:
        code = getattr(exc, "code", None)
    except Exception:  # a property may do anything
        code = None
    return code.value if isinstance(code, Code) and code is not Code.OK else Code.UNKNOWN.value


def neutral(error_id: str, when: str = "") -> str:
    """What is told of a failure that is nobody else's business, with the id that finds it in the log; "" for none."""
    text = f"{NEUTRAL} {when}" if when else NEUTRAL
    return f"{text} (error id {error_id})" if error_id else text


def _as_code(value: Any) -> Code:
    return Code(value) if isinstance(value, int) and value in set(Code) and value != Code.OK else Code.UNKNOWN


def _as_text(value: Any, limit: int) -> str:
    return readable(_cut(value, limit), limit) if isinstance(value, str) else ""


def _string(value: object) -> str:
    try:
        return str(value)
    except BaseException:  # a foreign __str__ may do anything
        return f"<{type(value).__name__}>"


def _cut(text: str, limit: int) -> str:
    """Return text that every codec carries: bounded, and without lone surrogates."""
    short = text if len(text) <= limit else f"{text[: limit - 3]}..."
    return short.encode(errors="backslashreplace").decode()[:limit]


def _notes(exc: BaseException) -> list[str]:
    notes = getattr(exc, "__notes__", None)
    if not isinstance(notes, list | tuple):
        return []
    return [_cut(note, MAX_NOTE) for note in notes[:MAX_NOTES] if isinstance(note, str)]


def _traceback(exc: BaseException) -> list[str]:
    try:
        text = "".join(traceback.format_exception(exc))
    except BaseException:  # a foreign __str__ may do anything, and the stack may be used up
        return []
    return [f"Traceback of the handler:\n{_cut(text[-MAX_TRACEBACK + 100 :], MAX_TRACEBACK - 50)}"]


def _left_out(what: str) -> Node:
    return {"code": Code.UNKNOWN.value, "message": f"{what} left out"}
