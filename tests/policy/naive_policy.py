"""The referee: the language of policies read as plainly as it is written, without a table.

It shares the model with the compiled evaluator and nothing else. Facts may be given or NEVER; what is
not known or failed is weighed by giving it every value that could make a difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from itertools import product

from proxy.addresses import SPECIAL
from proxy.flow import (
    FAILED,
    NEVER,
    UNKNOWN,
    Flow,
    IPAddress,
    Missing,
    Protocol,
    Transfer,
    TunnelFact,
    TunnelState,
    Verdict,
)
from proxy.policy.model import STAGES, Guard, Match, Mode, Model, Rule, To


def judge(model: Model, flow: Flow, tunnel: TunnelFact | None) -> tuple[Verdict, str]:
    """The verdict and the id of what decided, for a flow of which nothing is unknown or failed."""
    if flow.name is NEVER and flow.address is NEVER:
        return Verdict.BLOCK, "no-address"
    verdict, by = Verdict.BLOCK, "default"
    if flow.zone in model.zones:
        verdict, by = first_rule(model, flow, tunnel)
        if verdict is not Verdict.BLOCK or by in ("default", "via"):
            for guard in sorted(model.guards, key=lambda g: g.at_most):
                if bites(model, guard, flow, tunnel) and (
                    guard.at_most < verdict or by in ("default", "via")
                ):
                    if guard.at_most is Verdict.BLOCK or verdict > guard.at_most:
                        verdict, by = guard.at_most, guard.id
                    break
    if verdict is Verdict.TUNNEL and tunnel is None:
        return Verdict.BLOCK, "no-tunnel"
    if verdict is not Verdict.BLOCK and (built_in := claimed(model, flow)):
        return Verdict.BLOCK, built_in
    return verdict, by


def first_rule(model: Model, flow: Flow, tunnel: TunnelFact | None) -> tuple[Verdict, str]:
    for rule in model.rules:
        if rule.mode is Mode.REPORT or expired(model, rule, flow):
            continue
        if matches(model, rule.match, flow, tunnel, grants=rule.verdict is not Verdict.BLOCK):
            if rule.via is not None and (tunnel is None or tunnel.name not in rule.via):
                return Verdict.BLOCK, "via"
            return rule.verdict, rule.id
    return Verdict.BLOCK, "default"


def expired(model: Model, rule: Rule, flow: Flow) -> bool:
    if rule.expires is None or rule.verdict is Verdict.BLOCK:
        return False
    return flow.at.astimezone(model.timezone).date() > rule.expires


def bites(model: Model, guard: Guard, flow: Flow, tunnel: TunnelFact | None) -> bool:
    if not matches(model, guard.match, flow, tunnel, grants=False):
        return False
    return guard.unless is None or not matches(model, guard.unless, flow, tunnel, grants=True)


def matches(model: Model, match: Match, flow: Flow, tunnel: TunnelFact | None, *, grants: bool) -> bool:
    return all(
        holds(model, match, name, flow, tunnel, grants) for name in STAGES if getattr(match, name) is not None
    )


def holds(model: Model, match: Match, name: str, flow: Flow, tunnel: TunnelFact | None, grants: bool) -> bool:
    wanted = getattr(match, name)
    http = flow.protocol in (Protocol.HTTP, Protocol.HTTPS, Protocol.QUIC)
    match name:
        case "zone" | "user" | "device":
            return getattr(flow, name) in wanted
        case "group":
            return bool(flow.groups & set(wanted))
        case "posture":
            return bool(flow.postures & set(wanted))
        case "to":
            return to_holds(wanted, flow, grants)
        case "port":
            return any(bounds.low <= flow.port <= bounds.high for bounds in wanted)
        case "protocol":
            return isinstance(flow.protocol, Protocol) and any(flow.protocol.is_a(p) for p in wanted)
        case "window":
            return any(window.name in wanted and window_open(model, window, flow) for window in model.windows)
        case "tunnel":
            return tunnel is not None and (state_word(tunnel) in wanted or tunnel.name in wanted)
        case "method":
            return http and flow.method in wanted
        case "path":
            return http and isinstance(flow.path, str) and any(below(flow.path, prefix) for prefix in wanted)
        case "content_type":
            return (
                http
                and isinstance(flow.content_type, str)
                and any(media(flow.content_type, w) for w in wanted)
            )
        case "transfer":
            return flow.transfer in wanted
        case "size":
            return isinstance(flow.size, int) and wanted.low <= flow.size <= wanted.high
    raise AssertionError(name)


def state_word(tunnel: TunnelFact) -> str:
    up = {TunnelState.ATTESTED: "attested", TunnelState.STALE: "stale"}
    return up.get(tunnel.state, "down")


def window_open(model: Model, window: object, flow: Flow) -> bool:
    local = flow.at.astimezone(model.timezone)
    minute = local.weekday() * 1440 + local.hour * 60 + local.minute
    return any(span.start <= minute < span.end for span in window.spans)  # type: ignore[attr-defined]


def below(path: str, prefix: str) -> bool:
    return prefix == "/" or path.split("/")[: len(prefix.split("/"))] == prefix.split("/")


def media(value: str, wanted: str) -> bool:
    return value == wanted or (wanted.endswith("/*") and value.split("/")[0] == wanted[:-2])


def name_in(to: To, name: str) -> bool:
    labels = name.split(".")
    suffixes = {".".join(labels[i:]) for i in range(1, len(labels))}
    return name in to.names or any(f"*.{suffix}" in to.names for suffix in suffixes)


def address_in(to: To, address: IPAddress | Missing) -> bool:
    if isinstance(address, Missing):
        return False
    meant = within(address)
    return any(meant.version == network.version and meant in network for network in to.networks)


def to_holds(to: To, flow: Flow, grants: bool) -> bool:
    if isinstance(flow.name, str):
        return name_in(to, flow.name) or (not grants and address_in(to, flow.address))
    return address_in(to, flow.address)


def within(address: IPAddress) -> IPAddress:
    if isinstance(address, IPv4Address):
        return address
    packed = address.packed
    if address.ipv4_mapped or address in ip_network("64:ff9b::/96"):
        return IPv4Address(packed[12:])
    if address.sixtofour:
        return IPv4Address(packed[2:6])
    return address.teredo[1] if address.teredo else address


def claimed(model: Model, flow: Flow) -> str:
    if isinstance(flow.address, Missing):
        return ""
    meant = within(flow.address)
    special = any(meant.version == block.version and meant in block for block in SPECIAL)

    def holding(to: To) -> bool:
        return any(
            meant.version == network.version
            and meant in network
            and (not special or any(network.version == b.version and network.subnet_of(b) for b in SPECIAL))  # type: ignore[arg-type]  # the versions are the same
            for network in to.networks
        )

    owners = [d for d in model.destinations if holding(d.to)]
    if not isinstance(flow.name, str):
        return "special-purpose" if special and not owners else ""
    if not special and not any(address_in(d.to, flow.address) for d in model.destinations):
        return ""
    return "" if any(name_in(d.to, flow.name) for d in owners) else "rebinding"


# What a fact can be, wherever it makes a difference to a policy of `random_policies`.
METHODS = ("GET", "POST", "PUT", "OPTIONS")
PATHS = ("/", "/api", "/api/v1", "/api/v1/x", "/apiary", "/static/a")
MEDIA = ("text/html", "text/plain", "application/json", "image/png")
SIZES = (0, 1, 1023, 1024, 1025, 1048575, 1048576, 1048577, 1 << 40)
ADDRESSES = tuple(
    ip_address(text)
    for text in (
        "8.8.8.8",
        "10.1.2.3",
        "10.20.0.5",
        "10.20.1.5",
        "127.0.0.1",
        "192.0.2.7",
        "::ffff:10.20.0.5",
        "64:ff9b::a14:5",
        "2002:a14:5::1",
        "2a00::1",
        "2a00:1::1",
        "2c00::1",
        "fe80::1",
    )
)


def completions(flow: Flow, missing: Missing) -> Iterator[Flow]:
    """The flow with every value for each fact that is missing in this way."""
    fields: dict[str, tuple[object, ...]] = {}
    if flow.protocol is missing:
        fields["protocol"] = tuple(p for p in Protocol if p.is_a(flow.transport))
    if flow.address is missing:
        fields["address"] = ADDRESSES
    values_of: dict[str, tuple[object, ...]] = {
        "method": METHODS,
        "path": PATHS,
        "content_type": MEDIA,
        "size": SIZES,
    }
    fields |= {name: values for name, values in values_of.items() if getattr(flow, name) is missing}
    if flow.transfer is missing:
        fields["transfer"] = tuple(Transfer)
    for values in product(*fields.values()):
        yield replace(flow, **dict(zip(fields, values, strict=True)))  # type: ignore[arg-type]


def verdicts(model: Model, flow: Flow, tunnel: TunnelFact | None) -> set[Verdict]:
    """The verdicts that the values of what is unknown lead to, the strictest over what has failed."""
    return {
        min(judge(model, known, tunnel)[0] for known in completions(partly, FAILED))
        for partly in completions(flow, UNKNOWN)
    }
