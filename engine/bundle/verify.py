"""Programs from strangers: accepted only when proven harmless, without running them.

A program is what `jax.export` serialises: a signature and two StableHLO modules, the function's and its derivative's.
Checked are the file (`exported`), every operation of both modules against an allow-list (`hlo`), comparisons of sorts
(`comparators`), the modules' signatures, and what they cost (`cost`): every loop is counted, every array has a size.
`docs/decisions/005-programs-from-strangers.md` says why.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from engine.bundle import exported as files
from engine.bundle import hlo
from engine.bundle.comparators import is_order
from engine.bundle.cost import Interpreter
from engine.bundle.exported import ArrayType, Exported
from engine.bundle.flatbuffer import Malformed
from engine.bundle.hlo import Block, Module, Operation, Refused
from engine.bundle.hlo_shapes import Disagreement
from engine.bundle.limits import Limits
from engine.bundle.whole_numbers import Value
from engine.errors import Problem

Sizes = tuple[int, ...]
MOST_PROBLEMS = 20
_GOT = 300


@dataclass(frozen=True, slots=True)
class ParsedProgram:
    """A program whose operations are all allowed: each of its functions (`forward`, `vjp`) with its module."""

    parts: Mapping[str, tuple[Exported, Module]]


def verify_program(data: bytes, limits: Limits, where: str = "program") -> list[Problem]:
    """Everything that is wrong with a program, none for one that may be compiled; runs nothing of it.

    What depends on sizes is checked with `limits.activation_batch` for every open size; `cost_problems` checks it
    for the sizes that a graph calls it with.
    """
    program, problems = parse_program(data, limits, where)
    if program is None:
        return problems
    sizes = [tuple(size_of(text, limits.activation_batch) for text in array.sizes) for array in _inputs(program)]
    return cost_problems(program, sizes, limits, where, assumed=True)


def file_problems(data: bytes, limits: Limits, where: str) -> list[Problem]:
    """What is wrong with a program's file; the modules inside are not looked at, so that no parser of JAX runs."""
    try:
        files.read(data, limits)
    except Malformed as error:
        return [Problem(where, error.expected, error.got[:_GOT])]
    return []


def parse_program(data: bytes, limits: Limits, where: str) -> tuple[ParsedProgram | None, list[Problem]]:
    """The program, or what is wrong with its file and with operations that do not depend on sizes."""
    try:
        forward = files.read(data, limits)
    except Malformed as error:
        return None, [Problem(where, error.expected, error.got[:_GOT])]
    parts, problems = {}, []
    for part, function in (("forward", forward), ("vjp", forward.vjp)):
        if function is None:
            continue
        place = f"{where}: {part}"
        try:
            module = hlo.parse(function.module, limits)
        except Malformed as error:
            problems.append(Problem(place, error.expected, " ".join(error.got.split())[:_GOT]))
            continue
        problems += [_problem(place, name, refused) for name, refused in module.refused[:MOST_PROBLEMS]]
        if not module.refused:
            problems += [_problem(place, name, refused) for name, refused in _unfit(function, module)][:MOST_PROBLEMS]
        parts[part] = (function, module)
    return (None, problems) if problems else (ParsedProgram(parts), [])


def cost_problems(
    program: ParsedProgram, sizes: Sequence[Sizes], limits: Limits, where: str, *, assumed: bool = False
) -> list[Problem]:
    """What is wrong with a program for arguments of `sizes`: loops without a bound, and costs beyond the limits.

    With `assumed` sizes, those that do not fit each other are no problem: no graph may ever call it with them.
    """
    forward, module = program.parts["forward"]
    try:
        outputs = _run(forward, module, list(sizes), limits, f"{where}: forward")
        if "vjp" in program.parts:
            vjp, module = program.parts["vjp"]
            _run(vjp, module, [*sizes, *outputs], limits, f"{where}: vjp")
    except _Wrong as wrong:
        return [] if assumed and wrong.disagreement else [wrong.problem]
    return []


def size_of(text: str, value: int) -> int:
    """A size, which may be an expression of symbols, where every symbol is `value`; 0 for one that makes no sense."""
    try:
        return _evaluate(ast.parse(text.replace("^", "**"), mode="eval").body, value)
    except (SyntaxError, ValueError, ArithmeticError, KeyError, RecursionError, MemoryError):
        return 0


class _Wrong(Exception):
    def __init__(self, problem: Problem, *, disagreement: bool) -> None:
        super().__init__(problem)
        self.problem, self.disagreement = problem, disagreement


def _inputs(program: ParsedProgram) -> tuple[ArrayType, ...]:
    return program.parts["forward"][0].inputs


def _run(function: Exported, module: Module, sizes: list[Sizes], limits: Limits, place: str) -> list[Sizes]:
    arguments = [Value((), _platform_index(module))] if len(function.platforms) > 1 else []
    arguments += [Value(sizes[index], function.inputs[index].dtype) for index in function.kept]
    walk = Interpreter(module, limits)
    try:
        results = walk.run(arguments)
    except Refused as refused:
        problem = _problem(place, walk.place, refused)
        raise _Wrong(problem, disagreement=isinstance(refused, Disagreement)) from None
    except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        # Rules of operations rely on what MLIR's verifier promises; where it lets something else through, refuse it.
        problem = Problem(f"{place}, function {walk.place}", "operations with the attributes they need", repr(error))
        raise _Wrong(problem, disagreement=False) from None
    if unused := sorted(set(module.functions) - walk.called):
        raise _Wrong(
            Problem(place, "functions that are called", f"{unused[0][:100]}, which is not"), disagreement=False
        )
    return [result.sizes for result in results]


def _platform_index(module: Module) -> str:
    """The dtype of the platform's number in front of the arguments: in 64-bit mode JAX widens it."""
    main = module.functions.get("main")
    return "i64" if main is not None and main.types[:1] and main.types[0].dtype == "i64" else "i32"


def _problem(place: str, function: str, refused: Refused) -> Problem:
    operation = refused.operation.removeprefix("stablehlo.").removeprefix("func.")
    inside = f", function {function[:100]}" if function else ""
    return Problem(f"{place}{inside}: {operation[:200]}", refused.expected, refused.got[:_GOT])


def _unfit(function: Exported, module: Module) -> Iterator[tuple[str, Refused]]:
    """Comparisons that are no order, and a `main` that does not have the signature in the file."""
    for name, block in module.functions.items():
        for operation in _operations(block):
            if operation.name == "stablehlo.sort" and not is_order(operation.blocks[0]):
                yield name, Refused("sort", "a comparison that is an order, such as a < b", "another")
    main = module.functions.get("main")
    if main is None:
        yield "", Refused("module", "a function main", "none")
        return
    wanted = [ArrayType((), _platform_index(module))] if len(function.platforms) > 1 else []
    wanted += [function.inputs[index] for index in function.kept]
    results = _types(main)
    for what, types, arrays in (("arguments", main.types, wanted), ("results", results, function.outputs)):
        if len(types) != len(arrays) or not all(map(_fits, types, arrays)):
            yield "main", Refused(what, f"{[str(each) for each in arrays]}", f"{[str(each) for each in types]}")


def _fits(found: hlo.TensorType, declared: ArrayType) -> bool:
    """Whether a module's type is the declared one: open where that names a symbol."""
    return (
        found.dtype == declared.dtype
        and len(found.sizes) == len(declared.sizes)
        and all(n is None or str(n) == size for n, size in zip(found.sizes, declared.sizes, strict=True))
    )


def _types(block: Block) -> list[hlo.TensorType]:
    """The types of what a function returns."""
    known = dict(zip(block.arguments, block.types, strict=True))
    for operation in block.operations:
        known |= zip(operation.results, operation.types, strict=True)
    return [known[number] for number in block.returned]


def _operations(block: Block) -> Iterator[Operation]:
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from _operations(inner)


_OPERATORS: Mapping[type, Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Pow: lambda a, b: a**b if b < 10 else 0,
}
_FUNCTIONS: Mapping[str, Callable[[int, int], int]] = {
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "max": max,
    "min": min,
}


def _evaluate(node: ast.expr, value: int) -> int:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name():
            return value
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate(operand, value)
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_evaluate(left, value), _evaluate(right, value))
        case ast.Call(func=ast.Name(id=name), args=[left, right]):
            return _FUNCTIONS[name](_evaluate(left, value), _evaluate(right, value))
    raise ValueError("not a size")
