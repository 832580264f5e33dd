"""A name to its addresses, and a connection to one address that was judged.

The only part of the gateway that asks a resolver and opens connections. What it dials is exactly an
address that `judge` admitted: nothing is resolved a second time.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv6Address, ip_address

from proxy.channel.connect import authority
from proxy.flow import IPAddress
from proxy.gateway.judge import Allowance, Client, Refused, judge_addresses, judge_host
from proxy.gateway.requests import Connect

RESOLVE_LIMIT_S = 5.0
DIAL_LIMIT_S = 10.0
_MAX_ADDRESSES = 8
_RESOLVER_THREADS = 16
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


class Dialer:
    """Judges destinations by the allow-list, resolves them and connects.

    `resolve` gives the addresses of a name, blocking, and raises OSError; None leaves only `hosts`.
    """

    def __init__(
        self,
        allowances: Sequence[Allowance],
        hosts: Mapping[str, tuple[IPAddress, ...]],
        resolve: Callable[[str], Sequence[IPAddress]] | None,
        *,
        resolve_limit_s: float = RESOLVE_LIMIT_S,
        dial_limit_s: float = DIAL_LIMIT_S,
    ) -> None:
        self._allowances = allowances
        self._hosts = hosts
        self._resolve = resolve
        self._resolve_limit_s = resolve_limit_s
        self._dial_limit_s = dial_limit_s
        self._threads = ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="resolver")

    async def judge(self, client: Client, wanted: Connect) -> tuple[IPAddress, ...] | Refused:
        """The addresses that may be dialled for what a client wants, or why none may. Raises nothing."""
        candidates = judge_host(self._allowances, client, wanted.host, wanted.port)
        if isinstance(candidates, Refused):
            return candidates
        addresses = await self._addresses(wanted.host)
        if isinstance(addresses, Refused):
            return addresses
        return judge_addresses(candidates, addresses, is_own)

    async def dial(self, addresses: Sequence[IPAddress], port: int) -> socket.socket | Refused:
        """A connection to the first address that answers, or why there is none. Raises nothing."""
        last = Refused(502, "the destination has no address")
        share_s = self._dial_limit_s / len(addresses) if addresses else 0
        for address in addresses:
            found = await _connect(address, port, share_s)
            if not isinstance(found, Refused):
                return found
            last = found
        return last

    def close(self) -> None:
        """Let go of the resolver's threads; what they still ask for is dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _addresses(self, host: str | IPAddress) -> Sequence[IPAddress] | Refused:
        if not isinstance(host, str):
            return (host,)
        if host in self._hosts:
            return self._hosts[host]
        if self._resolve is None:
            return Refused(502, f"the gateway knows no address of {host}")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._resolve_limit_s):
                found = await loop.run_in_executor(self._threads, self._resolve, host)
        except TimeoutError:
            return Refused(504, f"the gateway's resolver did not answer for {host} in time")
        except (OSError, ValueError):
            return Refused(502, f"the gateway's resolver knows no address of {host}")
        return found[:_MAX_ADDRESSES] or Refused(502, f"the gateway's resolver knows no address of {host}")


def system_resolver(name: str) -> Sequence[IPAddress]:
    """The addresses that this host's resolver gives for a name. Blocks; raises OSError."""
    answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    texts = dict.fromkeys(str(answer[4][0]) for answer in answers)
    return [ip_address(text) for text in texts if "%" not in text]


def is_own(address: IPAddress) -> bool:
    """Whether an address is one of this machine's: the kernel binds to no other. Unsure means yes."""
    try:
        with socket.socket(_family(address), socket.SOCK_DGRAM) as sock:
            sock.bind((str(address), 0))
    except OSError as error:
        return error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return True


async def _connect(address: IPAddress, port: int, time_limit_s: float) -> socket.socket | Refused:
    target = address.ipv4_mapped or address if isinstance(address, IPv6Address) else address
    shown = authority(address, port)
    try:
        sock = socket.socket(_family(target), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        return Refused(502, f"the gateway cannot connect to {shown}: {_reason(error)}")
    try:
        keep_alive(sock)
        async with asyncio.timeout(time_limit_s):
            await asyncio.get_running_loop().sock_connect(sock, (str(target), port))
    except TimeoutError:
        sock.close()
        return Refused(504, f"{shown} did not answer the gateway in time")
    except OSError as error:
        sock.close()
        return Refused(502, f"the gateway cannot connect to {shown}: {_reason(error)}")
    except BaseException:
        sock.close()
        raise
    return sock


def keep_alive(sock: socket.socket) -> None:
    """Have the kernel end a connection whose peer has silently gone."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _family(address: IPAddress) -> socket.AddressFamily:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _reason(error: OSError) -> str:
    return (os.strerror(error.errno) if error.errno else str(error)).lower()
