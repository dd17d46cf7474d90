"""The wire without I/O: frames, events and the protocol's state, for those who build their own transport or relay.

`docs/reference/wire.md` specifies the bytes.
"""

from .._util import fixup_module_metadata as _fixup_module_metadata
from ._events import (
    CancelReceived as CancelReceived,
    CreditReceived as CreditReceived,
    EndReceived as EndReceived,
    ErrorReceived as ErrorReceived,
    Event as Event,
    GoAwayReceived as GoAwayReceived,
    HelloReceived as HelloReceived,
    ItemsReceived as ItemsReceived,
    PingReceived as PingReceived,
    PongReceived as PongReceived,
    RequestReceived as RequestReceived,
    ResponseReceived as ResponseReceived,
    TooMuchReceived as TooMuchReceived,
)
from ._frames import (
    CHUNK_SIZE as CHUNK_SIZE,
    HEADER_SIZE as HEADER_SIZE,
    MAX_ID as MAX_ID,
    MIN_CHUNK_SIZE as MIN_CHUNK_SIZE,
    PREFACE as PREFACE,
    VERSION as VERSION,
    Bytes as Bytes,
    Data as Data,
    Flag as Flag,
    Frames as Frames,
    Kind as Kind,
    Metadata as Metadata,
    Outcome as Outcome,
    frame_id as frame_id,
    is_timed_request as is_timed_request,
    message_size as message_size,
    method_block as method_block,
    restamp as restamp,
)
from ._hello import LEAST_FRAME_SIZE as LEAST_FRAME_SIZE, Hello as Hello
from ._protocol import Protocol as Protocol
from ._sending import Role as Role

__all__ = [
    "CHUNK_SIZE",
    "HEADER_SIZE",
    "LEAST_FRAME_SIZE",
    "MAX_ID",
    "MIN_CHUNK_SIZE",
    "PREFACE",
    "VERSION",
    "Bytes",
    "CancelReceived",
    "CreditReceived",
    "Data",
    "EndReceived",
    "ErrorReceived",
    "Event",
    "Flag",
    "Frames",
    "GoAwayReceived",
    "Hello",
    "HelloReceived",
    "ItemsReceived",
    "Kind",
    "Metadata",
    "Outcome",
    "PingReceived",
    "PongReceived",
    "Protocol",
    "RequestReceived",
    "ResponseReceived",
    "Role",
    "TooMuchReceived",
    "frame_id",
    "is_timed_request",
    "message_size",
    "method_block",
    "restamp",
]

_fixup_module_metadata(globals(), __name__)
