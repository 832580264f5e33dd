"""Defences of explicit listeners and of an administrator's files, to be taken out: rows for `weakened`.

Each is code that is run in a worker (or in the command itself: "cli") before it begins.
"""

from __future__ import annotations

from collections.abc import Mapping

# Every module that has imported a name gets another one in its place.
_EVERYWHERE = """
import sys
def everywhere(name, new):
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("proxy") and hasattr(module, name):
            setattr(module, name, new)
"""

DEFENCES: Mapping[str, Mapping[str, str]] = {
    "names-agree": {
        "worker": _EVERYWHERE + "import dataclasses, re, proxy.explicit.requests as r, proxy.explicit.web\n"
        "everywhere('disagreement', lambda flow, seen: None)\n"
        "strict = r.parse_request\n"
        "def parse_request(head):\n"
        "    host = re.sub(r'^(?:http://)?([^/]*).*', r'\\1', head.start.split(' ')[1])\n"
        "    fields = [('host', host) if name == 'host' else (name, value) for name, value in head.fields]\n"
        "    return strict(dataclasses.replace(head, fields=tuple(fields)))\n"
        "everywhere('parse_request', parse_request)",
    },
    "strict-addresses": {
        "worker": _EVERYWHERE
        + "import ipaddress, socket, proxy.addresses, proxy.explicit.web, proxy.explicit.socks\n"
        "strict = proxy.addresses.parse_host\n"
        "def parse_host(text):\n"
        "    try: return ipaddress.IPv4Address(socket.inet_aton(text))\n"
        "    except (OSError, ValueError): return strict(text)\n"
        "everywhere('parse_host', parse_host)",
    },
    "strict-heads": {
        "worker": _EVERYWHERE + "import re, proxy.channel.head as h, proxy.explicit.web\n"
        "strict = h.parse_head\n"
        "def parse_head(head, limit_fields=64):\n"
        "    head = re.sub(rb'\\r\\n[ \\t]+', b' ', head)\n"
        "    head = re.sub(rb' http://[^/ ]*@', b' http://', head)\n"
        "    first, *others = re.split(rb'(?i)\\r\\n(?=host:)', head)\n"
        "    others = [others[0], *(one.partition(b'\\r\\n')[2] for one in others[1:])] if others else []\n"
        "    return strict(b'\\r\\n'.join([first, *filter(None, others)]), limit_fields)\n"
        "everywhere('parse_head', parse_head)",
    },
    "one-length": {
        "worker": _EVERYWHERE + "import proxy.explicit.web\neverywhere('check_framing', lambda head: None)",
    },
    "close-after-refusal": {
        "worker": _EVERYWHERE + "import dataclasses, proxy.explicit.web as w\n"
        "class Lasting:\n"
        "    def __init__(self, channel): self.channel = channel\n"
        "    def __getattr__(self, name): return getattr(self.channel, name)\n"
        "    def abort(self): pass\n"
        "    async def close(self): pass\n"
        "    async def write_eof(self): pass\n"
        "strict, told = w._serve, w.tell\n"
        "async def tell(client, words):\n"
        "    await (client.write(words) if type(client) is Lasting else told(client, words))\n"
        "everywhere('tell', tell)\n"
        "async def serve(guest, house, head):\n"
        "    if not head.start.startswith('CONNECT'): return await strict(guest, house, head)\n"
        "    await strict(dataclasses.replace(guest, client=Lasting(guest.client)), house, head)\n"
        "    return True\n"
        "w._serve = serve",
    },
    "judge-first": {  # whatever is asked for is admitted as if it were the intranet
        "worker": "import dataclasses, proxy.gate as g\n"
        "from proxy.flow import NEVER, Protocol\n"
        "strict = g.Gate.ask\n"
        "def ask(self, flow, through=None):\n"
        "    known = dataclasses.replace(flow, name='intranet.corp.example', address=NEVER, port=80,\n"
        "        protocol=Protocol.HTTP)\n"
        "    return strict(self, known, through)\n"
        "g.Gate.ask = ask",
    },
    "socks-commands": {
        "worker": "import proxy.explicit.socks as s\n"
        "strict = s.request\n"
        "async def request(client): return (1, *(await strict(client))[1:])\n"
        "s.request = request",
    },
    "bounded-heads": {
        "worker": _EVERYWHERE + "import proxy.explicit.web\neverywhere('HEAD_BYTES', 1 << 20)",
    },
    "waiting-clients": {
        "worker": "import proxy.explicit.listener as l\nl.Explicit._make_room = lambda self: False",
    },
    "failed-logins": {
        "worker": "import proxy.explicit.logins as l\nl.Failures.may_try = lambda self, address: True",
    },
    "unspoken-passwords": {
        "worker": "import sys, proxy.explicit.web as w\n"
        "strict = w._basic\n"
        "def basic(value):\n"
        "    print('logged in with', *(strict(value) or ()), file=sys.stderr, flush=True)\n"
        "    return strict(value)\n"
        "w._basic = basic",
    },
    "strict-files": {
        "cli": "import proxy.passwords as p, proxy.policy.source as s\n"
        "strict = p.read\n"
        "p.read = lambda text: strict(b'\\n'.join(i for i in text.splitlines() if i.count(b':') == 6))\n"
        "refuse = s._Composer.refuse\n"
        "def told(self, at, words):\n"
        "    if 'duplicate key' not in words: refuse(self, at, words)\n"
        "s._Composer.refuse = told",
    },
}
