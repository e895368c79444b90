"""Real inference clients against a server of ours: `python -m tests.conformance`.

A client family is a list of pinned packages, `<family>.txt`, and a script, `<family>_cases.py`. The script runs in a
virtual environment of its own, because the clients' generated protobuf code clashes with ours, and imports nothing of
this repository but `harness` and `values` beside it.
"""
