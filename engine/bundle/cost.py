"""What a program costs at given sizes, worked out without running it.

The module is walked as it would run, with sizes in place of arrays: every loop must count up to a bound that follows
from sizes, so that the number of its turns is known and no input can change it. The dearer branch of a choice counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from engine.bundle.hlo import Block, Module, Operation, Refused, TensorType, array_bytes
from engine.bundle.hlo_shapes import Disagreement, region_work, result_sizes, work
from engine.bundle.limits import Limits
from engine.bundle.whole_numbers import Below, Element, Offset, Unknowns, Value, bounds, evaluate

_COUNTED = "a loop that counts up to a bound that follows from sizes, as scan and fori_loop make"


@dataclass(slots=True)
class Cost:
    """Operations executed, and numbers computed."""

    steps: int = 0
    work: int = 0


@dataclass(slots=True)
class Interpreter:
    """Walks the functions of a module. `place` is the function it is in, `called` those it has been in."""

    module: Module
    limits: Limits
    cost: Cost = field(default_factory=Cost)
    place: str = "main"
    called: set[str] = field(default_factory=set)
    _values: dict[int, Value] = field(default_factory=dict)
    _unknowns: Unknowns = field(default_factory=Unknowns)
    _calls: list[str] = field(default_factory=list)
    _walked: int = 0

    def run(self, arguments: Sequence[Value]) -> list[Value]:
        """The results of `main`; raises `Refused` for what has no bound, or one beyond the limits."""
        self.called = {"main"}
        return self._block(self.module.functions["main"], arguments)

    def _block(self, block: Block, arguments: Sequence[Value]) -> list[Value]:
        for number, found, argument in zip(block.arguments, block.types, arguments, strict=True):
            _check_argument(found, argument)
            self._values[number] = argument
        for operation in block.operations[:-1]:
            self._execute(operation)
        return [self._values[number] for number in block.returned]

    def _execute(self, operation: Operation) -> None:
        self._walked += 1
        if self._walked > self.limits.program_operations:
            expected = f"at most {self.limits.program_operations} operations with every call written out"
            raise Refused(str(operation), expected, "more")
        arguments = [self._values[number] for number in operation.operands]
        control = _CONTROL.get(operation.name)
        results = self._compute(operation, arguments) if control is None else control(self, operation, arguments)
        for number, result in zip(operation.results, results, strict=True):
            self._values[number] = result
        self._check_cost(operation)

    def _check_cost(self, operation: Operation) -> None:
        if self.cost.steps > self.limits.program_steps:
            expected = f"at most {self.limits.program_steps} operations executed"
            raise Refused(str(operation), expected, _rounded(self.cost.steps))
        if self.cost.work > self.limits.program_work:
            raise Refused(
                str(operation), f"at most {self.limits.program_work} numbers computed", _rounded(self.cost.work)
            )

    def _compute(self, operation: Operation, arguments: Sequence[Value]) -> list[Value]:
        results = [
            self._result(operation, arguments, sizes, found)
            for sizes, found in zip(result_sizes(operation, arguments), operation.types, strict=True)
        ]
        self.cost.steps += 1
        self.cost.work += work(operation, arguments, results)
        for block in operation.blocks:
            before = replace(self.cost)
            self._block(block, [self._unknown((), found.dtype) for found in block.types])
            self.cost.work = before.work + (self.cost.work - before.work) * region_work(operation, arguments, results)
        if operation.name == "stablehlo.optimization_barrier":
            return list(arguments)
        return results

    def _result(
        self, operation: Operation, arguments: Sequence[Value], sizes: tuple[int, ...], found: TensorType
    ) -> Value:
        if (size := array_bytes(sizes, found.dtype)) > self.limits.program_array_bytes:
            expected = f"arrays of at most {self.limits.program_array_bytes} bytes"
            raise Refused(str(operation), expected, f"{_rounded(size)} for {found.dtype}{list(sizes)}")
        known = evaluate(operation, arguments, sizes, found)
        unknown = self._unknown(sizes, found.dtype)
        if known is None or unknown.elements is None:
            return unknown
        pairs = zip(known, unknown.elements, strict=True)
        return Value(sizes, found.dtype, tuple(other if each is None else each for each, other in pairs))

    def _unknown(self, sizes: tuple[int, ...], dtype: str) -> Value:
        return self._unknowns.value(sizes, dtype)

    def _call(self, operation: Operation, arguments: Sequence[Value]) -> list[Value]:
        name = operation.attributes["callee"]
        if name not in self.module.functions:
            raise Refused(str(operation), "a function of the module", "none of this name")
        if name in self._calls or name == "main":
            raise Refused(str(operation), "no recursion", f"a call of {name} in itself")
        if len(self._calls) >= self.limits.program_depth:
            raise Refused(str(operation), f"at most {self.limits.program_depth} calls within each other", "more")
        before, self.place = self.place, name
        self._calls.append(name)
        self.called.add(name)
        results = self._block(self.module.functions[name], arguments)
        self._calls.pop()
        self.place = before
        return results

    def _branches(self, operation: Operation, arguments: Sequence[Value]) -> list[Value]:
        start = replace(self.cost)
        dearest, found = Cost(), []
        for block in operation.blocks:
            self.cost = replace(start)
            found.append(self._block(block, ()))
            dearest = Cost(max(dearest.steps, self.cost.steps), max(dearest.work, self.cost.work))
        self.cost = dearest
        return [self._merged(operation, list(values)) for values in zip(*found, strict=True)]

    def _merged(self, operation: Operation, values: list[Value]) -> Value:
        first = values[0]
        if any(value.sizes != first.sizes or value.dtype != first.dtype for value in values):
            raise Disagreement(str(operation), "branches with results of the same sizes", "others")
        same = all(value.elements == first.elements for value in values)
        return first if same else self._unknown(first.sizes, first.dtype)

    def _while(self, operation: Operation, arguments: Sequence[Value]) -> list[Value]:
        """A counted loop: every turn costs the same, and there are as many as sizes say."""
        condition, body = operation.blocks
        kept = {k for k, number in enumerate(body.returned) if number == body.arguments[k]}
        entering = [
            value if k in kept else self._unknown(value.sizes, value.dtype) for k, value in enumerate(arguments)
        ]
        (test,) = self._block(condition, entering)
        counter = _counter(operation, test, entering, kept)
        start = replace(self.cost)
        leaving = self._block(body, entering)
        if any(a.sizes != b.sizes or a.dtype != b.dtype for a, b in zip(entering, leaving, strict=True)):
            raise Disagreement("while", "a loop that keeps the sizes of what it carries", "one that changes them")
        turns, last = 0, arguments[counter[0]] if counter is not None else None
        if counter is not None:
            turns, last = _turns(counter, arguments, leaving)
            once = Cost(self.cost.steps - start.steps + 1, self.cost.work - start.work + 1)
            self.cost = Cost(start.steps + once.steps * turns, start.work + once.work * turns)
        results = []
        for k, value in enumerate(arguments):
            known = last if counter is not None and k == counter[0] else value if k in kept else None
            results.append(known if known is not None else self._unknown(value.sizes, value.dtype))
        return results


_CONTROL: Mapping[str, Callable[[Interpreter, Operation, Sequence[Value]], list[Value]]] = {
    "func.call": Interpreter._call,
    "stablehlo.case": Interpreter._branches,
    "stablehlo.if": Interpreter._branches,
    "stablehlo.while": Interpreter._while,
}


def _counter(operation: Operation, test: Value, entering: Sequence[Value], kept: set[int]) -> tuple[int, Below] | None:
    """Which carried value counts, and what it must be below; None for a loop that never begins."""
    (condition,) = test.elements or (None,)
    if condition == 0:
        return None
    if condition == 1:
        raise Refused("while", _COUNTED, "one whose condition always holds")
    if isinstance(condition, Below):
        for k, value in enumerate(entering):
            if k not in kept and value.elements == (Offset(condition.value.base),):
                return k, condition
    raise Refused("while", _COUNTED, "one whose condition depends on data")


def _turns(counter: tuple[int, Below], arguments: Sequence[Value], leaving: Sequence[Value]) -> tuple[int, Value]:
    """How often the loop turns, and the value its counter ends with."""
    k, condition = counter
    (first,), (after,) = arguments[k].elements or (None,), leaving[k].elements or (None,)
    if not isinstance(first, int) or first < 0:
        raise Refused("while", f"{_COUNTED}, from a number of 0 or more", "one that begins elsewhere")
    base, ahead = condition.value.base, condition.value.offset
    if not isinstance(after, Offset) or after.base != base or after.offset <= 0:
        raise Refused("while", f"{_COUNTED}, by the same positive number each time", "one that does not")
    bound, step = condition.bound - ahead, after.offset
    least, most = bounds(arguments[k].dtype)
    if max(bound, condition.bound) - 1 + step > most or min(first, first + ahead) < least:
        raise Refused("while", f"{_COUNTED}, within {arguments[k].dtype}", f"a bound of {condition.bound}")
    turns = max(-((first - bound) // step), 0)
    last: tuple[Element, ...] = (first + turns * step,)
    return turns, replace(arguments[k], elements=last)


def _check_argument(found: TensorType, argument: Value) -> None:
    fits = len(found.sizes) == len(argument.sizes) and found.dtype == argument.dtype
    if not fits or any(n not in (None, size) for n, size in zip(found.sizes, argument.sizes, strict=True)):
        expected = f"{found.dtype}{['?' if n is None else n for n in found.sizes]}"
        raise Disagreement("block argument", expected, f"{argument.dtype}{list(argument.sizes)}")


def _rounded(number: int) -> str:
    """A number that may have thousands of digits."""
    return str(number) if number < 10**18 else f"about 2**{number.bit_length()}"
