"""The wires: REST and gRPC over one core."""
