"""A JAX function as an ONNX model, for runtimes without JAX.

The function is traced with a symbolic number of rows and written operation by operation (opset 17, IR 8, which
onnxruntime reads since 1.13). What depends on weights alone is computed here, such as standardised kernels. Where JAX
has several programs for one operation (jax.lax.platform_dependent) the one that is not of a platform is written, so a
3D convolution is a Conv and not what is quick on a CPU with XLA. An operation that has no rule below is a ConfigError.

Rules [our choice, instead of a converter of other makers: jax2onnx 0.13, the last release that admits the orbax of this
package, has no Conv for volumes with channels last]: arrays keep JAX's order of axes; convolutions and poolings stand
between two transpositions, which onnxruntime removes between neighbours.
"""
import hashlib
import math
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from jaxkd import errors

OPSET, IR = 17, 8
Value = Any  # np.ndarray: known now; str: the name of a tensor of the graph
ELEMENTWISE = {
    'add': 'Add', 'add_any': 'Add', 'sub': 'Sub', 'mul': 'Mul', 'div': 'Div', 'max': 'Max', 'min': 'Min', 'pow': 'Pow',
    'exp': 'Exp', 'log': 'Log', 'tanh': 'Tanh', 'logistic': 'Sigmoid', 'sqrt': 'Sqrt', 'neg': 'Neg', 'abs': 'Abs',
    'erf': 'Erf', 'floor': 'Floor', 'ceil': 'Ceil', 'sign': 'Sign', 'eq': 'Equal', 'lt': 'Less', 'le': 'LessOrEqual',
    'gt': 'Greater', 'ge': 'GreaterOrEqual', 'and': 'And', 'or': 'Or', 'not': 'Not', 'sin': 'Sin', 'cos': 'Cos'}
SAME = ('copy', 'copy_p', 'optimization_barrier', 'sharding_constraint', 'reduce_precision')
LOGICAL = ('and', 'or', 'not')  # of bool alone


def convert(function: Callable[..., Sequence[Any]], inputs: Mapping[str, jax.ShapeDtypeStruct],
            outputs: Sequence[str]) -> bytes:
    """The serialised model of function(*inputs) -> a list of arrays, in the order of the names `outputs`.

    inputs: {name: shape and type}, the first axis symbolic. Raises ConfigError for what has no rule.
    """
    import onnx
    closed = jax.make_jaxpr(function)(*inputs.values())
    graph = Graph(next(iter(inputs)))
    results = graph.run(closed.jaxpr, closed.consts, list(inputs))
    for name, result in zip(outputs, results):
        graph.nodes.append(onnx.helper.make_node('Identity', [graph.name(result)], [name]))
    given, made = ([onnx.helper.make_tensor_value_info(name, _type(a.dtype), [
        n if isinstance(n, int) else 'b' for n in a.shape]) for name, a in zip(names, avals)]
        for names, avals in ((inputs, closed.in_avals), (outputs, closed.out_avals)))
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, 'network', given, made, initializer=graph.constants),
        opset_imports=[onnx.helper.make_opsetid('', OPSET)], ir_version=IR, producer_name='jaxkd')
    if model.ByteSize() > 2**31 - 2**20:
        raise errors.ConfigError('An ONNX model of more than 2 GiB cannot be one file.')
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


class Graph:
    """The nodes and constants so far. Names are numbers: nothing of the training is in them, and no input has such."""

    def __init__(self, batch_of: str) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.batch_of = batch_of  # an input whose first axis is the batch
        self.rows = ''  # the tensor that holds the number of rows
        self.known: dict[tuple, str] = {}  # constants by content

    def run(self, jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
        """The values of a jaxpr's outputs; arguments: arrays, or names of tensors."""
        values: dict[Any, Value] = dict(zip(jaxpr.invars, arguments)) | dict(zip(jaxpr.constvars, constants))
        for eqn in jaxpr.eqns:
            given = [v.val if isinstance(v, Literal) else values[v] for v in eqn.invars]
            values |= dict(zip(eqn.outvars, self._equation(eqn, given)))
        return [v.val if isinstance(v, Literal) else values[v] for v in jaxpr.outvars]

    def _equation(self, eqn: Any, given: list[Value]) -> Sequence[Value]:
        name, params = eqn.primitive.name, eqn.params
        if name == 'platform_index':
            return [np.int32(0)]  # the cond below looks at the names of platforms itself
        if platforms := params.get('branches_platforms'):
            branch = params['branches'][[names is None for names in platforms].index(True)]
            return self.run(branch.jaxpr, branch.consts, given[1:])
        if inner := next((params[k] for k in ('jaxpr', 'call_jaxpr', 'fun_jaxpr') if k in params), None):
            if name not in ('reduce', 'reduce_window', 'scan', 'while', 'cond'):  # calls
                return self.run(getattr(inner, 'jaxpr', inner), getattr(inner, 'consts', ()), given)
        if not any(isinstance(value, str) for value in given) and all(
                isinstance(n, int) for out in eqn.outvars for n in out.aval.shape):
            results = eqn.primitive.bind(*given, **params)
            return [np.asarray(r) for r in (results if eqn.primitive.multiple_results else [results])]
        if name in SAME:
            return given
        rule = RULES.get(name, _elementwise if name in ELEMENTWISE else None)
        if rule is None:
            raise errors.ConfigError(f'The operation "{name}" of this network has no counterpart in ONNX here.')
        results = rule(self, eqn, *given)
        return [results] if isinstance(results, str) else results

    def add(self, operation: str, *inputs: Value, outputs: int = 1, **attributes: Any) -> Any:
        """A node -> the name of its output, or a list of several."""
        import onnx
        names = [f't#{len(self.nodes)}' + (f'_{i}' if outputs > 1 else '') for i in range(outputs)]
        self.nodes.append(onnx.helper.make_node(operation, [self.name(v) for v in inputs], names, **attributes))
        return names[0] if outputs == 1 else names

    def name(self, value: Value) -> str:
        """The name of a value; an array becomes a constant of the graph."""
        import onnx
        if isinstance(value, str):
            return value
        array = np.asarray(value, order='C')
        key = (array.dtype.str, array.shape, hashlib.sha256(array.reshape(-1).view(np.uint8).data).digest())
        if key not in self.known:
            self.known[key] = f'c#{len(self.constants)}'
            _type(array.dtype)
            self.constants.append(onnx.numpy_helper.from_array(array, self.known[key]))
        return self.known[key]

    def shape(self, sides: Sequence[Any]) -> str:
        """A tensor that holds a shape; a symbolic side is a multiple of the number of rows."""
        if all(isinstance(n, int) for n in sides):
            return self.name(np.array(sides, np.int64))
        if not self.rows:
            whole = self.add('Shape', self.batch_of)
            self.rows = self.add('Slice', whole, np.array([0]), np.array([1]))
        parts = [np.array([n], np.int64) if isinstance(n, int) else self.rows if (factor := _factor(n)) == 1 else
                 self.add('Mul', self.rows, np.array([factor], np.int64)) for n in sides]
        return self.add('Concat', *parts, axis=0)

    def reshape(self, value: Value, sides: Sequence[Any]) -> str:
        """Reshaped; one symbolic side is what is left."""
        symbolic = [not isinstance(n, int) for n in sides]
        if sum(symbolic) == 1 and 0 not in sides:
            return self.add('Reshape', value, np.array([-1 if s else n for n, s in zip(sides, symbolic)], np.int64))
        return self.add('Reshape', value, self.shape(sides))

    def channels_first(self, value: Value, axes: Sequence[int]) -> Value:
        """Transposed, unless that changes nothing; an array is transposed now."""
        if list(axes) == sorted(axes):
            return value
        return self.add('Transpose', value, perm=list(axes)) if isinstance(value, str) else np.transpose(value, axes)


def _type(dtype: Any) -> int:
    import onnx
    try:
        if np.dtype(dtype).name == 'bfloat16':
            raise KeyError
        return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    except KeyError:
        raise errors.ConfigError(f'This network computes in {dtype}, which onnxruntime does not on a CPU.') from None


def _factor(side: Any) -> int:
    """c of a symbolic side that is c times the number of rows."""
    two, three = (int(side._evaluate({'b': n})) for n in (2, 3))
    if two % 2 or three != two // 2 * 3:
        raise errors.ConfigError(f'A side of {side} for b rows has no counterpart in ONNX here.')
    return two // 2


def _elementwise(graph: Graph, eqn: Any, *given: Value) -> str:
    name, dtype = eqn.primitive.name, eqn.invars[0].aval.dtype
    if name in LOGICAL and dtype != np.bool_ or name == 'div' and not np.issubdtype(dtype, np.floating):
        raise errors.ConfigError(f'"{name}" of {dtype} has no counterpart in ONNX here.')
    return graph.add(ELEMENTWISE[name], *given)


def _broadcast(graph: Graph, eqn: Any, x: Value, *sides: Value) -> str:
    """Axes of 1 where there are new ones, then the sides that grow; those that stay are 1, which ONNX keeps."""
    out, axes, was = eqn.outvars[0].aval.shape, eqn.params['broadcast_dimensions'], eqn.invars[0].aval.shape
    between = [was[axes.index(i)] if i in axes else 1 for i in range(len(out))]
    x = graph.reshape(x, between) if len(between) != len(was) else x
    grown = [1 if a is b or a == b else b for a, b in zip(between, out)]
    return graph.add('Expand', x, graph.shape(grown)) if any(not isinstance(n, int) or n != 1 for n in grown) else (
        graph.add('Identity', x))


def _dot_general(graph: Graph, eqn: Any, x: Value, y: Value) -> str:
    (cx, cy), (bx, by) = eqn.params['dimension_numbers']
    ranks = [v.aval.ndim for v in eqn.invars]
    if not bx and list(cx) == [ranks[0] - 1] and list(cy) == [0] and ranks[1] == 2:
        return graph.add('MatMul', x, y)
    letters = iter(string.ascii_letters)
    first = [next(letters) for _ in range(ranks[0])]
    second = [''] * ranks[1]
    for a, b in (*zip(bx, by), *zip(cx, cy)):
        second[b] = first[a]
    second = [letter or next(letters) for letter in second]
    out = [first[a] for a in bx] + [c for i, c in enumerate(first) if i not in (*bx, *cx)] + [
        c for i, c in enumerate(second) if i not in (*by, *cy)]
    return graph.add('Einsum', x, y, equation=f'{"".join(first)},{"".join(second)}->{"".join(out)}')


def _conv(graph: Graph, eqn: Any, x: Value, w: Value) -> str:
    p = eqn.params
    if any(n != 1 for n in p['lhs_dilation']) or p['batch_group_count'] != 1:
        raise errors.ConfigError('A transposed or batch-grouped convolution has no counterpart in ONNX here.')
    lhs, rhs, out = p['dimension_numbers']
    y = graph.add('Conv', graph.channels_first(x, lhs), graph.channels_first(w, rhs), group=p['feature_group_count'],
                  strides=list(p['window_strides']), dilations=list(p['rhs_dilation']),
                  pads=[low for low, _ in p['padding']] + [high for _, high in p['padding']])
    return graph.channels_first(y, np.argsort(out).tolist())


def _pool(operation: str, graph: Graph, eqn: Any, x: Value, *_: Value) -> str:
    p, rank = eqn.params, eqn.invars[0].aval.ndim
    window, strides, padding = p['window_dimensions'], p['window_strides'], p['padding']
    rest = [(n, s, tuple(pad)) for n, s, pad in zip(window, strides, padding)]
    if rest[0] != (1, 1, (0, 0)) or rest[-1] != (1, 1, (0, 0)) or any(
            n != 1 for n in (*p['base_dilation'], *p['window_dilation'])):
        raise errors.ConfigError('A pooling over rows or channels has no counterpart in ONNX here.')
    first = [0, rank - 1, *range(1, rank - 1)]
    options: dict[str, Any] = dict(kernel_shape=list(window[1:-1]), strides=list(strides[1:-1]),
                                   pads=[a for a, _ in padding[1:-1]] + [b for _, b in padding[1:-1]])
    if operation == 'AveragePool':
        options['count_include_pad'] = 1
    y = graph.add(operation, graph.channels_first(x, first), **options)
    if operation == 'AveragePool':  # of sums
        y = graph.add('Mul', y, np.array(math.prod(window), eqn.invars[0].aval.dtype))
    return graph.channels_first(y, [0, *range(2, rank), 1])


def _pad(graph: Graph, eqn: Any, x: Value, value: Value) -> str:
    config = eqn.params['padding_config']
    if any(low < 0 or high < 0 or between for low, high, between in config):
        raise errors.ConfigError('Padding that cuts, or between places, has no counterpart in ONNX here.')
    pads = [low for low, *_ in config] + [high for _, high, _ in config]
    return graph.add('Pad', x, np.array(pads, np.int64), value)


def _slice(graph: Graph, eqn: Any, x: Value) -> str:
    p, sides = eqn.params, eqn.invars[0].aval.shape
    strides = p['strides'] or (1,) * len(sides)
    cut = [i for i, n in enumerate(sides) if (p['start_indices'][i], strides[i]) != (0, 1) or (
        p['limit_indices'][i] is not n and p['limit_indices'][i] != n)]
    if any(not isinstance(p[key][i], int) for i in cut for key in ('start_indices', 'limit_indices')):
        raise errors.ConfigError('A slice of rows has no counterpart in ONNX here.')
    if not cut:
        return graph.add('Identity', x)
    columns = [p['start_indices'], p['limit_indices'], range(len(sides)), strides]
    return graph.add('Slice', x, *(np.array([column[i] for i in cut], np.int64) for column in columns))


def _gather(graph: Graph, eqn: Any, x: Value, indices: Value) -> str:
    """Rows of a table, out[..., :] = x[indices[..., 0], :], or the part of x that begins at one known place."""
    p, table = eqn.params, eqn.invars[0].aval.shape
    d, places = p['dimension_numbers'], eqn.invars[1].aval.shape[:-1]
    if not isinstance(indices, str) and not places and not d.operand_batching_dims:
        start = [min(max(int(n), 0), table[a] - p['slice_sizes'][a]) for n, a in zip(indices, d.start_index_map)]
        stop = [n + p['slice_sizes'][a] for n, a in zip(start, d.start_index_map)]
        part = graph.add('Slice', x, *(np.array(v, np.int64) for v in (start, stop, d.start_index_map)))
        return graph.reshape(part, eqn.outvars[0].aval.shape)
    simple = (d.collapsed_slice_dims == (0,) and d.start_index_map == (0,) and not d.operand_batching_dims
              and tuple(p['slice_sizes']) == (1, *table[1:])
              and d.offset_dims == tuple(range(len(places), len(places) + len(table) - 1)))
    if not simple:
        raise errors.ConfigError('A gather that does not look up rows of a table has no counterpart in ONNX here.')
    rows = graph.reshape(indices, places)
    return graph.add('Gather', x, graph.add('Clip', rows, np.int32(0), np.int32(table[0] - 1)), axis=0)


def _select(graph: Graph, eqn: Any, which: Value, *cases: Value) -> str:
    if len(cases) != 2 or eqn.invars[0].aval.dtype != np.bool_:
        raise errors.ConfigError('A selection among more than two has no counterpart in ONNX here.')
    return graph.add('Where', which, cases[1], cases[0])


def _reduce(operation: str, graph: Graph, eqn: Any, x: Value) -> str:
    axes = list(eqn.params['axes'])
    if operation == 'ReduceSum':
        return graph.add(operation, x, np.array(axes, np.int64), keepdims=0)
    return graph.add(operation, x, axes=axes, keepdims=0)


def _erfc(graph: Graph, eqn: Any, x: Value) -> str:
    return graph.add('Sub', np.ones((), eqn.invars[0].aval.dtype), graph.add('Erf', x))


def _power(graph: Graph, eqn: Any, x: Value) -> str:
    return graph.add('Pow', x, np.array(eqn.params['y'], eqn.invars[0].aval.dtype))


def _clamp(graph: Graph, eqn: Any, low: Value, x: Value, high: Value) -> str:
    return graph.add('Min', graph.add('Max', x, low), high)


def _split(graph: Graph, eqn: Any, x: Value) -> Any:
    sizes = eqn.params['sizes']
    names = graph.add('Split', x, np.array(sizes, np.int64), outputs=len(sizes), axis=eqn.params['axis'])
    return [names] if len(sizes) == 1 else names


def _stack(graph: Graph, eqn: Any, *parts: Value) -> str:
    axis, out = eqn.params['axis'], eqn.outvars[0].aval.shape
    one = [1 if i == axis else n for i, n in enumerate(out)]
    return graph.add('Concat', *(graph.reshape(part, one) for part in parts), axis=axis)


def _unstack(graph: Graph, eqn: Any, x: Value) -> list[str]:
    axis, side = eqn.params['axis'], eqn.outvars[0].aval.shape
    parts = graph.add('Split', x, np.ones(len(eqn.outvars), np.int64), outputs=len(eqn.outvars), axis=axis)
    return [graph.reshape(part, side) for part in ([parts] if isinstance(parts, str) else parts)]


RULES: dict[str, Callable[..., Any]] = {
    'broadcast_in_dim': _broadcast, 'dot_general': _dot_general, 'conv_general_dilated': _conv, 'pad': _pad,
    'slice': _slice, 'gather': _gather, 'select_n': _select, 'erfc': _erfc, 'integer_pow': _power, 'clamp': _clamp,
    'split': _split, 'stack': _stack, 'unstack': _unstack,
    'reduce_window_max': lambda graph, eqn, x, *rest: _pool('MaxPool', graph, eqn, x),
    'reduce_window_sum': lambda graph, eqn, x, *rest: _pool('AveragePool', graph, eqn, x),
    'reduce_sum': lambda graph, eqn, x: _reduce('ReduceSum', graph, eqn, x),
    'reduce_max': lambda graph, eqn, x: _reduce('ReduceMax', graph, eqn, x),
    'reduce_min': lambda graph, eqn, x: _reduce('ReduceMin', graph, eqn, x),
    'reshape': lambda graph, eqn, x, *sides: graph.reshape(x, eqn.outvars[0].aval.shape),
    'squeeze': lambda graph, eqn, x: graph.reshape(x, eqn.outvars[0].aval.shape),
    'expand_dims': lambda graph, eqn, x: graph.reshape(x, eqn.outvars[0].aval.shape),
    'transpose': lambda graph, eqn, x: graph.add('Transpose', x, perm=list(eqn.params['permutation'])),
    'concatenate': lambda graph, eqn, *parts: graph.add('Concat', *parts, axis=eqn.params['dimension']),
    'convert_element_type': lambda graph, eqn, x: graph.add('Cast', x, to=_type(eqn.params['new_dtype'])),
    'rsqrt': lambda graph, eqn, x: graph.add('Reciprocal', graph.add('Sqrt', x)),
    'square': lambda graph, eqn, x: graph.add('Mul', x, x),
    'ne': lambda graph, eqn, x, y: graph.add('Not', graph.add('Equal', x, y)),
    'stop_gradient': lambda graph, eqn, x: graph.add('Identity', x)}
