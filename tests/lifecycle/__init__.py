"""Models that are loaded, moved and deleted under traffic, in real processes: `python -m tests.lifecycle SECONDS`."""
