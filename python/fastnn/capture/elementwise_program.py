"""From values over elements to the instruction that computes them (csrc/program/elementwise/program.h)."""

from __future__ import annotations

from collections.abc import Callable

from fastnn.capture.expression import Store, Total, Value, Values
from fastnn.capture.ir import Instruction, View
from fastnn.capture.iteration import Iteration
from fastnn.capture.micro_ops import NUMBER, TYPES, cost

_BLOCK = 1024  # kBlockValues
# Registers have room for one more vector after their last value; offsets that are not multiples of a page
# apart keep loads from waiting for stores to another register.
_REGISTER_SLACK = 192
_DIRECT, _UNIFORM, _TOTAL = -1, -2, -3
# Work that is worth a second thread, in additions.
_GRAIN = 32768


def assemble(values: Values, shape: tuple[int, ...], is_needed: Callable[[View], bool]) -> Instruction | None:
    """The instruction for values on a shape without dimensions of size 1, or None if no result is needed.
    `is_needed` tells of a canonical view whether what is written to it is ever read."""
    stores = [store for store in values.stores.values() if is_needed(store.view)]
    values.totals = [total for total in values.totals if is_needed(total.view)]
    if not (stores or values.totals):
        return None
    return _Assembler(values, shape, stores).instruction()


class _Assembler:
    def __init__(self, values: Values, shape: tuple[int, ...], stores: list[Store]) -> None:
        self.values = values.values
        self.totals = values.totals
        self.stores = stores
        self.shape = shape
        self.ops = self._live_ops(values.ops)
        self.args = {index: self.values[index].args for _, index in self.ops}

    def instruction(self) -> Instruction:
        """The complete instruction."""
        self._save_what_is_overwritten()
        self._place_operands()
        self._find_uniform()
        self._order()
        self._give_registers()
        return self._encoded()

    def _live_ops(self, ops: list[int]) -> list[tuple[int, int]]:
        """The micro-ops that results need, in order, each with its position among all."""
        wanted = {item.value for item in self._results()}
        live = []
        for place in range(len(ops) - 1, -1, -1):
            if ops[place] in wanted:
                wanted.update(self.values[ops[place]].args)
                live.append((place, ops[place]))
        self.wanted = wanted
        return live[::-1]

    def _results(self) -> list[Store | Total]:
        return [*self.stores, *self.totals]

    def _new(self, value: Value) -> int:
        self.values.append(value)
        return len(self.values) - 1

    def _save_what_is_overwritten(self) -> None:
        """Values that are used after their view has been overwritten are kept in registers."""
        loads = {
            self.values[index].source: index for index in self.wanted if self.values[index].name == "memory"
        }
        self.saved: list[int] = []
        self.last_read: dict[
            View, int
        ] = {}  # for each view that is stored to, the position of its last use in memory
        for store in self.stores:
            load = loads.get(store.view)
            if load is None:
                continue
            uses = [(place, index) for place, index in self.ops if load in self.args[index]]
            late = [index for place, index in uses if place >= store.after]
            holders = [item for item in self._results() if item.value == load]
            self.last_read[store.view] = max((place for place, _ in uses if place < store.after), default=-1)
            if not (late or holders):
                continue
            saved = self._new(Value("move", (load,), self.values[load].dtype))
            self.saved.append(saved)
            self.args[saved] = (load,)
            for index in late:
                self.args[index] = tuple(saved if arg == load else arg for arg in self.args[index])
            for item in holders:
                item.value = saved

    def _place_operands(self) -> None:
        used = {arg for args in self.args.values() for arg in args}
        used.update(item.value for item in self._results())
        self.loads = [index for index in used if self.values[index].name == "memory"]
        self.loads.sort()
        sources = [store.view for store in self.stores]
        for index in self.loads:
            source = self.values[index].source
            assert isinstance(source, View)
            sources.append(source)
        self.iteration = Iteration(self.shape, sources)
        self.first_load = len(self.stores) + len(self.totals)

    def _find_uniform(self) -> None:
        """Which values are the same for all elements."""
        self.uniform = {index for index in self.wanted if self.values[index].name == "constant"}
        for at, index in enumerate(self.loads):
            if self.iteration.is_uniform(len(self.stores) + at):
                self.uniform.add(index)
        for _, index in self.ops:
            if self.uniform.issuperset(self.args[index]):
                self.uniform.add(index)

    def _order(self) -> None:
        """The micro-ops in order, each with the operand that it writes to, if any."""
        target: dict[int, int] = {}
        moves: list[tuple[int, int, int]] = []  # before which position, value, operand
        place_of = {index: place for place, index in self.ops}
        for operand, store in enumerate(self.stores):
            place = place_of.get(store.value)
            if (
                place is None
                or store.value in target
                or store.value in self.uniform
                or self.last_read.get(store.view, -1) > place
            ):
                moves.append((store.after, store.value, operand))
            else:
                target[store.value] = operand
        moves.sort(key=lambda move: move[0])
        single: list[tuple[int, int | None]] = []
        block: list[tuple[int, int | None]] = [(index, None) for index in self.saved]
        for place, index in [*self.ops, (len(self.values), -1)]:
            while moves and moves[0][0] <= place:
                _, value, operand = moves.pop(0)
                block.append((self._moved(value), operand))
            if index >= 0:
                (single if index in self.uniform else block).append((index, target.get(index)))
        for total in self.totals:
            if total.value in self.uniform:
                total.value = self._moved(total.value)
                block.append((total.value, None))
        self.sequence = single + block
        self.single_count = len(single)

    def _moved(self, value: int) -> int:
        moved = self._new(Value("move", (value,), self.values[value].dtype))
        self.args[moved] = (value,)
        return moved

    def _give_registers(self) -> None:
        """Assign each value a slot: (kind, number), with the kinds in the order of slots."""
        last: dict[int, int] = {}
        for at, (index, _) in enumerate(self.sequence):
            for arg in self.args[index]:
                last[arg] = at
        for total in self.totals:
            last[total.value] = len(self.sequence)
        slots: dict[int, tuple[int, int]] = {}
        free: list[int] = []
        self.register_count = self.uniform_count = 0

        def register() -> int:
            if free:
                return free.pop()
            self.register_count += 1
            return self.register_count - 1

        self.places = [_TOTAL] * self.first_load
        held: dict[int, int] = {}  # the registers of values
        for result in range(len(self.stores)):
            direct = self.iteration.is_direct(result)
            self.places[result] = _DIRECT if direct else register()
        for at, index in enumerate(self.loads):
            slots[index] = (0, self.first_load + at)
            if index in self.uniform:
                self.places.append(_UNIFORM)
            elif self.iteration.is_direct(len(self.stores) + at):
                self.places.append(_DIRECT)
            else:
                held[index] = register()
                self.places.append(held[index])
        self.constants = sorted(index for index in last if self.values[index].name == "constant")
        slots.update((index, (1, at)) for at, index in enumerate(self.constants))
        self.micros: list[tuple[int, tuple[int, int], list[tuple[int, int]]]] = []
        for at, (index, operand) in enumerate(self.sequence):
            value = self.values[index]
            args = self.args[index]
            for arg in args:
                # A result may take the register of an operand of its size, which the loop reads first; but
                # not of a row's single value, which the loop reads again and again.
                same_size = self.values[arg].dtype.itemsize == value.dtype.itemsize
                may_be_one = self.iteration.by_rows and self.values[arg].name == "memory"
                if arg in held and last[arg] == at and same_size and not may_be_one:
                    free.append(held.pop(arg))
            if operand is not None:
                slots[index] = (0, operand)
            elif at < self.single_count:
                slots[index] = (2, self.uniform_count)
                self.uniform_count += 1
            else:
                held[index] = register()
                slots[index] = (3, held[index])
            for arg in args:
                if arg in held and last[arg] == at:
                    free.append(held.pop(arg))
            kernel = NUMBER[value.name] * len(TYPES) + TYPES[self.values[args[-1]].dtype]
            self.micros.append((kernel, slots[index], [slots[arg] for arg in args]))
        self.slots = slots

    def _encoded(self) -> Instruction:
        iteration = self.iteration
        outs = iteration.views[: len(self.stores)] + [total.view for total in self.totals]
        ins = iteration.views[len(self.stores) :]
        operands = len(outs) + len(ins)
        bases = [0, operands, operands + len(self.constants)]
        bases.append(bases[2] + self.uniform_count)

        def number(slot: tuple[int, int]) -> int:
            return bases[slot[0]] + slot[1]

        work = sum(cost(self.values[index].name) for index, _ in self.sequence[self.single_count :])
        widest = max((self.values[index].dtype.itemsize for index, _ in self.sequence), default=8)
        code = [
            len(outs),
            0 if self.stores else self.first_load,
            int(iteration.by_rows),
            _GRAIN // max(work, 1) + 1,
            len(self.constants),
            self.uniform_count,
            self.register_count,
            _BLOCK * max([widest, *(view.dtype.itemsize for view in iteration.views)]) + _REGISTER_SLACK,
            self.single_count,
            len(self.micros),
            len(self.totals),
            *self.places,
            *(TYPES[self.values[index].dtype] for index in self.constants),
        ]
        for kernel, dst, args in self.micros:
            padded = [number(arg) for arg in args] + [0, 0]
            code += [kernel, number(dst), *padded[:3]]
        for at, total in enumerate(self.totals):
            code += [number(self.slots[total.value]), TYPES[total.view.dtype], len(self.stores) + at]
        numbers = [float.fromhex(str(self.values[index].source)) for index in self.constants]
        return Instruction("elementwise", outs, ins, numbers + [total.divisor for total in self.totals], code)
