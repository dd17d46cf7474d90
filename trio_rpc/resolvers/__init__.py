"""Resolvers: where a pool's endpoints come from, and how it learns that they have changed.

A resolver is any async iterable of whole endpoint sets: each set it yields, addresses and `Endpoint`s, replaces the one
before. So an async generator is one, and so is the receiving end of a memory channel. If it has a method `refresh()`,
the pool calls that when a dial has failed or a connection was lost, as the set may be out of date.

Here are those that most need: `dns`, `watched_file`, `static`, and `Polled` for an async function of one's own.
"""

from .._util import fixup_module_metadata as _fixup_module_metadata
from ._dns import dns as dns
from ._file import watched_file as watched_file
from ._polled import Polled as Polled, Resolver as Resolver
from ._static import static as static

__all__ = ["Polled", "Resolver", "dns", "static", "watched_file"]

_fixup_module_metadata(globals(), __name__)
