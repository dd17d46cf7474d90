"""Ready answers to two questions that a server asks: who is it, and may it do that?

For `serve(..., authenticate=...)`: `BearerTokens`, `CertificateNames` for mutual TLS, `same_user` and `unix_users` over
UNIX sockets, and `any_of` these. For `serve(..., authorize=...)`: `AccessRules`. For `ssl_context=` on either side:
`reloading`, which follows certificates that are renewed. ::

    tokens = BearerTokens({os.environ["BATCH_TOKEN"]: "batch"})
    rules = AccessRules(deny=[("batch", "Inventory.restock")], allow=[(anyone, "Inventory.*")])
    async with trio_rpc.open_server(
        WarehouseInventory(db),
        "tls://0.0.0.0:7000",
        ssl_context=reloading("server.pem", "server.key"),
        authenticate=tokens,
        authorize=rules,
    ) as server: ...

All failures of one kind have the same text, and no repr shows a secret.
"""

from ._any import any_of as any_of
from ._certificates import CertificateNames as CertificateNames
from ._reloading import reloading as reloading
from ._rules import AccessRules as AccessRules, anyone as anyone
from ._tokens import BearerTokens as BearerTokens
from ._users import same_user as same_user, unix_users as unix_users

__all__ = [
    "AccessRules",
    "BearerTokens",
    "CertificateNames",
    "any_of",
    "anyone",
    "reloading",
    "same_user",
    "unix_users",
]

for _name in __all__:
    # The name that users see in a repr or a traceback is the one that they import.
    globals()[_name].__module__ = __name__
