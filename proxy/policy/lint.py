"""What is wrong with a policy beyond its words: errors that take a proof, and doubts worth a look.

A route that may change within a connection and a rule that can never decide are errors; a guard that
stops nothing yet is a note, since it is a safety net; the rest are warnings. What depends on the site
(which zones inspect, whose tunnels resolve) is given by the caller.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Literal

from proxy.flow import Verdict
from proxy.policy.cover import TooHard
from proxy.policy.duties import SCAN, unseen
from proxy.policy.evaluate import Policy
from proxy.policy.model import REQUEST_ATTRIBUTES, Entry, Match, Rule
from proxy.policy.prove import Finding, Prover
from proxy.policy.source import Problem, Problems, Where

_WIDE = 8

type Severity = Literal["error", "warning", "note"]

# What a finding is to its author; what is not here is an error.
SEVERITIES: Mapping[str, Severity] = {"dead-guard": "warning", "idle-guard": "note"}
_HARMLESS = "harmless: it guards against later rules"


@dataclass(frozen=True, slots=True, order=True)
class Lint:
    """A line for the author. An error refuses the policy; a warning wants a look, a note does not."""

    file: str
    line: int
    col: int
    severity: Severity
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.col}: {self.severity}: {self.message}"


@dataclass(frozen=True, slots=True)
class Site:
    """What a policy cannot know: the zones that cannot inspect, and those whose tunnel resolves names."""

    without_inspection: Collection[str] = ()
    resolved_remotely: Collection[str] = ()
    today: date | None = None


def refuse_unstable(policy: Policy, text: bytes) -> None:
    """Raises Problems for the first route that may change within a connection."""
    try:
        found = next(iter(Prover(policy).unstable_routes()), None)
    except TooHard as error:
        where = policy.model.rules[0].at
        raise Problems([Problem(*where, str(error))], text.decode()) from None
    if found is not None:
        entries = {entry.id: entry.at for entry in (*policy.model.guards, *policy.model.rules)}
        raise Problems([Problem(*entries[found.id], found.message)], text.decode())


def lint(policy: Policy, site: Site | None = None) -> list[Lint]:
    """Everything there is to say about a policy that loads, in the order of the file."""
    site = site or Site()
    prover = Prover(policy)
    places = {entry.id: entry.at for entry in (*policy.model.guards, *policy.model.rules)}
    findings = (*prover.dead_rules(), *prover.idle_guards())
    found = [Lint(*places[f.id], severity_of(f), told_in_full(f)) for f in findings]
    for entry, message in _doubts(policy, site):
        found.append(Lint(*entry, "warning", message))
    return sorted(found)


def severity_of(finding: Finding) -> Severity:
    """How bad a finding is."""
    return SEVERITIES.get(finding.kind, "error")


def told_in_full(finding: Finding) -> str:
    """The message of a finding, and for a note why it is no more."""
    return f"{finding.message} ({_HARMLESS})" if severity_of(finding) == "note" else finding.message


def _doubts(policy: Policy, site: Site) -> Iterator[tuple[Where, str]]:
    yield from _widened(policy)
    yield from _names_only(policy)
    yield from _wide_networks(policy)
    yield from _expired(policy, site.today)
    yield from _inspection(policy, site.without_inspection)
    yield from _addresses(policy, site.resolved_remotely)


def _widened(policy: Policy) -> Iterator[tuple[Where, str]]:
    """A grant of some requests that a later rule widens to all of them."""
    rules = [rule for rule in policy.model.enforced if rule.verdict is not Verdict.BLOCK]
    for i, rule in enumerate(rules):
        asked = REQUEST_ATTRIBUTES & set(rule.match.attributes())
        for later in rules[i + 1 :]:
            if asked and asked.isdisjoint(later.match.attributes()) and _same_but(rule, later, asked):
                words = ", ".join(sorted(asked))
                admits = f'"{later.id}" admits the rest'
                yield rule.at, f'rule "{rule.id}" limits {words}, and {admits}; limit both, or neither'
                break


def _same_but(rule: Rule, later: Rule, asked: Collection[str]) -> bool:
    """Whether the later rule holds wherever the earlier one does, but for what is asked."""
    for name in later.match.attributes():
        wide, narrow = getattr(later.match, name), getattr(rule.match, name)
        if narrow is None:
            return False
        if name == "to":
            if not set(narrow.names) <= set(wide.names) or not set(narrow.networks) <= set(wide.networks):
                return False
        elif name != "size" and not set(narrow) <= set(wide):
            return False
    return True


def _names_only(policy: Policy) -> Iterator[tuple[Where, str]]:
    """A guard by names that a grant by private networks may go around: the same hosts by their address."""
    granted = [
        (rule.id, network)
        for rule in policy.model.enforced
        if rule.verdict is not Verdict.BLOCK and rule.match.to
        for network in rule.match.to.networks
    ]
    for guard in policy.model.guards:
        to = guard.match.to
        if to and to.names and not to.networks and granted:
            identity, network = granted[0]
            what = f'guard "{guard.id}"'
            if guard.implied:  # its author wrote a destination
                what = f'destination "{guard.id.removeprefix(SCAN)}" is scanned and'
            yield (
                guard.at,
                f'{what} speaks of names only, and rule "{identity}" grants {network}, where such hosts may '
                f"be reached by address; add their network to {'the destination' if guard.implied else 'it'}",
            )


def _wide_networks(policy: Policy) -> Iterator[tuple[Where, str]]:
    """A network so wide that it claims the addresses of every name."""
    for destination in policy.model.destinations:
        for network in destination.to.networks:
            if network.prefixlen < _WIDE:
                message = (
                    f'"{destination.name}" has {network}: a name whose address is in it is blocked as '
                    f"rebinding unless it is listed there too; leave `to` out where any place is meant"
                )
                yield destination.at, message


def _expired(policy: Policy, today: date | None) -> Iterator[tuple[Where, str]]:
    entries: tuple[Entry, ...] = (*policy.model.guards, *policy.model.rules)
    for entry in entries:
        if today is None or entry.expires is None or today <= entry.expires:
            continue
        grants = isinstance(entry, Rule) and entry.verdict is not Verdict.BLOCK
        what = "no longer matches" if grants else "still blocks"
        yield entry.at, f'"{entry.id}" expired on {entry.expires} and {what}; renew or remove it'


def _concerns(match: Match, zones: Collection[str]) -> list[str]:
    return [zone for zone in zones if match.zone is None or zone in match.zone]


def _inspection(policy: Policy, zones: Collection[str]) -> Iterator[tuple[Where, str]]:
    """Rules that need a look into requests, in zones that have no inspection."""
    entries: tuple[Entry, ...] = (*policy.model.guards, *policy.model.enforced)
    for entry in entries:
        asked = {"method", "path", "content_type"} & set(entry.match.attributes())
        for zone in _concerns(entry.match, zones) if asked else ():
            words = ", ".join(sorted(asked))
            yield entry.at, f'"{entry.id}" needs {words} and zone {zone} has no inspection; it blocks there'
    for destination in policy.model.destinations:
        for zone in zones if destination.scan else ():
            what = f'"{destination.name}" is scanned and zone {zone} has no inspection'
            yield destination.at, f"{what}; nothing goes there from it"


def _addresses(policy: Policy, zones: Collection[str]) -> Iterator[tuple[Where, str]]:
    """Rules that need the address of a name, in zones whose tunnel resolves names itself."""
    blocking: list[Entry] = [guard for guard in policy.model.guards if not guard.implied]
    blocking += [rule for rule in policy.model.enforced if rule.verdict is Verdict.BLOCK]
    for entry in blocking:
        if entry.match.to and entry.match.to.networks:
            for zone in _concerns(entry.match, zones):
                yield entry.at, f'"{entry.id}" needs addresses, which the tunnel of {zone} does not tell'
    for zone in zones:
        for destination in unseen(policy.model, zone):
            what = f'what "{destination.name}" asks of its networks is not kept for names in zone {zone}'
            yield destination.at, f"{what}, whose tunnel does not tell their addresses; list names there"
