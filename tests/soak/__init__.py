"""What a server takes over time: memory, descriptors, threads, programs. `python -m tests.soak [SECONDS]`."""
