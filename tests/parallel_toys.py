"""A source whose masks differ from device to device, and a method with a pairwise term and a value for each case."""
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import losses, parallel, steps
from jaxkd.data.source import Case
from jaxkd.state import Mean


class Uneven:
    name, note, labels, skipped = 'uneven', '', ('a', 'b'), ()
    cases = tuple(Case(f'c{i}', f'p{i}') for i in range(64))

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        return {'image': rng.random((8, 8, 1), np.float32), 'row': rng.random(5, np.float32),
                'label': np.float32([i % 2, i % 3 == 0]), 'label_weight': np.float32([i % 5 == 0, i % 4 < 3])}


def memory(hp, context):
    return {'loss': jnp.zeros(context.cases), 'seen': jnp.zeros(context.cases, bool)}


def terms(student, teachers, heads, batch, hp, memory):
    mine = student['pooled']
    everyone = parallel.gather(mine)
    gaps = jnp.square(mine @ everyone.T - (batch['row'] @ parallel.gather(batch['row']).T)).mean(-1)
    weight = batch['label_weight'] * batch['mask'][:, None]
    sup = losses.binary_cross_entropy(student['logits'], batch['label'])
    index, now = parallel.gather((batch['index'], jax.lax.stop_gradient(sup.mean(-1))))
    memory = {'loss': memory['loss'].at[index].set(0.9 * memory['loss'][index] + now),
              'seen': memory['seen'].at[index].set(True)}
    hard = memory['loss'][batch['index']] / (memory['loss'].sum() / memory['seen'].sum())
    return {'sup': Mean.of(sup * hard[:, None], weight), 'relation': gaps}, memory


def weights(hp, progress):
    return {'sup': 1.0, 'relation': 0.01}


def install():
    sys.modules['parallel.uneven'] = types.SimpleNamespace(DEFAULTS={}, build=lambda hp: Uneven())
    sys.modules['parallel.relation'] = types.SimpleNamespace(
        DEFAULTS={}, build=lambda hp, context: steps.usual(terms, weights, hp, context, memory=memory))
