"""zonegate: what leaves a zone leaves through an authenticated tunnel, or not at all.

The floors, from the ground up; a module imports only from floors below its own:

    flow                                   the words: Flow, Verdict, Because, Refusal
    policy/                                pure: YAML in, judgements out
    config                                 the site file
    ipc, namespaces, sandbox               the kernel: sockets, namespaces, seccomp
    audit, allocator                       what is remembered
    tunnels/                               bring a tunnel up, gather evidence, judge it
    egress, channel                        dial while leased; bytes of a socket or of TLS
    flow_table                             the register of open flows; a flow is cut here
    relay, names                           the carriers
    gate                                   Flow -> Admission | Refusal
    gateway, bubble                        the corporate end of mtls; a program's sandbox
    holder, worker, supervisor             processes; only supervisor and worker wire
    admin, demo                            the socket that commands speak to; the demonstration
    cli/                                   commands
"""
