"""trio_rpc: cancel scopes, deadlines, errors and backpressure that cross the network.

Layout: every module that begins with an underscore is private, and this page is the front door. The namespaces beside
it are `trio_rpc.codecs` (more codecs), `trio_rpc.resolvers` (where endpoints come from) and `trio_rpc.wire` (the
protocol without I/O); and, to be imported by name, `trio_rpc.auth`, `trio_rpc.health` and `trio_rpc.testing` (the test
kit).
"""

import logging as _logging

from . import _local as _local  # Gives @method objects their local call interface.
from ._call import Call as Call, Handler as Handler, Interceptor as Interceptor, Reply as Reply
from ._config import Heartbeat as Heartbeat, PoolLimits as PoolLimits, ServerLimits as ServerLimits
from ._context import CallContext as CallContext, current_call as current_call
from ._contract import method as method, service as service
from ._endpoint import Endpoint as Endpoint
from ._errors import (
    CircuitOpen as CircuitOpen,
    Code as Code,
    CodecError as CodecError,
    ConnectError as ConnectError,
    ConnectionFailed as ConnectionFailed,
    ConnectionLost as ConnectionLost,
    DecodeError as DecodeError,
    Draining as Draining,
    EncodeError as EncodeError,
    InvalidArgument as InvalidArgument,
    LocalProtocolError as LocalProtocolError,
    Overloaded as Overloaded,
    PeerUnresponsive as PeerUnresponsive,
    PermissionDenied as PermissionDenied,
    PoolClosed as PoolClosed,
    PoolError as PoolError,
    PoolExhausted as PoolExhausted,
    PoolTimeout as PoolTimeout,
    ProtocolError as ProtocolError,
    Refused as Refused,
    RemoteCancelled as RemoteCancelled,
    RemoteError as RemoteError,
    RemoteProtocolError as RemoteProtocolError,
    RpcError as RpcError,
    Unauthenticated as Unauthenticated,
    Unimplemented as Unimplemented,
)
from ._fanout import (
    call_all as call_all,
    first_success as first_success,
    gather as gather,
    quorum as quorum,
)
from ._identity import Identity as Identity
from ._open_pool import open_connection as open_connection, open_pool as open_pool, run_pool as run_pool
from ._origin import Origin as Origin, ProcessCredentials as ProcessCredentials
from ._peer import Peer as Peer
from ._policies import (
    AdaptiveLimit as AdaptiveLimit,
    Backoff as Backoff,
    CircuitBreaker as CircuitBreaker,
    HedgePolicy as HedgePolicy,
    LeastInFlight as LeastInFlight,
    OutlierEjection as OutlierEjection,
    PowerOfTwo as PowerOfTwo,
    RetryBudget as RetryBudget,
    RetryPolicy as RetryPolicy,
    RetryThrottle as RetryThrottle,
    RoundRobin as RoundRobin,
)
from ._pool import EndpointTarget as EndpointTarget, Pool as Pool
from ._serve import (
    open_server as open_server,
    serve as serve,
    serve_listeners as serve_listeners,
    serve_stream as serve_stream,
)
from ._server import Server as Server
from ._statistics import (
    Connectivity as Connectivity,
    EndpointStatistics as EndpointStatistics,
    PoolEvent as PoolEvent,
    PoolStatistics as PoolStatistics,
    ServerStatistics as ServerStatistics,
)
from ._streams import ReceiveStream as ReceiveStream
from ._util import fixup_module_metadata as _fixup_module_metadata

__all__ = [
    "AdaptiveLimit",
    "Backoff",
    "Call",
    "CallContext",
    "CircuitBreaker",
    "CircuitOpen",
    "Code",
    "CodecError",
    "ConnectError",
    "ConnectionFailed",
    "ConnectionLost",
    "Connectivity",
    "DecodeError",
    "Draining",
    "EncodeError",
    "Endpoint",
    "EndpointStatistics",
    "EndpointTarget",
    "Handler",
    "Heartbeat",
    "HedgePolicy",
    "Identity",
    "Interceptor",
    "InvalidArgument",
    "LeastInFlight",
    "LocalProtocolError",
    "Origin",
    "OutlierEjection",
    "Overloaded",
    "Peer",
    "PeerUnresponsive",
    "PermissionDenied",
    "Pool",
    "PoolClosed",
    "PoolError",
    "PoolEvent",
    "PoolExhausted",
    "PoolLimits",
    "PoolStatistics",
    "PoolTimeout",
    "PowerOfTwo",
    "ProcessCredentials",
    "ProtocolError",
    "ReceiveStream",
    "Refused",
    "RemoteCancelled",
    "RemoteError",
    "RemoteProtocolError",
    "Reply",
    "RetryBudget",
    "RetryPolicy",
    "RetryThrottle",
    "RoundRobin",
    "RpcError",
    "Server",
    "ServerLimits",
    "ServerStatistics",
    "Unauthenticated",
    "Unimplemented",
    "call_all",
    "current_call",
    "first_success",
    "gather",
    "method",
    "open_connection",
    "open_pool",
    "open_server",
    "quorum",
    "run_pool",
    "serve",
    "serve_listeners",
    "serve_stream",
    "service",
]

_fixup_module_metadata(globals(), __name__)
_logging.getLogger(__name__).addHandler(_logging.NullHandler())  # Silent until the program sets logging up.
