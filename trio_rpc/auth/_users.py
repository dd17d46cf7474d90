"""Users of this machine, over UNIX sockets: the kernel says who is at the other end."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Mapping
from typing import Any

from trio_rpc import Origin, Unauthenticated

__all__ = ["same_user", "unix_users"]

REFUSAL = "this user may not connect here"
NO_USER = "callers are known by their user here, which only a UNIX socket tells"


def unix_users(*users: str | int) -> Callable[[Mapping[str, Any], Origin], str | int]:
    """An `authenticate` that lets in processes of these users, by name or id, over a UNIX socket. Linux only.

    What was given is the principal. Names are looked up now, and once. A socket in the file system is the server's own
    user's alone (its mode is 600) until you change that; an abstract one, `unix:@name`, is open to every process of
    the network namespace, so that it is this function that keeps others out. A process that has another user's socket
    because it was handed to it counts as that user; root is no exception.

    Raises:
        LookupError: there is no such user on this machine.
        TypeError: for what is no name and no id, or without any.
    """
    if not users:
        raise TypeError("unix_users needs a user: write unix_users('backup', 1001), or same_user()")
    principals: dict[int, str | int] = {}
    for user in users:
        if isinstance(user, bool) or not isinstance(user, str | int):
            raise TypeError(f"a user is a name or a number, not {user!r:.80}")
        principals[_uid(user)] = user

    def authenticate(credentials: Mapping[str, Any], origin: Origin) -> str | int:
        if origin.process is None:
            raise Unauthenticated(NO_USER)
        if origin.process.uid not in principals:
            raise Unauthenticated(REFUSAL)
        return principals[origin.process.uid]

    return authenticate


def same_user() -> Callable[[Mapping[str, Any], Origin], str | int]:
    """An `authenticate` that lets in processes of the user that this process has, by id: `unix_users(os.geteuid())`."""
    return unix_users(os.geteuid())


def _uid(user: str | int) -> int:
    if isinstance(user, int):
        return user
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise LookupError(f"there is no user {user!r:.80} on this machine") from None
