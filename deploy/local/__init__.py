"""The local stack: every process on one machine, on loopback, without containers."""
