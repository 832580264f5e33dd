"""The corporate end of an mtls tunnel: proves itself, demands proof, and connects to what it allows.

    config          gateway.yaml, strictly
    judge           pure: which client may reach which name, port and address
    requests        pure: a request head in, what it asks for out; and the answers
    revoked         the file of certificates that no longer count
    log             one JSON line for each thing that happened
    dial            a name to judged addresses, and a connection to one of them
    conversation    one client connection, from its handshake to its end
    server          all of them: accept, bound, cut
    service         files, signals, and the process around the server

It trusts no gate: it has its own allow-list, resolves and judges by itself, and keeps its own log.
"""
