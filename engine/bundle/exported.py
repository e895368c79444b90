"""The file of a program, as `jax.export` writes it: what it says of itself, checked, and the modules inside.

Only what a pure function of arrays on one device needs is accepted; a field that this reader does not know is
refused, since a newer JAX would act on it. Nothing here runs JAX.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine.bundle.flatbuffer import Buffer, Malformed, Table
from engine.bundle.limits import Limits

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
_DTYPES = {
    **dict(enumerate(("i1", "i8", "i16", "i32", "i64", "ui8", "ui16", "ui32", "ui64", "f16", "f32", "f64"))),
    12: "complex<f32>",
    13: "complex<f64>",
    14: "bf16",
    22: "i1",
}
"""MLIR's names by the schema's numbers; 22 is float0, the tangent of an integer."""
_FLOAT0 = 22
_SIZE = re.compile(r"[A-Za-z0-9_+\-*^(), ]+")
_LARGE = re.compile(r"\)\^|\^(?![2-9](?!\d))|\d{19}")
"""What makes JAX multiply out for ever: powers of sums, high powers; and numbers beyond 64 bits."""
_MAX_TEXT = 256
_MAX_SIZE_TEXT = 200
_MAX_RANK = 32
_MAX_TREE_DEPTH = 64
_LEAF, _NONE, _TUPLE, _LIST, _DICT = range(5)

# The slots of the schema's table `Exported`.
_NAME, _IN_TREE, _IN_AVALS, _OUT_TREE, _OUT_AVALS, _DEVICES_SHORT, _IN_SHARDINGS, _OUT_SHARDINGS = range(1, 9)
_PLATFORMS, _ORDERED, _UNORDERED, _DISABLED, _MODULE, _CONVENTION, _KEPT, _GLOBALS, _VJP, _DEVICES = range(9, 19)
_AVALS, _MESHES, _SHARDINGS, _IN_AVAL_IDS, _OUT_AVAL_IDS, _IN_SHARDING_IDS, _OUT_SHARDING_IDS = range(19, 26)
_JAX_VERSION = 26


@dataclass(frozen=True, slots=True)
class ArrayType:
    """A declared argument or result: sizes as numbers or expressions of symbols, dtype as MLIR spells it."""

    sizes: tuple[str, ...]
    dtype: str
    float0: bool = False

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(self.sizes)}]"


@dataclass(frozen=True, slots=True)
class Exported:
    """One exported function: its signature, which arguments its module takes, the module's bytes, its derivative."""

    inputs: tuple[ArrayType, ...]
    outputs: tuple[ArrayType, ...]
    kept: tuple[int, ...]
    platforms: tuple[str, ...]
    module: bytes
    vjp: Exported | None


def read(data: bytes, limits: Limits) -> Exported:
    """The function in a program's bytes; raises `Malformed`."""
    if len(data) > limits.program_bytes:
        raise Malformed(f"at most {limits.program_bytes} bytes", f"{len(data)}")
    return _exported(Buffer(data, 64 * limits.program_arrays).root(), limits, derivative=False)


def _exported(table: Table, limits: Limits, *, derivative: bool) -> Exported:
    if unknown := sorted(slot for slot in table.slots() if slot > _JAX_VERSION):
        raise Malformed("fields that this reader knows", f"field {unknown[0]}, of a newer jax.export")
    table.text(_NAME, _MAX_TEXT)
    table.text(_JAX_VERSION, _MAX_TEXT)
    _check_pure(table)
    avals = [_aval(each) for each in table.tables(_AVALS)]
    inputs = _avals(table, avals, _IN_AVAL_IDS, _IN_AVALS, limits)
    outputs = _avals(table, avals, _OUT_AVAL_IDS, _OUT_AVALS, limits)
    _check_shardings(table, _IN_SHARDING_IDS, _IN_SHARDINGS, len(inputs))
    _check_shardings(table, _OUT_SHARDING_IDS, _OUT_SHARDINGS, len(outputs))
    _check_tree(table.table(_IN_TREE), len(inputs))
    _check_tree(table.table(_OUT_TREE), len(outputs))
    kept = table.integers(_KEPT, "H")
    if sorted(set(kept)) != kept or any(index >= len(inputs) for index in kept):
        raise Malformed(f"kept arguments out of {len(inputs)}, ascending", f"{kept[:20]}")
    platforms = table.texts(_PLATFORMS, _MAX_TEXT)
    if not platforms or len(set(platforms)) != len(platforms) or set(platforms) - set(PLATFORMS):
        raise Malformed(f"platforms out of {', '.join(PLATFORMS)}, each once", f"{platforms[:8]}")
    vjp = table.table(_VJP)
    if vjp is not None and derivative:
        raise Malformed("derivatives of first order at most", "one of second order")
    found = None if vjp is None else _exported(vjp, limits, derivative=True)
    module = table.octets(_MODULE)
    exported = Exported(tuple(inputs), tuple(outputs), tuple(kept), tuple(platforms), module, found)
    if found is not None:
        _check_derivative(exported, found)
    return exported


def _check_pure(table: Table) -> None:
    for what, slots in (("effects", (_ORDERED, _UNORDERED)), ("meshes or shardings", (_MESHES, _SHARDINGS))):
        if any(table.length(slot) for slot in slots):
            raise Malformed(f"a function without {what}", f"one with {what}")
    if table.length(_DISABLED):
        raise Malformed("no disabled safety checks", f"{table.length(_DISABLED)}")
    devices = table.integer(_DEVICES, "I") or table.integer(_DEVICES_SHORT, "h")
    if devices != 1:
        raise Malformed("a function for one device", f"{devices} devices")
    if table.integer(_CONVENTION, "H") not in (9, 10):
        raise Malformed("calling convention 9 or 10", f"{table.integer(_CONVENTION, 'H')}")


def _aval(table: Table) -> ArrayType:
    kind, dtype, memory = (table.integer(slot, "b") for slot in (0, 2, 3))
    if kind != 0 or memory not in (0, 1) or dtype not in _DTYPES:
        raise Malformed("arrays of numbers in device memory", f"kind {kind}, dtype {dtype}, memory space {memory}")
    sizes = table.texts(1, _MAX_SIZE_TEXT)
    if len(sizes) > _MAX_RANK:
        raise Malformed(f"arrays of at most {_MAX_RANK} axes", f"{len(sizes)}")
    for size in sizes:
        if not _SIZE.fullmatch(size) or _LARGE.search(size) or "**" in size:
            raise Malformed("sizes as numbers or sums and products of symbols", repr(size))
    return ArrayType(tuple(sizes), _DTYPES[dtype], dtype == _FLOAT0)


def _avals(table: Table, unique: list[ArrayType], ids: int, legacy: int, limits: Limits) -> list[ArrayType]:
    """By index into the distinct ones; in full where there are no indices, as JAX reads them."""
    if (count := max(table.length(ids), table.length(legacy))) > limits.program_arrays:
        raise Malformed(f"at most {limits.program_arrays} arguments and results", f"{count}")
    full = [_aval(each) for each in table.tables(legacy)]
    indices = table.integers(ids, "I")
    if any(index >= len(unique) for index in indices):
        raise Malformed(f"indices below {len(unique)}", f"{max(indices)}")
    return [unique[index] for index in indices] or full


def _check_shardings(table: Table, ids: int, legacy: int, count: int) -> None:
    indices = table.integers(ids, "I")
    full = table.tables(legacy)
    if any(indices) or any(each.slots() & {1, 2} for each in full):
        raise Malformed("a function without shardings", "one with shardings")
    if (len(indices) or len(full)) != count:
        raise Malformed(f"{count} shardings, none of them set", f"{len(indices) or len(full)}")


def _check_tree(table: Table | None, leaves: int) -> None:
    """Tuples, lists, dicts and nothing else: JAX would call the code registered for any other kind."""
    if table is None:
        raise Malformed("the structure of arguments and results", "none")
    found, stack = 0, [(table, 0)]
    while stack:
        node, depth = stack.pop()
        kind, children = node.integer(0, "b"), node.tables(1)
        if depth > _MAX_TREE_DEPTH:
            raise Malformed(f"a structure of at most {_MAX_TREE_DEPTH} levels", "more")
        if kind not in (_LEAF, _NONE, _TUPLE, _LIST, _DICT) or node.slots() & {3, 4}:
            raise Malformed("a structure of tuples, lists and dicts", "one of a registered type")
        if kind in (_LEAF, _NONE) and children:
            raise Malformed("leaves without parts", f"{len(children)} parts")
        names = node.texts(2, _MAX_TEXT) if kind == _DICT else []
        if kind == _DICT and (len(names) != len(children) or sorted(set(names)) != names):
            raise Malformed("dicts with a distinct name per part, sorted", f"{names[:20]}")
        found += kind == _LEAF
        stack += [(child, depth + 1) for child in children]
    if found != leaves:
        raise Malformed(f"a structure of {leaves} arrays", f"{found}")


def _check_derivative(function: Exported, vjp: Exported) -> None:
    """The derivative takes the arguments and a cotangent per result, and gives one per argument."""
    wanted = [*map(_plain, function.inputs), *map(_tangent, function.outputs)]
    if list(map(_plain, vjp.inputs)) != wanted or list(map(_plain, vjp.outputs)) != list(
        map(_tangent, function.inputs)
    ):
        raise Malformed("a derivative that fits its function", "one of other shapes")
    if vjp.platforms != function.platforms:
        raise Malformed("a derivative for the platforms of its function", f"{list(vjp.platforms)}")


def _plain(array: ArrayType) -> tuple[tuple[str, ...], str, bool]:
    return array.sizes, array.dtype, array.float0


def _tangent(array: ArrayType) -> tuple[tuple[str, ...], str, bool]:
    is_float = "f" in array.dtype
    return array.sizes, array.dtype if is_float else "i1", not is_float
