"""Limits of what is read from strangers, checked before anything is allocated for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds; sizes in bytes.

    Attributes:
        bundle_bytes: of the whole file.
        members: number of files in it.
        graph_bytes: of graph.json and of every other JSON member.
        nodes: of a graph with the definitions of its blocks.
        expanded_nodes: of a graph with every call of a block written out, as it is traced and compiled; a node counts
            as often as it has inputs, and so does the list of outputs.
        block_depth: of blocks within blocks.
        depth: nesting of JSON.
        parameter_bytes: parameters, state and constants together.
        activation_bytes: outputs of all nodes together at `activation_batch` rows.
        shapes_s: CPU seconds for working out the shapes of a graph.
        program_bytes: of one artifact.
        program_arrays: arguments, or results, of a program.
        program_operations: of a module, with every call written out, as it is compiled.
        program_depth: of calls, loops and branches within each other.
        program_constant_bytes: of all constants of a module.
        program_array_bytes: of any one array in a program.
        program_steps: operations that a program executes, every turn of its loops counted.
        program_work: numbers that a program computes, with the products summed for them.
        check_s: wall-clock seconds of a program's trial in a process of its own.
        check_bytes: memory of that process.
    """

    bundle_bytes: int = 4 * 2**30
    members: int = 512
    graph_bytes: int = 4 * 2**20
    nodes: int = 4096
    expanded_nodes: int = 16384
    block_depth: int = 16
    depth: int = 64
    parameter_bytes: int = 4 * 2**30
    activation_bytes: int = 8 * 2**30
    activation_batch: int = 64
    shapes_s: float = 5.0
    program_bytes: int = 32 * 2**20
    program_arrays: int = 1024
    program_operations: int = 50_000
    program_depth: int = 64
    program_constant_bytes: int = 256 * 2**20
    program_array_bytes: int = 2 * 2**30
    program_steps: int = 10**7
    program_work: int = 10**13
    check_s: float = 60.0
    check_bytes: int = 8 * 2**30


DEFAULT_LIMITS = Limits()
