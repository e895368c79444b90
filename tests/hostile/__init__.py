"""Hostile clients against a real server: raw HTTP, raw HTTP/2 frames under gRPC, and schemathesis on our description.

`python -m tests.hostile SECONDS [SEED]` prints counts; see `__main__`.
"""
