"""What this machine's directory says of users: who they are by name, and which groups they have.

It may be a service elsewhere, which may hang. Each question has a thread of its own, and a limit; whoever
needs no more than a name is given what is known already. Decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import pwd
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

LIMIT_S = 5.0
MOST_THREADS = 32  # that wait at the same time; who asks beyond that is told at once
PASSWD = Path("/etc/passwd")
SILENT = "the directory of this machine's users does not answer"


class DirectorySilent(Exception):
    """It did not answer in time; one line."""


@dataclass(frozen=True, slots=True)
class User:
    """A user of this machine: the kernel's number, and what the system calls it."""

    uid: int
    login: str
    groups: tuple[str, ...]


def identity(uid: int) -> User:
    """The login name of a user and the names of the groups; a number where the system knows no name.

    A directory service may be asked, which may take its time.
    """
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return User(uid, f"#{uid}", ())
    names = []
    for group in os.getgrouplist(user.pw_name, user.pw_gid):
        with contextlib.suppress(KeyError):
            names.append(grp.getgrgid(group).gr_name)
    return User(uid, user.pw_name, tuple(names))


class Directory:
    """Asked by one daemon; remembers the logins that it was told."""

    def __init__(self) -> None:
        self._logins: dict[int, str] = {}
        self._threads = 0

    def at_once(self, uid: int) -> User:
        """A user by what is known here, without groups; nothing but a file of this machine is waited for."""
        return User(uid, self._logins.get(uid) or _login_of_file(uid) or f"#{uid}", ())

    async def user(self, uid: int) -> User:
        """A user as the directory has it now. Raises DirectorySilent."""
        found = await self._answer(lambda: identity(uid))
        self._logins[uid] = found.login
        return found

    async def uid_of(self, login: str) -> int:
        """Raises KeyError where nobody is called so, DirectorySilent."""
        return await self._answer(lambda: pwd.getpwnam(login).pw_uid)

    async def _answer[T](self, question: Callable[[], T]) -> T:
        """The pool of threads that save files is not asked: one that hangs would keep the others waiting."""
        if self._threads >= MOST_THREADS:
            raise DirectorySilent(SILENT)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def ended(found: T | None, error: Exception | None) -> None:
            self._threads -= 1
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(found)  # type: ignore[arg-type]  # a question that raised nothing has one

        def ask() -> None:
            found, error = None, None
            try:
                found = question()
            except Exception as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # nobody waits: the daemon has stopped
                loop.call_soon_threadsafe(ended, found, error)

        try:
            threading.Thread(target=ask, daemon=True).start()
        except RuntimeError as error:  # none can be had
            raise DirectorySilent(SILENT) from error
        self._threads += 1
        try:
            async with asyncio.timeout(LIMIT_S):
                return await answer
        except TimeoutError as error:
            raise DirectorySilent(SILENT) from error


def _login_of_file(uid: int) -> str:
    with contextlib.suppress(OSError):
        for line in PASSWD.read_text(errors="replace").splitlines():
            login, _, rest = line.partition(":")
            if login and login.isprintable() and rest.split(":")[1:2] == [str(uid)]:
                return login
    return ""
