"""From nodes to what a destination asks: scans, quotas, and the words that scans look for."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

from proxy.flow import Transfer
from proxy.policy import grammar
from proxy.policy.model import BUILT_IN_PATTERNS, QUOTA_EVERY, QUOTA_PER, Pattern, Quota, Scan
from proxy.policy.reading import Reading, did_you_mean
from proxy.policy.source import Map, Node, Scalar, Seq

LEAST_LETTERS, MOST_LETTERS, MOST_WORDS = 4, 64, 100


class DutyReader:
    """Reads what stands beside the hosts of a destination."""

    def __init__(self, reading: Reading) -> None:
        self.r = reading

    def pattern(self, key: Scalar, node: Node) -> Pattern:
        """Words of one's own under a name."""
        what = f'pattern "{key.text}"'
        if key.text in BUILT_IN_PATTERNS:
            self.r.problem(key, f"{what} is built in; choose another name")
        found = self.r.mapping(node, what, grammar.PATTERN, grammar.required(grammar.PATTERN))
        words = self.r.words(found["words"], f"words of {what}") if "words" in found else ()
        if len(words) > MOST_WORDS:
            self.r.problem(found["words"], f"{what} has {len(words)} words; write at most {MOST_WORDS}")
        for word in words:
            self._word(word)
        return Pattern(key.text, tuple(" ".join(word.text.split()) for word in words))

    def _word(self, word: Scalar) -> None:
        """Short words are everywhere; and where a word ends must be told from its neighbours."""
        text = word.text
        if not LEAST_LETTERS <= len(text) <= MOST_LETTERS:
            self.r.problem(
                word, f'"{text[:80]}" has {len(text)} letters; write {LEAST_LETTERS} to {MOST_LETTERS}'
            )
        elif not (text[0].isalnum() and text[-1].isalnum()):
            self.r.problem(word, f'"{text}" must begin and end with a letter or a digit; leave the rest out')

    def scan(self, node: Node, what: str, defined: Collection[str]) -> Scan:
        """`[card-numbers, ...]` blocks; a map says what blocks and what is only reported."""
        if not isinstance(node, Map):
            return Scan(self._patterns(node, f"scan of {what}", defined), ())
        found = self.r.mapping(node, f"scan of {what}", grammar.SCAN)
        lists = {
            key: self._patterns(found[key], f"{key} in scan of {what}", defined) if key in found else ()
            for key in grammar.SCAN
        }
        if not found:
            self.r.problem(node, f"scan of {what} looks for nothing; name patterns or remove it")
        for name in set(lists["block"]) & set(lists["report"]):
            self.r.problem(node, f'"{name}" is under block and report in scan of {what}; remove one')
        return Scan(lists["block"], lists["report"])

    def _patterns(self, node: Node, what: str, defined: Collection[str]) -> tuple[str, ...]:
        known = (*BUILT_IN_PATTERNS, *defined)
        words = self.r.words(node, what)
        for word in words:
            if word.text not in known:
                cure = did_you_mean(word.text, known) or f"; use {', '.join(known)}, or define it"
                self.r.problem(word, f'"{word.text}" is not a pattern of this policy{cure}')
        return tuple(word.text for word in words)

    def quotas(self, name: str, node: Node, what: str) -> tuple[Quota, ...]:
        """The quotas of a destination: one map or a list of them."""
        nodes = node.items if isinstance(node, Seq) else (node,)
        if not nodes:
            self.r.problem(node, f"quota of {what} is an empty list; write one or remove the key")
        found = [quota for item in nodes for quota in self._quota(name, item, f"quota of {what}")]
        seen: set[tuple[str, str, str]] = set()
        for quota in found:
            key = (quota.transfer, quota.per, quota.every)
            if key in seen:
                text = f"{what} has two quotas for {quota.transfer} per {quota.per} every {quota.every}"
                self.r.problem(node, f"{text}; remove one")
            seen.add(key)
        return tuple(found)

    def _quota(self, name: str, node: Node, what: str) -> list[Quota]:
        found = self.r.mapping(node, what, grammar.QUOTA, grammar.required(grammar.QUOTA))
        per = self.r.choice(found["per"], f"per in {what}", QUOTA_PER) if "per" in found else None
        every = self.r.choice(found["every"], f"every in {what}", QUOTA_EVERY) if "every" in found else None
        limits = {t: self.r.size_bytes(found[t], f"{t} in {what}") for t in Transfer if t in found}
        if isinstance(node, Map) and not limits:
            self.r.problem(node, f"{what} bounds nothing; write upload, download or both")
        return [
            Quota(name, transfer, limit, cast("object", per), cast("object", every))  # type: ignore[arg-type]  # the tables of words hold the literals
            for transfer, limit in limits.items()
            if limit is not None and per and every
        ]
