"""Other model servers, to be measured next to ours: what each speaks, and how it is started.

Each is a script `NAME_server.py` that runs in an environment of its own, made from `NAME.txt` by
`python -m benchmarks.peers install [NAME...]`.
"""
