"""`zonegate leaktest`: the ways out that are known, tried on this machine, each with its positive control.

    attempts    the table: what is tried, what should come of it, and by what its packets are known
    probes      the program that tries them; runs by itself, in the bubble and outside
    calls       the same program's attempts past any network: system calls, terminals, processes, files
    ground      what this host has: devices, addresses, resolvers, sockets; and the listeners set up on it
    capture     what is seen on the devices of a network namespace
    places      where the program runs: a namespace with a way out, the host, a bubble, root of its network
    states      what its user can bring a daemon into, and undo
    judge       pure: what was tried and seen, judged
    trial       one test from its control to its last round

It is a client of the daemon like any other: it needs no rights over it, and changes none of its settings.
"""
