"""The fault catalogue: what can go wrong between two processes, and which tests show what happens then.

A test shows the items with which its docstring begins, before the first colon: `W03, R14: a declared length ...`.
Rules count in the same way: `Rule 8, S09: ...`. So do the cases of the acceptance lists, and a proof whose module's
docstring begins so. What no test shows is a decision, with its sentence, and stands on a page of the documentation.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["DECISIONS", "ITEMS", "MISSING", "PAGES", "tagged_functions", "tests_by_item", "unknown_tags"]

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("docs/topics/reliability.md", "docs/topics/security.md")
"""Where decisions stand."""

ITEMS = {
    # Bytes that no honest peer sends.
    "W01": "random bytes, an HTTP request or a TLS hello at a plaintext port",
    "W02": "a frame of declared length 0, once and in floods",
    "W03": "a declared length beyond the limit",
    "W04": "the end of the stream within a header or a body",
    "W05": "one byte at a time",
    "W06": "a thousand frames in one read",
    "W07": "a wrong magic or version",
    "W08": "unknown kinds of frame, reserved bits",
    "W09": "a frame that is illegal in this state",
    "W10": "a payload that is not well formed",
    "W11": "containers that declare more than there is",
    "W12": "nesting beyond the limit",
    "W13": "container bombs within the size limit",
    "W14": "map keys that are not text, and very many keys",
    "W15": "unknown extension types, timestamps out of range",
    "W16": "JSON's corner cases: digits, NaN, surrogates, encodings, repeated keys",
    "W17": "a result that cannot be encoded",
    "W18": "arguments of the wrong shape, name, number or type",
    "W19": "call ids out of range or of the wrong kind",
    "W20": "valid traffic with some bytes changed, a million times",
    # Resources that run out, by accident or on purpose.
    "R01": "no descriptor left to accept with",
    "R02": "other errors of accept, expected or not",
    "R03": "the accept queue overflows",
    "R04": "no local port left to connect from",
    "R05": "a reader that stops with results due",
    "R06": "connections that say nothing",
    "R07": "TLS handshakes that stop half-way",
    "R08": "a frame that trickles in",
    "R09": "ten thousand idle connections",
    "R10": "a flood of cancellations (rapid reset)",
    "R11": "a flood of errors that the peer makes us send",
    "R12": "floods of pings and pongs",
    "R13": "streams that are begun and never finished",
    "R14": "a message in fragments without an end",
    "R15": "metadata beyond the limit",
    "R16": "one call more than the limit",
    "R17": "a hundred thousand calls in flight",
    "R18": "ten thousand callers of a pool with few connections",
    "R19": "connections that come and go",
    "R20": "a decompression bomb",
    "R21": "a flood of log lines",
    "R22": "one client that takes all handlers",
    "R23": "a server at its memory limit",
    # The network.
    "N01": "a server that is stopped",
    "N02": "a client that is stopped",
    "N03": "packets dropped in both directions",
    "N04": "packets dropped in one direction",
    "N05": "a link that is down for half a second",
    "N06": "a reset between frames and within one",
    "N07": "the end of the stream within a frame, a half-close",
    "N08": "delay, reordering, duplicates",
    "N09": "packet loss",
    "N10": "bulk data on a narrow link",
    "N11": "a drip of single bytes both ways",
    "N12": "flipped bits",
    "N13": "a NAT that forgets the connection",
    "N14": "a name that resolves to a new address",
    "N15": "two addresses, of which the first does not answer",
    "N16": "a server restarted on the same port",
    "N17": "a rolling restart of several servers",
    "N18": "connections refused, or swallowed by a firewall",
    "N19": "our own process stalls",
    "N20": "the wall clock jumps",
    "N21": "another service, or an old version, at the old port",
    "N22": "an idle connection dies just as a call begins",
    # Processes and handlers.
    "P01": "a server is killed in the middle of a call",
    "P02": "a client is killed in the middle of a call",
    "P03": "SIGTERM",
    "P04": "a drain that runs out of time, or a second SIGTERM",
    "P05": "a handler raises an exception",
    "P06": "a handler raises SystemExit, GeneratorExit or KeyboardInterrupt",
    "P07": "a handler raises groups, or exceptions that are awkward themselves",
    "P08": "a handler shields or swallows its cancellation",
    "P09": "a handler blocks the loop",
    "P10": "a handler leaves tasks or a nursery behind",
    "P11": "a connection's own tasks crash",
    "P12": "the user's nursery around the client is cancelled or fails",
    "P13": "a user's hook raises",
    "P14": "the interpreter's exit after a clean close",
    "P15": "subprocesses inherit no descriptor",
    "P16": "a handler in a thread ignores its cancellation",
    # What happens at the same time.
    "S01": "a cancellation races the response",
    "S02": "a deadline races the result",
    "S03": "a deadline that has passed already",
    "S04": "call ids run out",
    "S05": "a second response, or one to a call that never was",
    "S06": "a request with an id in use",
    "S07": "a cancellation of an unknown or finished call",
    "S08": "a cancellation before the request has left",
    "S09": "a cancellation never overtakes its request",
    "S10": "closing at once from both sides, in a drain, twice, while connecting",
    "S11": "a waiter cancelled as it is handed a place",
    "S12": "a connection dies while callers wait in line",
    "S13": "a pool is left with callers in line and calls under way",
    "S14": "a go-away that crosses requests",
    "S15": "what may have run is not run again",
    "S16": "a call back within a call, with one place",
    "S17": "a consumer stops early, a producer fails half-way",
    "S18": "a slow stream beside other calls",
    "S19": "large responses beside tiny calls",
    "S20": "context variables and reasons of cancellations stay with their call",
    # Security.
    "X01": "no token where one is needed",
    "X02": "a wrong token, compared in constant time",
    "X03": "a replayed handshake",
    "X04": "a token that expires or is revoked in mid-connection",
    "X05": "tokens tried one after the other",
    "X06": "a client certificate that is missing, strange, expired or not yet valid",
    "X07": "a server certificate that is strange, expired or for another name; old TLS",
    "X08": "authorization by method",
    "X09": "names that must not resolve",
    "X10": "text of exceptions on the wire",
    "X11": "log injection",
    "X12": "payloads shaped like pickles or class tags",
    "X13": "a codec that the server does not allow",
    "X14": "listening beyond this machine without TLS or authentication",
    "X15": "secrets in reprs, logs, errors, statistics",
    "X16": "a hostile server",
    "X17": "what a peer costs before it has shown who it is",
    "X18": "connections never cross identities",
    "X19": "no pickle, eval or import by name in the package; no codec with known holes",
    # What every RPC library has to get right.
    "Rule 1": "a broken connection ends itself and not the server",
    "Rule 2": "only the writer writes, in no call's scope",
    "Rule 3": "responses find their calls by id, never by order",
    "Rule 4": "a cancelled waiter loses no place",
    "Rule 5": "heartbeats find the stopped peer",
    "Rule 6": "our own stall evicts no healthy peer",
    "Rule 7": "one timer for all heartbeats",
    "Rule 8": "a handler counts until it has ended",
    "Rule 9": "what a peer makes us refuse is charged to it",
    "Rule 10": "containers and depth are bounded, not size alone",
    "Rule 11": "codecs are the server's choice",
    "Rule 12": "a connection is ready after the HELLO, not before",
    "Rule 13": "text of exceptions stays at home",
    "Rule 14": "every wait has a bound",
}

DECISIONS: dict[str, str] = {
    "R20": "There is no compression, so nothing can be decompressed into more than was sent.",
}
"""What no test shows, and why. The number stands on one of the pages, with the same reason."""

MISSING: set[str] = set()
"""What is still to be shown."""

TAG = re.compile(r"\b[A-Z]\d\d\b|\bRule \d+\b")
HEAD = re.compile(r"(?:[WRNPSX]\d\d|Rule \d+)(?:, [\w ]+)*")
REGISTERS = {"item"}
"""Decorators that make a case of a function, in the lists that are run by one test."""


def tests_by_item() -> dict[str, list[tuple[str, str]]]:
    """The tests that show each item, as (file, name of the function), the name empty for a whole proof."""
    shown: dict[str, list[tuple[str, str]]] = {}
    for file, name, tags in tagged_functions():
        for tag in tags:
            shown.setdefault(tag, []).append((file, name))
    return shown


def unknown_tags() -> list[str]:
    """What tests claim to show and is no item."""
    return [f"{file}::{name}: {tag}" for file, name, tags in tagged_functions() for tag in tags if tag not in ITEMS]


def tagged_functions() -> Iterator[tuple[str, str, list[str]]]:
    """Yield file, name and tags of each test or proof that has any, unless it is always skipped."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        file = path.relative_to(ROOT / "tests").as_posix()
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.name.startswith("test_"):
            nodes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
            found = [(node.name, ast.get_docstring(node)) for node in nodes if _is_run(node)]
        elif path.parent.name == "proofs":
            found = [("", ast.get_docstring(tree))] if _is_proof(tree) else []
        else:
            continue
        for name, text in found:
            if tags := tags_of(text or ""):
                yield file, name, tags


def tags_of(text: str) -> list[str]:
    """The items with which a docstring begins, known or not."""
    head, colon, _ = text.partition(":")
    return TAG.findall(head) if colon and HEAD.fullmatch(head) else []


def _is_run(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """True for a test, or a case that a test runs."""
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    if any(decorator.partition("(")[0] == "pytest.mark.skip" for decorator in decorators):
        return False
    return node.name.startswith("test_") or any(decorator.partition("(")[0] in REGISTERS for decorator in decorators)


def _is_proof(tree: ast.Module) -> bool:
    return any(
        isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["PROOF"]
        for node in tree.body
    )
