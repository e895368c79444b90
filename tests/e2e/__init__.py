"""End to end: real processes, real wires."""
