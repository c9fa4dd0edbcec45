"""The network of a trained stage as programs that need none of its code.

    stablehlo  jax.export: (weights {name: array}, inputs {key: [b, ...]}) -> {output: [b, ...]} for any number b of
               rows and for cpu, cuda and tpu in one artefact. Where the network has an own formulation for the CPU
               (3D convolutions), the program holds it beside the native one; a platform compiles its own alone
    onnx       inputs by name -> outputs by name, weights within, native convolutions alone (onnx_program.py)

Inputs are those of the network and nothing else. 'present/<key>' float32 [b] (1: there is such an input) exists where
the network reads several inputs of which a case may lack some; a single input is always there.
"""
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxkd import errors, networks
from jaxkd.config import plugins
from jaxkd.export import onnx_program
from jaxkd.runtime import versions

PLATFORMS = ('cpu', 'cuda', 'tpu')  # not 'gpu', which is no platform of jax.export
PRESENT = 'present/'
DENSE = 'class_logits'  # a second output of segmentation networks
TOLERANCE = 1e-4  # of outputs, relative to the largest where that is above 1
HALF_TOLERANCE = 0.05  # of outputs of a network that computes in bfloat16
Arrays = Mapping[str, np.ndarray]


def flat_inputs(case: Mapping[str, Any]) -> dict[str, Any]:
    """{input: ..., 'present/<input>': flag} of a prepared case, or of a batch or its shapes; flags only where there are
    several inputs.
    """
    inputs = {key: a for key, a in case.items() if key != 'present'}
    flags = case.get('present', {}) if len(inputs) > 1 else {}
    return inputs | {f'{PRESENT}{key}': a for key, a in flags.items()}


@dataclasses.dataclass(frozen=True)
class Function:
    """The function that is exported: outputs by name of weights and flat inputs, both by name."""

    network: networks.Network
    flagged: tuple[str, ...]  # inputs that are always there, whose flags the network reads
    outputs: tuple[str, ...]

    def __call__(self, weights: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        rows = next(iter(inputs.values())).shape[0]
        present = {key.removeprefix(PRESENT): a for key, a in inputs.items() if key.startswith(PRESENT)}
        present |= {key: jnp.ones(rows, jnp.float32) for key in self.flagged}
        batch = {key: a for key, a in inputs.items() if not key.startswith(PRESENT)}
        variables = traverse_util.unflatten_dict(dict(weights), sep='/')
        out = self.network.apply(variables, batch | ({'present': present} if present else {}))[0]
        return {name: out[name] for name in self.outputs}


def function_of(network: networks.Network, case: Mapping[str, Any]) -> Function:
    """The Function of a network for cases like this prepared one. ConfigError for networks without such outputs."""
    present = case.get('present', {})
    batch = {key: jax.ShapeDtypeStruct((1, *np.shape(a)), np.asarray(a).dtype) for key, a in case.items()
             if key != 'present'}
    flags = {key: jax.ShapeDtypeStruct((1,), jnp.float32) for key in present}
    shapes = network.output_shapes(batch | ({'present': flags} if flags else {}))
    return Function(network, tuple(present) if len(batch) == 1 else (),
                    ('logits', *((DENSE,) if DENSE in shapes else ())))


def symbolic(case: Arrays) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes [b, ...] of the flat inputs of a prepared case, b symbolic."""
    from jax import export
    rows, = export.symbolic_shape('b')
    return {key: jax.ShapeDtypeStruct((rows, *a.shape), a.dtype) for key, a in case.items()}


def stablehlo(function: Function, weights: Arrays, case: Arrays) -> bytes:
    """The serialised program for flat inputs like those of a prepared case, see above."""
    from jax import export
    require('flatbuffers')
    shapes = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in weights.items()}
    limit = jax.config.jax_traceback_in_locations_limit  # type: ignore[attr-defined]
    jax.config.update('jax_traceback_in_locations_limit', 0)  # or the program names the files that it was traced from
    try:
        return bytes(export.export(jax.jit(function), platforms=PLATFORMS)(shapes, symbolic(case)).serialize())
    finally:
        jax.config.update('jax_traceback_in_locations_limit', limit)


def onnx(function: Function, weights: Arrays, case: Arrays) -> bytes:
    """The serialised ONNX model. ConfigError, with the reason, for a network that cannot be one."""
    require('onnx')
    shapes = symbolic(case)

    def ordered(*arrays: Any) -> list[Any]:
        return list(function({k: jnp.asarray(a) for k, a in weights.items()}, dict(zip(shapes, arrays))).values())
    return onnx_program.convert(ordered, shapes, function.outputs)


class Program:
    """A serialised StableHLO program with its weights."""

    def __init__(self, serialised: bytes, weights: Arrays) -> None:
        from jax import export
        require('flatbuffers')
        self.exported, self.weights = export.deserialize(bytearray(serialised)), dict(weights)
        self.call = jax.jit(self.exported.call)

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs by name, as device arrays that may still be computed."""
        return self.call(self.weights, dict(inputs))


def run_onnx(model: bytes, inputs: Arrays) -> dict[str, np.ndarray]:
    """Outputs of an ONNX model by onnxruntime on the CPU."""
    ort = require('onnxruntime')
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=['CPUExecutionProvider'])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs))))


def difference(a: Arrays, b: Arrays) -> float:
    """The largest difference of two sets of outputs, relative to the largest output where that is above 1; inf where
    names or shapes differ, or one is not finite.
    """
    if a.keys() != b.keys() or any(np.shape(a[k]) != np.shape(b[k]) for k in a):
        return float('inf')
    differences = [np.abs(np.asarray(a[k], float) - b[k]).max(initial=0) / max(1.0, np.abs(b[k]).max(initial=0))
                   for k in a]
    return float(max(differences)) if np.isfinite(differences).all() else float('inf')


def require(name: str) -> Any:
    """A library of the extra `export`. ConfigError without it."""
    import importlib
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise errors.ConfigError(f'Bundles need the library {name}, which cannot be imported ({e}). Install it: '
                                 f'{versions.install("export")}.') from e


def float32(config: Any, outputs: int, network: networks.Network) -> networks.Network:
    """The network of a stage's resolved config, computed in float32 whatever the run did."""
    if config.dtype == 'float32':
        return network
    module = plugins.load('models', config.model.name)
    return dataclasses.replace(network, module=module.build(config.model, outputs, jnp.float32))


def call(function: Callable[..., Any], weights: Arrays, inputs: Arrays) -> dict[str, np.ndarray]:
    """Outputs of the function itself."""
    return {k: np.asarray(a) for k, a in jax.jit(function)(dict(weights), dict(inputs)).items()}
