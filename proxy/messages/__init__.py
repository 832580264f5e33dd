"""What the processes say to each other, a module for each pair of them.

Values only, checked field by field by `ipc`. Times ending in `_ns` are CLOCK_BOOTTIME, which goes on while
the machine sleeps. Standard library only: the holder imports them.
"""
