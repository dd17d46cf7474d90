"""Codecs (plain values <-> bytes) and adapters (types <-> plain values).

Two layers: a `Codec` knows bytes and no types; an `Adapter` knows types and no bytes. `adapter_for("msgpack")` is the
way in; `register` adds a codec of one's own, for which types are adapted as they are for JSON.
"""

from .._util import fixup_module_metadata as _fixup_module_metadata
from ._adapter import Adapter as Adapter, Carrier as Carrier, adapter_for as adapter_for
from ._arguments import ArgumentsCarrier as ArgumentsCarrier
from ._base import (
    BLOB_SIZE as BLOB_SIZE,
    MAX_CONTAINERS as MAX_CONTAINERS,
    MAX_DEPTH as MAX_DEPTH,
    MAX_VALUES as MAX_VALUES,
    Bounds as Bounds,
    Buffer as Buffer,
    Codec as Codec,
    get as get,
    names as names,
    register as register,
)
from ._json import Json as Json
from ._msgpack import MessagePack as MessagePack
from ._records import Fields as Fields

__all__ = [
    "BLOB_SIZE",
    "MAX_CONTAINERS",
    "MAX_DEPTH",
    "MAX_VALUES",
    "Adapter",
    "ArgumentsCarrier",
    "Bounds",
    "Buffer",
    "Carrier",
    "Codec",
    "Fields",
    "Json",
    "MessagePack",
    "adapter_for",
    "get",
    "names",
    "register",
]

register(MessagePack())
register(Json())

_fixup_module_metadata(globals(), __name__)
