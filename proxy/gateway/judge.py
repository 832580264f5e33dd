"""Which client may reach which name, port and address.

Pure: values in, values out; it resolves nothing and dials nothing. What no entry of the allow-list
admits is refused, and addresses that lead back into the gateway, its link or its cloud's metadata are
refused even where a wide network would contain them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_network

from proxy.addresses import IPNetwork, inner
from proxy.flow import IPAddress

ANY_NAME = "*"
FOR_EVER = datetime.max.replace(tzinfo=UTC)

# Never reached through a network that merely contains them: only one that lies within the block names it.
SENSITIVE: tuple[IPNetwork, ...] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",  # connects to the own host
        "100.64.0.0/10",  # RFC 6598, of the provider; 100.100.100.200 is metadata
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's metadata on a public address
        "169.254.0.0/16",  # link-local, with 169.254.169.254
        "192.0.0.0/24",  # RFC 6890; 192.0.0.192 is metadata
        "198.18.0.0/15",  # the synthetic addresses of gates
        "224.0.0.0/4",
        "240.0.0.0/4",
        "::/96",  # unspecified, loopback, IPv4-compatible
        "fd00:ec2::254/128",  # metadata
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
    )
)


@dataclass(frozen=True, slots=True)
class Client:
    """Who a verified certificate speaks for, and until when. `serial` is in lower-case hexadecimal digits."""

    name: str
    fingerprint: str
    serial: str
    until: datetime = FOR_EVER


@dataclass(frozen=True, slots=True)
class Allowance:
    """One entry of the allow-list: every dimension that is given must match.

    Without `names` it is for literal addresses only; without `networks` a named destination may have any
    address but a sensitive one; without `clients` it is for every client. `ports` are inclusive ranges.
    """

    names: tuple[str, ...]
    networks: tuple[IPNetwork, ...]
    ports: tuple[tuple[int, int], ...]
    clients: tuple[str, ...]
    where: str

    def admits_client(self, client: Client) -> bool:
        """Whether this entry speaks of the client at all."""
        return not self.clients or client.name in self.clients or client.fingerprint in self.clients

    def admits_host(self, host: str | IPAddress) -> bool:
        """Whether it admits a name, or a literal address, before anything is resolved."""
        if isinstance(host, str):
            return any(_name_matches(pattern, host) for pattern in self.names)
        return not self.names and self._contains(inner(host))

    def admits_port(self, port: int) -> bool:
        """Whether the port lies in one of its ranges."""
        return any(low <= port <= high for low, high in self.ports)

    def admits_address(self, address: IPAddress, *, own: bool) -> bool:
        """Whether it admits the address behind a host that it admits.

        `own` is an address of this machine: only itself, written out as a network, names it.
        """
        if self.networks and not self._contains(address):
            return False
        blocks = [block for block in SENSITIVE if block.version == address.version and address in block]
        if own and not blocks:
            return any(net.prefixlen == net.max_prefixlen and address in net for net in self.networks)
        return all(any(_names(network, block, address) for network in self.networks) for block in blocks)

    def _contains(self, address: IPAddress) -> bool:
        return any(net.version == address.version and address in net for net in self.networks)


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that goes nowhere: an HTTP status and one line that says why."""

    status: int
    because: str


def judge_host(
    allowances: Sequence[Allowance], client: Client, host: str | IPAddress, port: int
) -> tuple[Allowance, ...] | Refused:
    """The entries that may admit the destination, subject to its address; or why none can."""
    named = [entry for entry in allowances if entry.admits_host(host)]
    if not named:
        return Refused(403, f"no entry of the gateway's allow-list admits {host}")
    for_port = [entry for entry in named if entry.admits_port(port)]
    if not for_port:
        return Refused(403, f"the gateway's allow-list does not admit port {port} of {host}")
    for_client = tuple(entry for entry in for_port if entry.admits_client(client))
    return for_client or Refused(403, f"the gateway's allow-list does not admit {host} for this client")


def judge_addresses(
    candidates: Sequence[Allowance],
    addresses: Sequence[IPAddress],
    is_own: Callable[[IPAddress], bool],
) -> tuple[IPAddress, ...] | Refused:
    """The addresses that may be dialled, in their order; or why none may be.

    An address is judged by the one within it (mapped, NAT64, 6to4, Teredo).
    """
    good = []
    for address in addresses:
        meant = inner(address)
        own = is_own(meant) or is_own(address)
        if any(entry.admits_address(meant, own=own) for entry in candidates):
            good.append(address)
    if good:
        return tuple(good)
    shown = ", ".join(map(str, addresses[:3]))
    return Refused(403, f"the gateway's allow-list does not admit the address {shown}")


def _names(network: IPNetwork, block: IPNetwork, address: IPAddress) -> bool:
    return (
        network.version == block.version
        and network.prefixlen >= block.prefixlen
        and network.network_address in block
        and address in network
    )


def _name_matches(pattern: str, name: str) -> bool:
    if pattern.startswith("*."):
        return name.endswith(pattern[1:])
    return pattern in (ANY_NAME, name)
