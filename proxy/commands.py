"""What a command asks or orders, brought to whoever answers it. Decides nothing but who that is."""

from __future__ import annotations

import json
from typing import Protocol

from proxy import orders, state, tunnel_orders
from proxy.directory import Directory, DirectorySilent, User
from proxy.messages.admin import Answer, Ask, Denied, Order
from proxy.orders import OrderRefused, is_owner, parameters_of


class Daemon(state.Daemon, orders.Daemon, tunnel_orders.Daemon, Protocol):
    """What all of them need of a supervisor."""

    directory: Directory


async def answer(daemon: Daemon, uid: int, message: Ask | Order) -> Answer | Denied:
    """The answer to a user's question or order. Only what is judged by groups waits for the directory."""
    asks_of_groups = isinstance(message, Ask) and message.what == "explain"
    try:
        user = await daemon.directory.user(uid) if asks_of_groups else daemon.directory.at_once(uid)
        if isinstance(message, Order):
            return Answer(json.dumps(await _carry_out(daemon, message, user)))
        if message.what == "flows":
            found = await orders.flows(daemon, parameters_of(message.parameters), user)
            return Answer(json.dumps(found, ensure_ascii=False))
    except (OrderRefused, DirectorySilent) as error:
        return Denied(str(error))
    return Answer(state.answer_question(daemon, message.what, message.parameters, user))


async def _carry_out(daemon: Daemon, order: Order, user: User) -> dict[str, object]:
    """Raises OrderRefused."""
    parameters = parameters_of(order.parameters)
    if order.what in tunnel_orders.ORDERS:
        return await tunnel_orders.carry_out(daemon, order.what, parameters, user)
    if order.what != "reload":
        return await orders.carry_out(daemon, order.what, parameters, user)
    if not is_owner(user):
        raise OrderRefused("only the user who runs the daemon may have it read its files again")
    return await daemon.reloads.reload(check=parameters.get("check") is True)
