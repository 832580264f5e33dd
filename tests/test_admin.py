"""The admin socket: who is served at all, by the kernel's word, and where it listens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from descriptors import none_left
from loopback import runner
from own_namespaces import NOBODY, ROOT, process

from proxy import admin, ipc
from proxy.admin import AdminError, AdminSocket, Peer
from proxy.link import Link
from proxy.messages.admin import TO_COMMAND, Answer, Ask, Denied, ToCommand

ASK = Ask("status", "{}")
# What a program elsewhere does to ask; it prints the answer.
_ASK = """
import socket
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
    sock.connect({path!r})
    sock.settimeout(60)
    sock.send(b'{{"is":"Ask","what":"status","parameters":"{{}}"}}')
    print(sock.recv(4096).decode(), flush=True)
"""


async def answer_all(peer: Peer) -> None:
    while True:
        message, fds = await peer.link.receive()
        ipc.close_all(fds)
        peer.link.send(Answer(f"{type(message).__name__} from {peer.uid}, {peer.gid}, {peer.pid}"))


@asynccontextmanager
async def listening(
    path: Path, serve: Callable[[Peer], Awaitable[None]] = answer_all
) -> AsyncIterator[AdminSocket]:
    there = AdminSocket(path, serve)
    try:
        yield there
    finally:
        there.close()
        await there.hang_up()


def dial(path: Path) -> Link[ToCommand]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(str(path))
    return Link(sock, TO_COMMAND)


async def ask(path: Path) -> ToCommand:
    link = dial(path)
    try:
        link.send(ASK)
        return (await link.receive())[0]
    finally:
        link.close()


@pytest.fixture
def path() -> Iterator[Path]:
    """Where every user of the machine can get to."""
    with tempfile.TemporaryDirectory(prefix="zonegate-admin-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory) / "run" / "admin.sock"


# -- who is served -----------------------------------------------------------------------------------


def test_a_peer_is_known_by_the_kernels_word(path: Path) -> None:
    async def main() -> None:
        async with listening(path):
            assert await ask(path) == Answer(f"Ask from {os.getuid()}, {os.getgid()}, {os.getpid()}")

    asyncio.run(main())


@pytest.mark.parametrize("uid", [0, NOBODY], ids=["as root of it", "as another user"])
def test_who_asks_from_another_user_namespace_is_refused(path: Path, uid: int) -> None:
    """The law is not administered from inside: a program in a bubble could stop it, or enter another zone."""

    async def main() -> None:
        async with listening(path):
            with process(uid=uid, then=_ASK.format(path=str(path))) as inside:
                assert inside.stdout is not None
                told = await asyncio.to_thread(inside.stdout.readline)
            assert b'"is":"Denied"' in told and b"another user namespace" in told
            assert isinstance(await ask(path), Answer), "outside of it the same user is served"

    asyncio.run(main())


def test_another_user_of_the_machine_is_served_by_roots_daemon(path: Path) -> None:
    async def main() -> None:
        async with listening(path):
            become = f"import os, socket; os.setresuid({NOBODY}, {NOBODY}, {NOBODY})\n"
            code = become + _ASK.format(path=str(path))
            told = await asyncio.to_thread(subprocess.check_output, [sys.executable, "-I", "-S", "-c", code])
            assert f"Ask from {NOBODY}, {os.getgid()}".encode() in told

    asyncio.run(main())


_DAEMON_OF_NOBODY = """
import asyncio, os, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from proxy.admin import AdminSocket
os.setgroups([]); os.setresgid({uid}, {uid}, {uid}); os.setresuid({uid}, {uid}, {uid})
async def main():
    async def serve(peer): peer.link.close()
    there = AdminSocket(Path({path!r}), serve)
    print(flush=True)
    await asyncio.sleep(3600)
asyncio.run(main())
"""


def test_a_users_daemon_serves_that_user_only(path: Path) -> None:
    path.parent.mkdir()
    os.chown(path.parent, NOBODY, NOBODY)
    path.parent.chmod(0o700)
    code = _DAEMON_OF_NOBODY.format(root=ROOT, uid=NOBODY, path=str(path))
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE) as daemon:
        try:
            assert daemon.stdout is not None and daemon.stdout.readline() == b"\n"
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert asyncio.run(ask(path)) == Denied("this daemon serves only the user who runs it")
        finally:
            daemon.kill()


def test_a_peer_that_nobody_can_see_is_not_served() -> None:
    with subprocess.Popen(["/bin/true"]) as gone:
        gone.wait()
    assert "cannot see who you are" in admin._stranger(gone.pid, os.getuid())


# -- what peers may do to it -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "junk", [b"", b"junk", b"[]", b'{"is":"Lease"}', b'{"is":"Ask","what":"status"}', b"\xff" * 1000]
)
def test_a_peer_that_speaks_nonsense_is_hung_up_on_and_others_are_served(path: Path, junk: bytes) -> None:
    async def main() -> None:
        async with listening(path):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.connect(str(path))
                sock.setblocking(False)
                sock.send(junk)
                assert await asyncio.get_running_loop().sock_recv(sock, 100) == b""
            assert isinstance(await ask(path), Answer)

    asyncio.run(main())


def test_silent_peers_do_not_keep_others_out_and_no_more_are_taken_than_can_be(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "MAX_PEERS", 3)

    async def main() -> None:
        async with listening(path):
            silent = [dial(path) for _ in range(2)]
            assert isinstance(await ask(path), Answer)
            silent.append(dial(path))
            with pytest.raises(ipc.LinkBroken):
                await ask(path)
            silent.pop().close()
            while True:  # until the daemon has seen that it went
                with contextlib.suppress(ipc.LinkBroken):
                    assert isinstance(await ask(path), Answer)
                    break
            for link in silent:
                link.close()

    asyncio.run(main())


def test_one_user_cannot_keep_the_others_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "MAX_PEERS_OF_USER", 2)

    async def main() -> None:
        async with listening(path) as there:
            links = [dial(path) for _ in range(2)]
            for link in links:
                link.send(ASK)
                await link.receive()
            assert isinstance(await ask(path), Denied)
            there._of_user[os.getuid() + 1] = 100  # what somebody else has does not count
            links.pop().close()
            while isinstance(await ask(path), Denied):  # until the daemon has seen that it went
                pass
            links.pop().close()

    asyncio.run(main())


# Comes again and again, however often it is refused, and keeps every link that it is left.
_PESTER = """
import socket, time
links = []
while True:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.setblocking(False)
    try:
        sock.connect({path!r})
        links.append(sock)
    except OSError:
        pass
    for link in links[:]:
        try:
            if not link.recv(999):
                links.remove(link)
        except BlockingIOError:
            pass
        except OSError:
            links.remove(link)
    time.sleep(0.001)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")
def test_a_user_who_comes_again_and_again_does_not_keep_out_who_runs_the_daemon(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "MAX_PEERS", 40)
    monkeypatch.setattr(admin, "MAX_PEERS_OF_USER", 20)
    monkeypatch.setattr(admin, "LINGER_S", 3600)
    most = 20 + admin.REFUSED_OF_USER

    async def main() -> None:
        async with listening(path) as there:
            turned_away = 0
            has_room = there._has_room

            def counted(uid: int) -> bool:
                nonlocal turned_away
                found = has_room(uid)
                turned_away += not found
                return found

            monkeypatch.setattr(there, "_has_room", counted)
            with process(uid=NOBODY, then=_PESTER.format(path=str(path))):
                for times in range(5):
                    while turned_away <= times:
                        await asyncio.sleep(0.001)
                    assert there._of_user[NOBODY] == most and len(there._tasks) <= most + 1
                    assert isinstance(await ask(path), Answer)

    runner("asyncio")(main())


def test_without_descriptors_it_waits_and_does_not_spin(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "PAUSE_S", 3600)
    tries = 0

    async def main() -> None:
        nonlocal tries
        async with listening(path) as there:
            accept = there._sock.accept

            class Counted:
                def __getattr__(self, name: str) -> object:
                    return getattr(sock, name)

                def accept(self) -> tuple[socket.socket, object]:
                    nonlocal tries
                    tries += 1
                    return accept()

            sock = there._sock
            there._sock = Counted()  # type: ignore[assignment]  # all of a socket but its accept
            link = dial(path)
            link.send(ASK)
            with none_left():
                for _ in range(1000):
                    await asyncio.sleep(0)
                assert tries == 1
            there._resume()  # as it does by itself after the pause
            assert isinstance((await link.receive())[0], Answer)
            link.close()
            there._sock = sock

    asyncio.run(main())


def test_hanging_up_ends_every_link(path: Path) -> None:
    async def main() -> None:
        async with listening(path) as there:
            link = dial(path)
            link.send(ASK)
            await link.receive()
            there.close()
            link.send(ASK)
            assert isinstance((await link.receive())[0], Answer), "who is there stays"
            await there.hang_up()
            with pytest.raises(ipc.LinkBroken):
                await link.receive()

    asyncio.run(main())


# -- where it listens --------------------------------------------------------------------------------


def test_the_socket_of_a_dead_daemon_is_replaced(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as dead:
        dead.bind(str(path))

    async def main() -> None:
        async with listening(path):
            assert isinstance(await ask(path), Answer)

    asyncio.run(main())
    assert not path.exists()


def test_the_socket_of_a_living_daemon_is_not(path: Path) -> None:
    async def main() -> None:
        async with listening(path):
            with pytest.raises(AdminError, match="another daemon listens on"):
                AdminSocket(path, answer_all)
            assert isinstance(await ask(path), Answer)

    asyncio.run(main())


def writable_by_others(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o777)


def of_another(directory: Path) -> None:
    directory.mkdir()
    os.chown(directory, NOBODY, NOBODY)


def a_link(directory: Path) -> None:
    (directory.parent / "elsewhere").mkdir()
    directory.symlink_to("elsewhere")


@pytest.mark.parametrize("make", [writable_by_others, of_another, a_link, Path.touch])
def test_a_place_where_another_could_listen_is_refused(path: Path, make: Callable[[Path], None]) -> None:
    make(path.parent)

    async def main() -> None:
        with pytest.raises(AdminError):
            AdminSocket(path, answer_all)

    asyncio.run(main())


def test_a_path_that_is_too_long_is_an_error_in_words(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(AdminError, match="cannot listen there"):
            AdminSocket(tmp_path / "run" / ("x" * 120), answer_all)

    asyncio.run(main())


def test_nobody_sends_the_daemon_a_descriptor(path: Path) -> None:
    """Closing it may take as long as its sender likes. Also before the connection is accepted."""

    async def hand() -> None:
        async with listening(path):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock, socket.socket() as given:
                sock.connect(str(path))
                with pytest.raises(ipc.LinkBroken, match="Operation not permitted"):
                    ipc.transmit(sock, ipc.encode(ASK), [given.fileno()])
                link = Link(sock, TO_COMMAND)
                link.send(ASK)
                assert isinstance((await link.receive())[0], Answer)

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as one:
        ipc.refuse_descriptors(one)
        if one.getsockopt(socket.SOL_SOCKET, 83):
            pytest.skip("this kernel is older than 6.16")
    asyncio.run(hand())
