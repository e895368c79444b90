"""The words of graph.json that its writer, its reader and its schema share; `docs/bundle-format.md` describes them."""

from __future__ import annotations

FORMAT = "axon.graph"
VERSION = 1
BODY_KEYS = frozenset({"nodes", "outputs", "blocks"})
"""What the graph and the definition of a block have in common."""
GRAPH_KEYS = BODY_KEYS | {"format", "version", "frozen", "tied", "requires", "policy", "artifacts", "functions"}
BLOCK_KEYS = BODY_KEYS | {"inputs", "remat"}
NODE_KEYS = frozenset({"name", "op", "inputs", "options", "policy", "params"})
TIE_KEYS = frozenset({"source", "transform"})
POLICY_KEYS = ("params", "compute", "output")
MAX_INLINE_CONSTANT = 4096
