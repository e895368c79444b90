"""Programs that must be refused, each in a bundle that is good otherwise: files around modules, and modules."""

from __future__ import annotations

import json
import struct
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

import engine as ax
from tests.engine.bundle import hostile_programs as programs
from tests.engine.bundle.hostile_bundles import Hostile, artifact_name, good, packed, with_program
from tests.engine.bundle.hostile_programs import ARRAY, HEAD, backward, forward


def _swapped() -> bytes:
    """Two layers whose artifacts stand for each other."""
    x = ax.input("x", shape=(None, 4))
    first = ax.layer(lambda v: v[:, :3], x, op_name="cut")
    model = ax.layer(lambda v: v * 2.0, first, op_name="twice")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "two.axon"
        ax.bundle.write(path, model, ax.build(model)[0]())
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    graph = json.loads(members["graph.json"])
    (a, one), (b, other) = graph["artifacts"].items()
    graph["artifacts"] = {a: other, b: one}
    return packed({**members, "graph.json": json.dumps(graph).encode()})


def _unreferenced() -> bytes:
    data = programs.program()
    return packed({**good(), artifact_name(data): data})


def _unnamed() -> bytes:
    graph = json.loads(good()["graph.json"])
    graph["artifacts"] |= {"other": "0" * 64}
    return packed({**good(), "graph.json": json.dumps(graph).encode()})


def _wrong_digest() -> bytes:
    """An artifact that is not what its name says, with a manifest that fits."""
    members = dict(good())
    (name,) = (each for each in members if each.startswith("artifacts/"))
    members[name] = programs.program()
    return packed(members)


def _program(**arguments: Any) -> Callable[[], bytes]:
    return lambda: with_program(programs.program(**arguments))


def _text(build: Callable[[], bytes]) -> Callable[[], bytes]:
    return lambda: with_program(build())


def _changed(**fields: Any) -> Callable[[], bytes]:
    return _program(change=lambda exported: replace(exported, **fields))


def _cut_program(part: float) -> Callable[[], bytes]:
    return lambda: with_program(programs.program()[: int(len(programs.program()) * part)])


def _patched(change: Callable[[bytearray], None]) -> Callable[[], bytes]:
    def build() -> bytes:
        data = bytearray(programs.program())
        change(data)
        return with_program(bytes(data))

    return build


def _table(data: bytearray, slot: int) -> int:
    """Where the field of a slot of the outermost table is."""
    root = struct.unpack_from("<I", data, 0)[0]
    vtable = root - struct.unpack_from("<i", data, root)[0]
    return int(root + struct.unpack_from("<H", data, vtable + 4 + 2 * slot)[0])


def _own_derivative(data: bytearray) -> None:
    """The derivative's offset made to point nowhere inside of the file."""
    struct.pack_into("<I", data, _table(data, 17), 0xFFFFFFF0)


def _long_list(data: bytearray) -> None:
    place = _table(data, 19)
    struct.pack_into("<I", data, place + struct.unpack_from("<I", data, place)[0], 0xFFFFFFFF)


@jax.tree_util.register_pytree_node_class
class Pair:
    """A container whose deserialiser must never run."""

    def __init__(self, a: Any) -> None:
        self.a = a

    def tree_flatten(self) -> tuple[tuple[Any], str]:
        return (self.a,), "aux"

    @classmethod
    def tree_unflatten(cls, auxiliary: str, children: Any) -> Pair:
        return cls(*children)


def _refuse_to_run(data: bytes) -> Any:
    raise AssertionError("a registered deserialiser ran")


def _custom_tree() -> bytes:
    if Pair not in _REGISTERED:
        export.register_pytree_node_serialization(
            Pair,
            serialized_name="tests.hostile.Pair",
            serialize_auxdata=lambda aux: aux.encode(),
            deserialize_auxdata=_refuse_to_run,
        )
        _REGISTERED.add(Pair)
    x = Pair(jax.ShapeDtypeStruct((2, 4), jnp.float32))
    made = export.export(jax.jit(lambda inputs, params: (inputs[0].a, {})), platforms=("cpu", "cuda"))((x,), {})
    return with_program(bytes(made.serialize(vjp_order=1)))


_REGISTERED: set[type] = set()


def _sharded() -> bytes:
    mesh = jax.make_mesh((1,), ("d",), devices=jax.devices()[:1])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    x = jax.ShapeDtypeStruct((2, 4), jnp.float32, sharding=sharding)
    jitted = jax.jit(lambda inputs, params: (inputs[0] * 2, {}))
    return with_program(bytes(export.export(jitted, platforms=("cpu", "cuda"))((x,), {}).serialize(vjp_order=1)))


def _other_derivative() -> bytes:
    """A derivative of another function."""
    x = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    jitted = jax.jit(lambda inputs, params: (inputs[0] * 2, {}))
    other = export.export(jitted, platforms=("cpu", "cuda"))((x,), {}).vjp()
    return with_program(programs.program(change=lambda made: replace(made, _get_vjp=lambda _: other)))


def _symbols(text: str) -> Callable[[], bytes]:
    """A size in the file that JAX would multiply out for ever."""

    def build() -> bytes:
        (wide,) = export.symbolic_shape("bbbbbbbbbbbbbbbbbbbbbbbb")
        x = jax.ShapeDtypeStruct((wide, 4), jnp.float32)
        jitted = jax.jit(programs.square)
        data = bytes(export.export(jitted, platforms=("cpu", "cuda"))((x,), {}).serialize(vjp_order=1))
        return with_program(data.replace(b"b" * 24, text.ljust(24).encode()))

    return build


def _constants(count: int) -> str:
    """Many large constants that are small in the file."""
    lines = [f"%c{i} = stablehlo.constant dense<{i}.5> : tensor<8000000xf32>" for i in range(count)]
    return "\n".join([*lines, programs.SQUARE])


def _scaled() -> bytes:
    """A program that takes a parameter, where the graph declares none."""
    x = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    jitted = jax.jit(lambda inputs, params: (inputs[0] * params["scale"], {}))
    scale = {"scale": jax.ShapeDtypeStruct((), jnp.float32)}
    return bytes(export.export(jitted, platforms=("cpu", "cuda"))((x,), scale).serialize(vjp_order=1))


FILES: dict[str, Hostile] = {
    "empty artifact": Hostile(lambda: with_program(b""), "inside of the file"),
    "artifact of zeros": Hostile(lambda: with_program(bytes(1000)), "tables|a structure|devices|module|platforms"),
    "artifact of text": Hostile(lambda: with_program(b"module @m { }"), "inside of the file"),
    **{f"artifact cut at {part}": Hostile(_cut_program(part), "inside of the file") for part in (0.3, 0.6, 0.9)},
    "artifact with a derivative outside": Hostile(_patched(_own_derivative), "inside of the file"),
    "artifact with a list of 2^32 items": Hostile(_patched(_long_list), "fewer tables"),
    "artifact nobody names": Hostile(_unreferenced, "artifacts of graph.json names"),
    "artifact that is not there": Hostile(_unnamed, "a member artifacts/0000"),
    "artifact with another digest": Hostile(_wrong_digest, "a member of sha256"),
    "unknown platform": Hostile(_changed(platforms=("cpu", "abacus")), "platforms out of"),
    "no platform": Hostile(_changed(platforms=()), "platforms out of"),
    "doubled platform": Hostile(_changed(platforms=("cpu", "cpu")), "each once"),
    "two devices": Hostile(_changed(nr_devices=2), "one device"),
    "calling convention 99": Hostile(_changed(calling_convention_version=99), "calling convention"),
    "disabled safety check": Hostile(
        _changed(disabled_safety_checks=(export.DisabledSafetyCheck.custom_call("os.system"),)), "safety checks"
    ),
    "effects": Hostile(_changed(unordered_effects=(programs.Nothing(),)), "without effects"),
    "ordered effects": Hostile(_changed(ordered_effects=(programs.Nothing(),)), "without effects"),
    "derivative of second order": Hostile(_program(order=2), "first order"),
    "derivative of another function": Hostile(_other_derivative, "a derivative that fits"),
    "sharding": Hostile(_sharded, "without (meshes or )?shardings"),
    "container of a registered type": Hostile(_custom_tree, "tuples, lists and dicts"),
    "size that is a high power": Hostile(_symbols("(a+b)^1000000000"), "numbers or sums"),
    "size that is another power": Hostile(_symbols("a^99999999"), "numbers or sums"),
    "size that is code": Hostile(_symbols("__import__('os').x"), "numbers or sums"),
    "kept argument that is none": Hostile(_changed(module_kept_var_idx=(0, 7)), "kept arguments"),
}
MODULES: dict[str, Hostile] = {
    "module of garbage": Hostile(_changed(mlir_module_serialized=b"\0" * 100), "portable artifact"),
    "empty module": Hostile(_changed(mlir_module_serialized=b""), "portable artifact"),
    "module of a later StableHLO": Hostile(
        _changed(mlir_module_serialized=b"ML\xefR\rStableHLO_v9.99.0\0" + bytes(50)), "StableHLO up to"
    ),
    "Python callback": Hostile(
        _text(forward(programs.target("xla_python_cpu_callback"))), "custom_call @xla_python_cpu_callback"
    ),
    "Python callback of today": Hostile(
        _text(forward(programs.target("xla_ffi_python_cpu_callback", "api_version = 4 : i32"))), "xla_ffi_python"
    ),
    "LAPACK": Hostile(
        _text(forward(programs.target("lapack_sgetrf_ffi", "api_version = 4 : i32"))), "custom_call @lapack_sgetrf_ffi"
    ),
    "callback in the derivative": Hostile(
        _text(backward(programs.target("xla_python_cpu_callback"))), "vjp.*@xla_pyth"
    ),
    "callback in a loop": Hostile(
        _text(forward(programs.loop(inner=f"%z = stablehlo.custom_call @evil(%v) : ({ARRAY}) -> {ARRAY}"))), "@evil"
    ),
    "callback in a function nobody calls": Hostile(
        _text(
            forward(
                programs.SQUARE,
                f"func.func private @no(%v: {ARRAY}) -> {ARRAY} {{ "
                f"%w = stablehlo.custom_call @evil(%v) : ({ARRAY}) -> {ARRAY}\n return %w : {ARRAY} }}",
            )
        ),
        "function no: custom_call @evil",
    ),
    "function nobody calls": Hostile(_text(forward(programs.SQUARE, programs.RECURSION)), "functions that are called"),
    "assertion with a result": Hostile(_text(forward(programs.target("shape_assertion"))), "without result"),
    "assertion with a wide message": Hostile(
        _text(forward(programs.assertion("{0,1000000000}"))), "a message that names"
    ),
    "assertion with a size too many": Hostile(_text(forward(programs.assertion("{7}"))), "a message that names"),
    "assertion of another interface": Hostile(
        _text(forward(programs.assertion(form=programs.ASSERTION.replace("= 2 : i32", "= 4 : i32")))), "without result"
    ),
    "endless loop": Hostile(_text(forward(programs.ENDLESS)), "forward.*while.*condition always holds"),
    "endless loop in the derivative": Hostile(_text(backward(programs.ENDLESS)), "vjp.*while.*condition always holds"),
    "loop until a value is reached": Hostile(_text(forward(programs.UNTIL_LARGE)), "depends on data"),
    "loop that counts down": Hostile(_text(forward(programs.loop(step="-1"))), "the same positive number"),
    "loop that stands still": Hostile(_text(forward(programs.loop(step="0"))), "the same positive number"),
    "loop that wraps around": Hostile(_text(forward(programs.loop(bound="127", step="2", dtype="i8"))), "within i8"),
    "loop from a negative number": Hostile(_text(forward(programs.loop(start="-9"))), "begins elsewhere"),
    "loop of 2 * 10^9 turns": Hostile(_text(forward(programs.loop(bound="2000000000"))), "operations executed"),
    "giant broadcast": Hostile(_text(forward(programs.GIANT)), "broadcast_in_dim: expected arrays of at most"),
    "giant broadcast in the derivative": Hostile(_text(backward(programs.GIANT)), "vjp.*arrays of at most"),
    "giant broadcast of open size": Hostile(_text(forward(programs.GIANT_OPEN)), "dynamic_broadcast_in_dim.*at most"),
    "size from data": Hostile(_text(forward(programs.DATA_SIZE)), "sizes that depend on data"),
    "constants of 1 GiB": Hostile(_text(forward(_constants(32))), "bytes of constants"),
    "recursion": Hostile(_text(forward(programs.call("again"), programs.RECURSION)), "no recursion"),
    "mutual recursion": Hostile(_text(forward(programs.call("ping"), programs.MUTUAL)), "no recursion"),
    "calls that double 40 times": Hostile(
        _text(forward(programs.call("f0"), programs.doubling(40))), "with every call written out"
    ),
    "calls 100 deep": Hostile(_text(forward(programs.call("f0"), programs.chain(100))), "calls within each other"),
    "infeed": Hostile(
        _text(
            forward(
                programs.token(
                    '%i:2 = "stablehlo.infeed"(%t) <{infeed_config = ""}> : (!stablehlo.token) -> '
                    "(tensor<4xf32>, !stablehlo.token)"
                )
            )
        ),
        "create_token|infeed",
    ),
    "collective": Hostile(
        _text(
            forward(
                f'%y = "stablehlo.all_gather"(%x) <{{all_gather_dim = 1 : i64, replica_groups = dense<0> : '
                f"tensor<1x1xi64>}}> : ({ARRAY}) -> {ARRAY}"
            )
        ),
        "all_gather",
    ),
    "random numbers of the device": Hostile(
        _text(
            forward(
                "%s = stablehlo.constant dense<0> : tensor<2xui64>\n"
                "%r:2 = stablehlo.rng_bit_generator %s, algorithm = DEFAULT : (tensor<2xui64>) -> "
                f"(tensor<2xui64>, tensor<4xui32>)\n{programs.SQUARE}"
            )
        ),
        "rng_bit_generator",
    ),
    "Cholesky": Hostile(
        _text(
            forward(
                "%c = stablehlo.constant dense<1.0> : tensor<4x4xf32>\n"
                f"%l = stablehlo.cholesky %c, lower = true : tensor<4x4xf32>\n{programs.SQUARE}"
            )
        ),
        "cholesky",
    ),
    "sharding of an argument": Hostile(
        _text(forward(programs.SQUARE, head=HEAD.replace(f"%x: {ARRAY}", f'%x: {ARRAY} {{mhlo.sharding = "{{}}"}}'))),
        "mhlo.sharding",
    ),
    "aliased argument": Hostile(
        _text(
            forward(programs.SQUARE, head=HEAD.replace(f"%x: {ARRAY}", f"%x: {ARRAY} {{tf.aliasing_output = 0 : i32}}"))
        ),
        "tf.aliasing_output",
    ),
    "two partitions": Hostile(
        _text(forward(programs.SQUARE, attributes="attributes {mhlo.num_partitions = 2 : i32}")), "num_partitions 1"
    ),
    "frontend attributes": Hostile(
        _text(
            forward(
                '%y = stablehlo.multiply %x, %x {mhlo.frontend_attributes = {_xla_compute_type = "host"}} : '
                f"{ARRAY}"
            )
        ),
        "mhlo.frontend_attributes",
    ),
    "sort by what is no order": Hostile(
        _text(forward(programs.sort("%less = stablehlo.constant dense<true> : tensor<i1>"))), "sort.*an order"
    ),
    "sort by an order that NaN breaks": Hostile(
        _text(
            forward(
                programs.sort("%less = stablehlo.compare LT, %a, %b, FLOAT : (tensor<f32>, tensor<f32>) -> tensor<i1>")
            )
        ),
        "sort.*an order",
    ),
    "main of other arguments": Hostile(
        _text(forward(programs.SQUARE, head=HEAD.replace("%platform: tensor<i32>, ", ""))), "main: arguments"
    ),
    "no main": Hostile(_text(forward(programs.SQUARE, head=HEAD.replace("@main", "@other"))), "a function main"),
    "program of another signature": Hostile(
        lambda: with_program(_scaled()), "expected|present|signature|shapes that fit"
    ),
    "swapped artifacts": Hostile(_swapped, "shapes that fit"),
}
