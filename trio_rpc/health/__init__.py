"""Health: what a server says of its services, for those who route calls, and for operators.

The contract follows gRPC's health checking protocol (`grpc.health.v1`): a name that means something to both sides, most
often a service's, and "" for the server as a whole. A server offers it beside its own services, and tells what changes::

    health = HealthService({"Inventory": Status.SERVING})
    async with trio_rpc.open_server([WarehouseInventory(db), health], address) as server:
        ...
        health.shut_down()  # callers go elsewhere
        await server.drain(grace=10)

`open_pool(..., health_check="Inventory")` watches it on each connection, and places calls only where it says SERVING.
All of its methods are outside of the server's admission limits: a server that is full is not ill.
"""

from ._service import Health as Health, HealthService as HealthService, Status as Status

__all__ = ["Health", "HealthService", "Status"]

for _name in __all__:
    # The name that users see in a repr or a traceback is the one that they import.
    globals()[_name].__module__ = __name__
