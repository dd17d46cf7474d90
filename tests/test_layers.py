"""The house: imports go one way, the pure layers stay pure, and nothing private of a dependency is touched.

The sources are read with `ast`, so that a module cannot hide an import by not being imported.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "trio_rpc"

# Lowest first: a module may import from its own layer and from those above it in this table, never from one below.
# A package stands for all its modules.
LAYERS = {
    "words": {"_errors", "_checks", "_config", "_policies", "_statistics", "_util", "_text", "_allowance"},
    "pure": {"wire", "codecs", "_contract", "_failures", "_context"},
    "one peer": {
        *("_logs", "_scope", "_sockets", "_timer", "_large", "_outbox", "_heartbeat", "_tls", "_watch", "_handshake"),
        *("_generators", "_local", "_crew", "_streams", "_calls", "_incoming"),
        *("_connection", "_carrier", "_contained", "_leaving", "_farewell", "_flows", "_refusals"),
        *("_arrival", "_faults", "_conduct"),
        *("_adaptive", "_admission", "_ages", "_kept", "_room"),
        *("_origin", "_guesses", "_identity", "_authentication", "_authorization", "_expiry", "_partings"),
    },
    "many peers": {
        *("_credentials", "_address", "_endpoint", "resolvers", "_backoff", "_placement", "_waiting"),
        *("_listening", "_accepting"),
        *("_dialler", "_vetting", "_upstream", "_events", "_roster", "_keeper"),
        *("_balance", "_rendezvous", "_ejection", "_breaker", "_budget"),
    },
    "a call": {"_call", "_methods", "_options", "_outcomes", "_trial", "_fanout"},
    # The pool is here, as it is one of the two things that are called; what it decides is in "many peers".
    "endpoints": {
        "_stub",
        "_streaming",
        "_hedging",
        "_caller",
        "_target",
        "_peer",
        "_once",
        "_dispatch",
        "_balancer",
        "_lines",
        "_settings",
        "_reception",
        "_hub",
        "_pool",
        "_open_pool",
        "_server",
        "_serve",
    },
    "front door": {""},
    "batteries": {"auth", "interceptors", "health", "reflection", "telemetry", "__main__", "_cli"},
    "testing": {"testing"},
}
LEVELS = {unit: level for level, units in enumerate(LAYERS.values()) for unit in units}
PUBLIC_ONLY = LAYERS["batteries"] | LAYERS["testing"]

# Modules below that decide from their arguments alone.
PURE = (
    LAYERS["words"]
    | LAYERS["pure"]
    | {"_endpoint", "_backoff", "_placement", "_heartbeat", "_call", "_methods", "_outcomes"}
    | {"_balance", "_rendezvous", "_ejection", "_breaker", "_budget", "_adaptive", "_admission", "_kept", "_arrival"}
    | {"_guesses", "_identity", "_large"}
)
IMPURE = {"trio", "time", "random", "secrets", "logging", "socket", "ssl", "asyncio", "subprocess"}
CLOCKS = {"time"}  # one peer reads Trio's clock alone, which tests turn by hand
STRANGERS = [{"wire", "codecs"}]

# An import inside a function hides an edge, so each one is listed here: {(importing module, imported name)}.
LAZY: set[tuple[str, str]] = set()

UNSAFE_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle"}
ATTRIBUTE_CALLS = {"getattr", "setattr", "delattr", "hasattr"}
UNSAFE_CALLS = {"eval", "exec", "__import__", "import_module"}
STDLIB_PRIVATES = {"_getframe", "_fields", "_field_defaults", "_asdict", "_make", "_replace"}  # public all the same
LONGEST_FUNCTION = 60


@attrs.frozen
class Import:
    """One imported module, in full, and the names taken from it."""

    target: str
    names: tuple[str, ...]
    line: int
    lazy: bool


@attrs.frozen
class Module:
    """One source file of the package; `name` is relative to it, like `wire._frames`, and "" is the front door."""

    name: str
    tree: ast.Module
    package: str

    @property
    def unit(self) -> str:
        """The entry of `LAYERS` that this module belongs to."""
        return top(self.name)

    def imports(self) -> Iterator[Import]:
        """Everything that is imported at run time."""
        yield from self._imports(self.tree, lazy=False)

    def _imports(self, node: ast.AST, *, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, (), child.lineno, lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield from self._import_from(child, lazy=lazy)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from (found for part in child.orelse for found in self._imports(part, lazy=lazy))
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from self._imports(child, lazy=lazy or function)

    def _import_from(self, node: ast.ImportFrom, *, lazy: bool) -> Iterator[Import]:
        base = node.module or ""
        if node.level:
            package = self.package.split(".")
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
        for alias in node.names:
            # `from . import _errors` names a module, `from ._errors import Code` something in one.
            submodule = f"{base}.{alias.name}"
            is_module = submodule.removeprefix("trio_rpc.") in NAMES and top(base) == "trio_rpc"
            yield Import(submodule if is_module else base, () if is_module else (alias.name,), node.lineno, lazy)


def source_files() -> Iterator[tuple[str, Path]]:
    """Each module's name relative to the package, and its file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


NAMES = {name for name, _ in source_files()}


def load(name: str, path: Path) -> Module:
    """Parse one file."""
    is_package = path.name == "__init__.py"
    full = f"trio_rpc.{name}".rstrip(".")
    return Module(name, ast.parse(path.read_text(), str(path)), full if is_package else full.rpartition(".")[0])


def made_up(source: str, name: str) -> Module:
    """A made-up module of the package, to show that a check can fail."""
    return Module(name, ast.parse(source), ".".join(["trio_rpc", *name.split(".")[:-1]]))


MODULES = [load(name, path) for name, path in source_files()]


def top(target: str) -> str:
    """`trio` of `trio.lowlevel`."""
    return target.partition(".")[0]


def own(target: str) -> str | None:
    """The name relative to the package of one of our own modules, else None."""
    return target.removeprefix("trio_rpc").removeprefix(".") if top(target) == "trio_rpc" else None


def misplaced_imports(module: Module) -> Iterator[str]:
    """Imports that go the wrong way."""
    for found in module.imports():
        target = own(found.target)
        if target is None:
            continue
        unit = top(target)
        where = f"{module.name or '__init__'}:{found.line} imports {found.target}"
        if {unit, module.unit} <= set(LEVELS) and LEVELS[unit] > LEVELS[module.unit]:
            yield f"{where}, which is below it: move what both need up, or pass it in as an argument"
        if {module.unit, unit} in STRANGERS:
            yield f"{where}: these two do not know each other"
        private = any(part.startswith("_") for part in target.split("."))
        if private and module.unit in PUBLIC_ONLY and unit != module.unit:
            yield f"{where}: here only the public names are used, as our users would"


def impure_imports(module: Module) -> Iterator[str]:
    """The outside world, in a module that decides from its arguments alone."""
    banned = IMPURE if module.unit in PURE else CLOCKS if module.unit in LAYERS["one peer"] else set()
    for found in module.imports():
        if top(found.target) in banned:
            yield f"{module.name}:{found.line} imports {found.target}: take what it gives as an argument"


def hidden_imports(module: Module) -> Iterator[str]:
    """Imports inside functions that are not listed in LAZY."""
    for found in module.imports():
        if found.lazy and (module.name, found.target) not in LAZY:
            yield f"{module.name}:{found.line} imports {found.target} in a function: move it up, or list it in LAZY"


def unsafe_code(module: Module) -> Iterator[str]:
    """What would let bytes from the network name code to run."""
    for found in module.imports():
        if top(found.target) in UNSAFE_MODULES:
            yield f"{module.name}:{found.line} imports {found.target}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if called in UNSAFE_CALLS:
                yield f"{module.name}:{node.lineno} calls {called}"


def is_private(name: str) -> bool:
    """Whether a name begins with an underscore and is no dunder."""
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def is_ours(target: str) -> bool:
    """Whether a module is this package's or the standard library's, whose privacy is not the matter here."""
    return top(target) in {"trio_rpc"} | sys.stdlib_module_names


def defined_privates(tree: ast.Module) -> Iterator[str]:
    """The private names that our own sources define: functions, classes, fields, slots and assigned attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__":
            yield from (str(part.value) for part in ast.walk(node.value) if isinstance(part, ast.Constant))


OUR_PRIVATES = {name for module in MODULES for name in defined_privates(module.tree) if is_private(name)} | NAMES


def attribute_uses(tree: ast.Module) -> Iterator[tuple[ast.expr, ast.expr, str]]:
    """Each `owner.name` and `getattr(owner, "name")`: the place, the owner and the name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node, node.value, node.attr
        elif isinstance(node, ast.Call) and len(node.args) > 1 and ast.unparse(node.func) in ATTRIBUTE_CALLS:
            owner, name = node.args[:2]
            yield node, owner, ast.unparse(name).strip("'")


def foreign_privates(module: Module) -> Iterator[str]:
    """Private parts of the dependencies: in imports, behind imported names, or on their objects."""
    foreign: set[str] = set()
    for found in module.imports():
        if is_ours(found.target):
            continue
        foreign.update(found.names or {top(found.target)})
        for part in [*found.target.split("."), *found.names]:
            if is_private(part):
                yield f"{module.name}:{found.line} imports {part} of {found.target}"
    for node, owner, name in attribute_uses(module.tree):
        root = re.split(r"[.(\[]", ast.unparse(owner), maxsplit=1)[0]
        if is_private(name) and (root in foreign or name not in OUR_PRIVATES | STDLIB_PRIVATES):
            yield f"{module.name}:{node.lineno} uses {ast.unparse(node)}"


def long_functions(module: Module) -> Iterator[str]:
    """Functions over the bar."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > LONGEST_FUNCTION:
                yield f"{module.name}:{node.lineno} {node.name} has {length} lines, over {LONGEST_FUNCTION}"


Check = Callable[[Module], Iterator[str]]
CHECKS: list[Check] = [misplaced_imports, impure_imports, hidden_imports, unsafe_code, foreign_privates, long_functions]


@pytest.mark.parametrize("check", CHECKS)
def test_the_package_keeps_the_rule(check: Check) -> None:
    """X12, X19: every module of the package passes every check; none unpickles, evaluates or imports by name."""
    assert [line for module in MODULES for line in check(module)] == []


def test_every_module_has_a_place() -> None:
    """A new module is placed in the table before anything imports it."""
    homeless = {module.unit for module in MODULES} - set(LEVELS)
    assert not homeless, (
        f"{sorted(homeless)} have no layer: add each to LAYERS in tests/test_layers.py, as high as it fits"
    )


def test_no_cycles() -> None:
    """Within a layer, too, imports go one way."""
    graph = {
        module.name: {own(found.target) or "" for found in module.imports() if own(found.target) in NAMES}
        for module in MODULES
    }
    remaining = {name: targets - {name} for name, targets in graph.items()}
    while leaves := {name for name, targets in remaining.items() if not targets & set(remaining)}:
        remaining = {name: targets for name, targets in remaining.items() if name not in leaves}
    assert not remaining, f"these import each other in a circle: {remaining}"


@pytest.mark.parametrize(
    ("check", "name", "source", "complaint"),
    [
        (misplaced_imports, "_errors", "from ._pool import Pool", "_errors:1 imports trio_rpc._pool, which is below"),
        (misplaced_imports, "wire._frames", "from .._pool import Pool", "imports trio_rpc._pool, which is below"),
        (misplaced_imports, "_connection", "import trio_rpc", "imports trio_rpc, which is below"),
        (misplaced_imports, "_pool", "from .testing import open_loopback", "imports trio_rpc.testing, which is below"),
        (misplaced_imports, "codecs._json", "import trio_rpc.wire", "do not know each other"),
        (misplaced_imports, "testing._x", "from trio_rpc._errors import Code", "only the public names"),
        (impure_imports, "wire._state", "try:\n  import trio.lowlevel\nexcept ImportError: pass", "trio.lowlevel"),
        (impure_imports, "_placement", "from random import random", "_placement:1 imports random"),
        (impure_imports, "_outbox", "from time import monotonic", "_outbox:1 imports time"),
        (hidden_imports, "_pool", "def f():\n  if x:\n    from ._address import parse", "_pool:3"),
        (unsafe_code, "_failures", "from pickle import loads", "_failures:1 imports pickle"),
        (unsafe_code, "_failures", "import importlib\nimportlib.import_module(n)", "_failures:2 calls import_module"),
        (unsafe_code, "_failures", "x = eval('1')", "_failures:1 calls eval"),
        (foreign_privates, "_pool", "from trio._core import GLOBAL", "imports _core of trio._core"),
        (foreign_privates, "_pool", "import trio\ntrio.lowlevel._run", "_pool:2 uses trio.lowlevel._run"),
        (foreign_privates, "_pool", "def f(task): task._activate_cancel_status(None)", "uses task._activate"),
        (foreign_privates, "_pool", "def f(task): return getattr(task, '_cancel_points', 0)", "uses getattr(task"),
        (long_functions, "_pool", "def f():\n" + "  pass\n" * 60, "f has 61 lines"),
    ],
)
def test_the_checks_can_fail(check: Check, name: str, source: str, complaint: str) -> None:
    """Each rule, broken by one made-up module, is reported once, with the place."""
    [line] = check(made_up(source, name))
    assert re.search(re.escape(complaint), line)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("_pool", "from ._errors import Code\nfrom . import _config\nimport trio_rpc.wire"),
        ("_errors", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  from ._pool import Pool"),
        ("testing._loopback", "import trio_rpc\nfrom trio_rpc.wire import Protocol\nfrom ._faults import Cut"),
        ("_server", "import sys\nimport trio\nsys._getframe(1)\ntrio.__version__"),
    ],
)
def test_the_checks_can_pass(name: str, source: str) -> None:
    """Honest modules are left alone."""
    assert [line for check in CHECKS for line in check(made_up(source, name))] == []
