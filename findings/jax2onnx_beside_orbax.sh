#!/usr/bin/env bash
# jax2onnx 0.13.0, orbax-checkpoint 0.12.8, jax 0.10.2, flax 0.12.8: beside a current orbax, pip gives an old jax2onnx.
#
# Releases 0.13.1 to 0.17.1 of jax2onnx ask for orbax-checkpoint below 0.11.37, a package that they use for nothing in a
# conversion. A project that saves its checkpoints with a current orbax and asks for `jax2onnx` without a version
# therefore gets 0.13.0, without a warning. Where the layers of flax have a rule of their own, lax's convolution of
# volumes in flax's layout, NDHWC, has none there: "Unsupported conv layouts". Expected: the newest release, or a
# conflict that pip names. The script fails when pip finds a newer release that goes with this orbax, or when the
# convolution converts.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax2onnx orbax-checkpoint==0.12.8 jax==0.10.2 flax==0.12.8
JAX_PLATFORMS=cpu "$work/env/bin/python" - <<'PY'
import importlib.metadata

import jax
import jax.numpy as jnp
from jax2onnx import to_onnx

version = importlib.metadata.version('jax2onnx')
print('jax2onnx', version)
assert version == '0.13.0', 'a newer release goes with this orbax now: this finding is out of date'
kernel = jnp.ones((3, 3, 3, 1, 4))


def convolve(x):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1, 1), 'SAME', dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'))


try:
    to_onnx(convolve, [(1, 8, 8, 8, 1)])
except Exception as error:
    print(f'{type(error).__name__}: {error}')
    assert 'Unsupported conv layouts' in str(error), 'another reason than the layout'
else:
    raise SystemExit('the convolution converts now: this finding is out of date')
PY
