"""Inspection: the carrier of HTTP whose verdicts wait for what stands in each request.

Runs in the inspector, which is sealed like a worker, and is the only part of zonegate that imports mitmproxy.
mitmproxy takes HTTP apart and puts it together again; it decides nothing, dials nothing, resolves nothing and
reads no file. From the ground up:

    heads        what a request and a response say, strictly; pure
    scans        the scan of one request, beside its judgement
    exchange     one request that was let through: what may be carried of it
    judging      one connection's requests: judged, recorded, registered, each by itself
    tls          the TLS of both sides
    streams      a channel as mitmproxy wants a reader and a writer
    requests     mitmproxy's layer of one request, in which a refusal is a page and a budget ends at the byte
    http         mitmproxy's layers of a connection: heads are looked at before it repairs them
    pages        what clients are shown in place of an answer
    hooks        the answers to mitmproxy's hooks: layers, TLS, a verdict for every head
    connection   one connection: what goes wrong in a hook cuts it, and here is the only way to dial
"""
