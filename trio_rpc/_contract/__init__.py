"""Service description: from decorated classes to `ServiceSpec`. Pure: no event loop, no clock, no network."""

from ._describe import (
    describe_contract as describe_contract,
    describe_services as describe_services,
    service as service,
)
from ._method import Method as Method, Shape as Shape, method as method, set_local_interface as set_local_interface
from ._spec import MethodSpec as MethodSpec, ServiceSpec as ServiceSpec

__all__ = [
    "Method",
    "MethodSpec",
    "ServiceSpec",
    "Shape",
    "describe_contract",
    "describe_services",
    "method",
    "service",
    "set_local_interface",
]
