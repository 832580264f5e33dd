"""Defences of namespaces and of what a program in one has, each as code that takes it out: see weakened."""

from __future__ import annotations

from collections.abc import Mapping

_OWNED = """
import proxy.namespaces as n
_capture_rules = n.capture_rules
def owned():
    text = _capture_rules()
    head = "table inet zonegate {"
    return text[text.index(head):].replace(head, head + " flags owner;")
n.capture_rules = owned
"""
_TWO_TRANSACTIONS = """
import proxy.namespaces as n
_run_at_once = n.run
def run(command, text=""):
    if "chain capture" in text: _run_at_once(command, "table inet zonegate\\ndelete table inet zonegate\\n")
    _run_at_once(command, text)
n.run = run
"""
_ESTABLISHED = """
import proxy.tunnel_namespace as t
_rules_named = t.rules
t.rules = lambda *a, **more: _rules_named(*a, **more).replace(
    "policy drop;", "policy drop; ct state established accept;")
"""
_OPEN_TUNNEL = """
import proxy.tunnel_namespace as t
_rules_shut = t.rules
def rules(*a, **more):
    out, mark, others = _rules_shut(*a, **more).partition("chain in {")
    return out + mark + others.replace("policy drop;", "policy accept;")
t.rules = rules
"""
_RAW = """
import proxy.bubble as b, proxy.syscalls as s, pyseccomp
s.bubble_filter = lambda: s._program(pyseccomp.SyscallFilter(pyseccomp.ALLOW))
_arguments = b.arguments
def arguments(*a):
    told, fds = _arguments(*a)
    drop = told.index("--cap-drop")
    kept = told[told.index("--unshare-pid"):drop], told[drop + 2:]
    return ["bwrap", *kept[0], "--cap-add", "CAP_NET_RAW", *kept[1]], fds
b.arguments = arguments
"""
_SEARCH_LIST = """
import proxy.bubble as b
_files = b.files
def files(view):
    found = _files(view)
    own = found["/etc/resolv.conf"]
    return {**found, "/etc/resolv.conf": "search lan.example\\nnameserver 192.0.2.53\\n" + own}
b.files = files
"""


DEFENCES: Mapping[str, Mapping[str, str]] = {
    "plain-tables": {"cli": _OWNED},
    "one-transaction": {"cli": _TWO_TRANSACTIONS},
    "bubble-raw": {"cli": _RAW},
    "one-resolver": {"cli": _SEARCH_LIST},
}
# Of the inner holder of a packet tunnel.
OF_TUNNELS: Mapping[str, str] = {"none-for-being-old": _ESTABLISHED, "tunnel-drops": _OPEN_TUNNEL}
