"""zonegate: what leaves a zone leaves through an authenticated tunnel, or not at all.

The floors, from the ground up; a module imports only from floors below its own (the order is a contract in
pyproject.toml, and this is what it is about):

    flow, addresses                        the words: Flow, Verdict, Because; hosts in one strict form
    policy/                                pure: YAML in, judgements out
    ipc, messages/                         how the processes speak, and what they say
    namespaces, sandbox, syscalls, prctl   the kernel: a zone of nothing but loopback, sealed processes
    certificates, lines, paths, notify     keys of a site, whole lines on disk, places, sd_notify
    scanning/                              pure: patterns in what is sent, as it passes
    inspection_ca, leaves                  the CA of inspection, and the certificates that an inspector shows
    channel/, link                         bytes of a socket or of TLS; one end of a link under a loop
    audit, journal, segments, chain        what is written down
    allocator, questions, names            synthetic addresses, and the DNS that tells them
    relay, flow_table, kept, egress        the carrier, the register of open flows, dial while leased
    first_bytes, gate, vetted, refusals    Flow -> Admission | Refusal, and how a refusal looks
    config, site                           the site file, and all that it names
    authority, new_site                    who issues the tunnels' certificates; a site's first day
    mtls_egress, packet_egress, leases     each kind's way to dial; a worker's tunnels, while they are leased
    replacement, rejudging                 a policy in place of another, and open flows judged by it
    hand, asking                           what is done to flows by hand; what a worker asks its supervisor
    replies, resolver, resolving           names behind a packet tunnel, and judged addresses
    wireguard_config, wg_quick             a WireGuard tunnel in a site file, and out of a wg-quick file
    site_insertion                         a tunnel put into the text of a site file
    tunnels/, renewal, expiry              a holder's evidence, judged; their certificates, kept new
    held, tunnel_orders                    what is held down by hand
    ip_packets, datagrams, exchange, quic  UDP: packets of our own, the table, the carrier, QUIC's names
    visitor, hearing, recording            whose flow it is, the gate's answer to it, what is written down
    datagram_passage, exchanges            the way of one exchange; those of a bubble or a client
    captured_datagrams                     a bubble's datagrams
    passage, captured, explicit/           the way of one flow; a bubble's ingress; HTTP proxy and SOCKS5
    listeners, passwords, private          explicit listeners as bound; files of logins; keys as files
    quotas, purse, quota_service           how much may still go: the accounts, the portions of a worker
    trust                                  what makes a bubble's programs trust the inspection CA
    bubble, inner, run                     a program's sandbox, and the processes beside it
    dialling, holder, door                 the small processes; holder_process is how those that hold live
    datagram_holder, associating           the sockets of SOCKS5 clients' datagrams, and who starts it
    wireguard, packet_holder               a packet tunnel's two holders; what they use: its namespace,
                                           wireguard_device, shuttle, probing
    posts, doors, crew                     what a worker serves, its bubbles' ears, the worker itself
    allocators, manning                    who keeps the names of each user; who keeps a worker at each post
    directory                              who a user of this machine is
    reception, admin, remains              who may enter, the admin socket, what is left
    handing_over, inspection/, inspectors  what is looked into: given away, carried, and who watches that
    gateway/                               the corporate end of mtls
    sealed                                 the life of a worker's process
    worker, inspector, supervisor          the only places that wire
    attach                                 a namespace that was there before, as a zone
    leaktest/                              the known ways out, tried on this machine
    demo/, cli/                            the demonstration, the commands
"""
