"""Answers workers that ask for a portion of a quota, and tells `status` what is used.

What the quota is, and whose account is drawn on, is not the worker's to say: the policy in force says the
one, and the post of the worker the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from proxy.messages.worker import AskQuota, FromWorker, QuotaAnswer
from proxy.policy import Policy
from proxy.policy.model import Quota
from proxy.quotas import Key, Ledger


def answer(
    ledger: Ledger, policy: Policy, zone: str, user: str | None, message: FromWorker
) -> QuotaAnswer | None:
    """The answer to a question about a quota; None for another message. `user` is None where users log in."""
    if not isinstance(message, AskQuota):
        return None
    quota = next((one for one in quotas_of(policy) if _is_meant(one, message)), None)
    if quota is None:
        return QuotaAnswer(message.question, 0, 0, "the policy in force has no such quota")
    try:
        portion = ledger.take(
            Key.of(quota, message.user if user is None else user, zone),
            quota.limit_bytes,
            policy.model.timezone,
            max(0, message.wanted),
        )
    except OSError as error:
        return QuotaAnswer(message.question, 0, 0, f"it cannot be recorded: {error.strerror}")
    until_s = int(portion.until.timestamp())
    return QuotaAnswer(message.question, portion.granted, until_s, "" if portion.granted else "used up")


def quotas_of(policy: Policy) -> Iterator[Quota]:
    """Every quota of a policy."""
    return (quota for destination in policy.model.destinations for quota in destination.quotas)


def _is_meant(quota: Quota, message: AskQuota) -> bool:
    asked = (message.destination, message.transfer, message.per, message.every)
    return (quota.destination, str(quota.transfer), quota.per, quota.every) == asked


def status(ledger: Ledger, policy: Policy, whose: str | None) -> list[dict[str, Any]]:
    """The accounts that were drawn on, as JSON has them; of users only those of `whose`, None for all."""
    found = []
    for quota in quotas_of(policy):
        for key in ledger.accounts():
            same = (key.destination, key.transfer, key.per, key.every)
            if same != (quota.destination, str(quota.transfer), quota.per, quota.every):
                continue
            if whose is None or key.per != "user" or key.who == whose:
                usage = ledger.usage(key, quota.limit_bytes, policy.model.timezone)
                found.append(
                    {
                        "destination": key.destination,
                        "transfer": key.transfer,
                        "per": key.per,
                        "who": key.who,
                        "every": key.every,
                        "limit_bytes": usage.limit,
                        "used_bytes": usage.used,
                        "until": usage.opens.astimezone(policy.model.timezone).isoformat(timespec="minutes"),
                    }
                )
    return found
