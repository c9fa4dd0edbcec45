"""Sources whose masks differ from device to device, and a network with the levels that CPKD takes its exits from."""
import sys
import types

import flax.linen as nn
import numpy as np

from jaxkd.data.source import Case


class Uneven:
    name, note, labels, skipped = 'uneven', '', ('a', 'b'), ()
    cases = tuple(Case(f'c{i}', f'p{i}') for i in range(64))

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        return {'image': rng.random((8, 8, 1), np.float32), 'row': rng.random(5, np.float32),
                'label': np.float32([i % 2, i % 3 == 0]), 'label_weight': np.float32([i % 5 == 0, i % 4 < 3])}


class Paired(Uneven):
    """CT and MRI; every fourth case lacks the MRI, every fifth its texture."""

    labels, tasks = ('a', 'b', 'c'), {'texture': ('x', 'y', 'z'), 'duct': ('x', 'y', 'z')}

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        return {'ct': rng.random((2, 4, 4, 1), np.float32), 'mri': rng.random((2, 4, 4, 1), np.float32) * (i % 4 > 0),
                'present': {'mri': np.float32(i % 4 > 0)}, 'label': np.int32(i % 3),
                'texture': np.int32(i // 2 % 3 if i % 5 else -1), 'duct': np.int32(i // 3 % 3),
                'prior': rng.dirichlet(np.ones(3), (3, 3)).astype(np.float32)}


class Levels(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, inputs, train=False):
        x, = (v for k, v in inputs.items() if k != 'present')
        out = {}
        for i in range(5):
            x = out[f'level{i}'] = nn.tanh(nn.Dense(6)(x))
        out['pooled'] = x.mean((1, 2, 3))
        return out | {'logits': nn.Dense(self.outputs)(out['pooled'])}


def install():
    for name, source in (('uneven', Uneven), ('paired', Paired)):
        sys.modules[f'parallel.{name}'] = types.SimpleNamespace(DEFAULTS={}, build=lambda hp, source=source: source())
    sys.modules['parallel.levels'] = types.SimpleNamespace(DEFAULTS={}, build=lambda hp, outputs, dtype: Levels(outputs))
