"""Real inference clients against a server of ours: `python -m tests.conformance`.

A client family is a list of pinned packages, `<family>.txt`, and a script, `<family>_cases.py`. The script runs in a
virtual environment of its own, because the clients' generated protobuf code clashes with ours, and imports nothing of
this repository but `harness` and `values` beside it.

A list names every dependency, so that environments are made quickly and alike. To renew one, install the client into a
new environment and freeze it; `perf_analyzer` needs its binary and a library only, both without their dependencies.
"""
