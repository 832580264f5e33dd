"""The lab: a device, a hostile network and a corporate end in namespaces, and a wire that is watched.

    kernel      namespaces, processes in them, and waiting
    wire        what is seen on a link: frames that are not the connection to the gateway
    servers     the corporate site and the public internet, as one process each
    world       the three namespaces, certificates, servers and the gateway; the host of one user
    gate        one daemon, its bubbles, its status and its records
    weakened    the product with one defence taken out, for the positive controls
    asleep      a gate whose processes stand still, and wake in any order or at once
    stepping    what has a process of the product stop at a step of its start; `stops` hears of them
    programs/   what runs inside bubbles (and, for the controls, outside)

`make lab-long` runs long_life: every step of every process, every flap. `make lab-kernel` runs kernel_device,
in a `machine` of Debian's kernel; `carriers` knows who has a WireGuard device.

Needs root. Everything started is ended by its pid; a missing tool fails.
"""
