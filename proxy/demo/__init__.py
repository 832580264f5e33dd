"""The demonstration: a corporate end, a gate and bubbles on this machine, and what a person should see."""
