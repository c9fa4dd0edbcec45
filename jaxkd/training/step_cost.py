"""What a compiled train step costs on each device: memory, arithmetic, bytes moved, collectives, a bound on its time.

Everything is read from the program and from published peaks (runtime/accelerators.py), so it holds for devices that are
not here: computed, not measured. A real step takes at least the largest of the three times, as no program reaches the
peaks.
"""
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd import parallel
from jaxkd.runtime.accelerators import Accelerator
from jaxkd.state import TrainState

COLLECTIVES = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
FREE = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id', 'replica-id',
        'all-reduce-done', 'all-gather-done', 'collective-permute-done', 'copy-done', 'async-done')
SLICES = ('slice', 'dynamic-slice')  # read as much as they give
SPARE = 0.1  # of the memory, which a program never gets: the runtime's own, and fragmentation

_SHAPE = re.compile(r'\b(pred|bf16|[fsuc]\d+)(?:e\w+)?\[([\d,]*)\]')
_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?(%?[\w.-]+) = (.*?) ([a-z][\w-]*)\(')


class Collective(NamedTuple):
    """All collectives of one kind in a step, among groups of one size."""

    kind: str
    number: int
    bytes: int  # of the results on one device
    group: int = 0  # devices that take part; 0: all

    def sent(self, devices: int) -> float:
        """Bytes that one of `devices` sends, in a ring."""
        group = self.group or devices
        return self.bytes * {'all-reduce': 2 * (group - 1) / group, 'reduce-scatter': group - 1}.get(
            self.kind, (group - 1) / group)


class StepCost(NamedTuple):
    """The cost of a step on each device."""

    temporaries: int  # bytes
    moved: float  # bytes to and from memory
    flops: float  # of the step as it is written
    compiled_flops: float | None  # of the compiled program, with padding; None where the compiler does not say
    collectives: tuple[Collective, ...]


class Roofline(NamedTuple):
    """Seconds a step on each device, by its peaks."""

    arithmetic: float
    memory: float
    interconnect: float

    @property
    def bound(self) -> str:
        """Which of the three is the largest."""
        return max(zip(self, ('arithmetic', 'memory', 'interconnect')))[1]


def cost(compiled: jax.stages.Compiled, flops: float) -> StepCost:
    """The StepCost of a compiled step. flops: see parallel.step_flops."""
    text, analysis = compiled.as_text() or '', compiled.cost_analysis()
    counted: Mapping[str, Any] = (analysis[0] if isinstance(analysis, list) else analysis) or {}
    memory: Any = compiled.memory_analysis()
    return StepCost(memory.temp_size_in_bytes, float(counted.get('bytes accessed') or bytes_moved(text)), flops,
                    float(counted['flops']) if counted.get('flops') else None, collectives(text))


def collectives(text: str) -> tuple[Collective, ...]:
    """The collectives of a program in XLA's text form."""
    found: dict[tuple[str, int], list[int]] = {}
    for line in text.splitlines():
        if not (match := _INSTRUCTION.match(line)):
            continue
        kind = match[3].removesuffix('-start')
        if kind in COLLECTIVES:
            sizes = _sizes(match[2])
            # an asynchronous one begins with a tuple of operands and results; an all-reduce may also give results alone
            both = match[3].endswith('-start') and match[2].startswith('((' if kind == 'all-reduce' else '(')
            found.setdefault((kind, _group(line)), []).append(sum(sizes[len(sizes) // 2:] if both else sizes))
    return tuple(Collective(kind, len(sizes), sum(sizes), group) for (kind, group), sizes in found.items())


def _group(line: str) -> int:
    """Devices of a group of a collective, which XLA lists, {{0,1},{2,3}}, describes, [2,2]<=[4], or names by axes of a
    mesh, mesh['batch'=2,'fsdp'=2] {'fsdp'}; 0: all.
    """
    if named := re.search(r'replica_groups=mesh\[(.*?)\] \{(.*?)\}', line):
        sides = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        group = math.prod(int(sides[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
        return 0 if group == math.prod(map(int, sides.values())) else group
    if described := re.search(r'replica_groups=\[\d+,(\d+)\]', line):
        return int(described[1])
    listed = re.search(r'replica_groups=\{\{([\d,]+)\}', line)
    return len(listed[1].split(',')) if listed else 0


def bytes_moved(text: str) -> int:
    """Bytes that the instructions of a program's entry read and write: operands and results, without what is kept in
    caches between them and with the body of a loop counted once. Of an operand that is sliced alone, by the instruction
    or inside its fusion, the slices count.
    """
    sliced, inside, total, sizes = _sliced(text), False, 0, dict[str, int]()
    for line in text.splitlines():
        if line.startswith('ENTRY'):
            inside = True
        elif inside and line.startswith('}'):
            break
        elif inside and (match := _INSTRUCTION.match(line)):
            name, shape, operation = match.groups()
            sizes[name] = sum(_sizes(shape))
            if operation in FREE:
                continue
            called = re.search(r'calls=(%?[\w.-]+)', line)
            read = sliced.get(called[1], {}) if called else {0: sizes[name]} if operation in SLICES else {}
            total += sizes[name] + sum(min(sizes.get(operand, 0), read.get(i, sizes.get(operand, 0)))
                                       for i, operand in enumerate(_operands(line[match.end():])))
    return total


def _sliced(text: str) -> dict[str, dict[int, int]]:
    """{computation: {number of a parameter: bytes}} of parameters that a computation only slices."""
    found: dict[str, dict[int, int]] = {}
    computation, numbers, read = '', dict[str, int](), dict[str, int | None]()
    for line in text.splitlines():
        if line.endswith('{') and not line.startswith(' ') and (head := re.match(r'(?:ENTRY )?(%?[\w.-]+) \(', line)):
            computation, numbers, read = head[1], {}, {}
        elif line.startswith('}'):
            found[computation] = {numbers[name]: size for name, size in read.items() if size}
        elif match := _INSTRUCTION.match(line):
            name, shape, operation = match.groups()
            operands = _operands(line[match.end():])
            if operation == 'parameter':
                numbers[name] = int(line[match.end():].split(')')[0])
            for i, operand in enumerate(operands):
                if operand in numbers:
                    before = read.get(operand, 0)
                    only = operation in SLICES and i == 0 and before is not None
                    read[operand] = before + sum(_sizes(shape)) if only and before is not None else None
    return found


def _operands(rest: str) -> list[str]:
    """Names in what follows an instruction's opening parenthesis."""
    return re.findall(r'%?[\w.-]+', _SHAPE.sub('', re.sub(r'/\*.*?\*/', '', rest).split(')')[0]))


def roofline(step: StepCost, accelerator: Accelerator, dtype: str, devices: int) -> Roofline:
    """Seconds of a step of a stage of this dtype, a ring for each collective."""
    sent = sum(c.sent(devices) for c in step.collectives)
    return Roofline((step.compiled_flops or step.flops) / accelerator.rate(dtype), step.moved / accelerator.bandwidth,
                    sent / accelerator.interconnect)


def largest_batch(fixed: int, gradients: int, temporaries: int, batch: int, divisor: int, memory: int) -> int:
    """The largest global batch that fits, 0 if none does. Temporaries beside the gradients grow with the batch.

    fixed: bytes of the arguments on each device without the batch. divisor: of a batch that devices share.
    """
    free, per_case = memory * (1 - SPARE) - fixed - gradients, max(1, temporaries - gradients) / batch
    return max(0, int(free / per_case) // divisor * divisor)


def held(state: TrainState, frozen: Any, batch: Any, devices: int, fsdp: int = 1) -> dict[str, int]:
    """Bytes that a step is given on each device: parameters, optimiser, other, teachers, batch.

    fsdp: of the devices, how many divide parameters, optimiser and smoothed weights among them.
    """
    def size(tree: Any) -> int:
        return sum(int(np.prod(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree))
    def part(tree: Any) -> int:
        return sum(size(a) // (1 if parallel.axis_of(a.shape, fsdp) is None else fsdp) for a in jax.tree.leaves(tree))
    other = size((state.step, state.stats, state.memory, state.plateau))
    return dict(parameters=part(state.params), optimiser=part(state.opt_state), other=part(state.ema) + other,
                teachers=size(frozen), batch=size(batch) // devices)


def describe_memory(parts: Mapping[str, int], accelerator: Accelerator | None) -> str:
    """The sum of {name: bytes} and its parts that are not 0."""
    limit = f' of {accelerator.memory / 2**30:.0f} GiB' if accelerator else ''
    return (f'memory of each device: {_bytes(sum(parts.values()))}{limit} ('
            + ', '.join(f'{name} {_bytes(size)}' for name, size in parts.items() if size) + ')')


def describe(step: StepCost, given: Mapping[str, int], accelerator: Accelerator | None, dtype: str, batch: int,
             devices: int, divisor: int, seconds: float | None = None) -> list[str]:
    """Lines for the log. given: see `held`; divisor: of a batch that devices share; seconds: of a measured step."""
    lines = [describe_memory({**given, 'temporaries': step.temporaries}, accelerator)]
    padded = step.compiled_flops
    lines.append(f'a step on each device: {_number(step.flops)}FLOP'
                 + (f' ({_number(padded)}FLOP as compiled)' if padded else '') + f', {_bytes(step.moved)} moved'
                 + (f'; {", ".join(f"{c.number} {c.kind} of {_bytes(c.bytes)}" for c in step.collectives)}'
                    if step.collectives else ''))
    if accelerator:
        times = roofline(step, accelerator, dtype, devices)
        lines.append(f'at least {max(times) * 1e3:.3g} ms a step, bound by {times.bound} (computed from peaks, not '
                     f'measured: arithmetic {times.arithmetic * 1e3:.3g}, memory {times.memory * 1e3:.3g}, '
                     f'interconnect {times.interconnect * 1e3:.3g} ms)')
        fits = largest_batch(sum(given.values()) - given['batch'], given['parameters'],
                             step.temporaries + given['batch'], batch, divisor, accelerator.memory)
        lines.append(f'largest batch: about {fits:,}, by the temporaries of this one' if fits >= batch else
                     f'batch {batch} does not fit: about {fits:,} would')
    if seconds is not None:
        lines.append(f'measured here: {seconds * 1e3:.3g} ms a step, {batch / seconds:,.0f} cases a second'
                     + (f', {step.flops / seconds / accelerator.rate(dtype):.0%} of the peak' if accelerator else ''))
    return lines


def _sizes(shape: str) -> list[int]:
    """Bytes of each array in a shape as XLA writes it, such as (f32[8,4]{1,0}, bf16[])."""
    def width(dtype: str) -> int:
        return max(1, int(re.sub(r'\D', '', dtype) or 8) // 8)
    return [int(np.prod([int(n) for n in dims.split(',') if n], dtype=np.int64)) * width(dtype)
            for dtype, dims in _SHAPE.findall(shape)]


def _bytes(n: float) -> str:
    for unit, size in (('GiB', 2**30), ('MiB', 2**20), ('KiB', 2**10)):
        if n >= size:
            return f'{n / size:.3g} {unit}'
    return f'{n:.0f} B'


def _number(n: float) -> str:
    for unit, size in (('T', 1e12), ('G', 1e9), ('M', 1e6)):
        if n >= size:
            return f'{n / size:.3g} {unit}'
    return f'{n:.3g} '
