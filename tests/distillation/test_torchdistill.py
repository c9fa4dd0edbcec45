"""Values and gradients of torchdistill's losses, from tests/reference/torchdistill_numbers.py."""
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.distillation import at, cc, dist, kd, lskd, pkt, reviewkd, rkd, vid
from tests.reference import torchdistill_numbers as numbers
from tests.reference.torchvision_numbers import sample

STORED = json.loads(numbers.FILE.read_text())
ONES = np.ones(7, np.float32)


def beside_labels(loss, z):
    """As the usual code has it: 0.1 cross-entropy + 0.9 of the loss."""
    return 0.1 * losses.cross_entropy(z, jnp.asarray(numbers.LABEL)).mean() + 0.9 * loss.mean()


LOSSES = {
    'kd': lambda s, t: beside_labels(kd.softened(s, t), s), 'lskd': lambda s, t: beside_labels(lskd.softened(s, t), s),
    'dist': lambda s, t: sum(dist.correlations(s, t, ONES, 4.0)), 'at': lambda s, t: at.gap(s, t).mean(),
    'at of the paper': lambda s, t: at.gap(s, t, form='paper').mean(),
    'cc': lambda s, t: cc.gap(s, t, ONES, 'torchdistill'),
    'rkd': lambda s, t: jnp.dot(jnp.stack(rkd.relations(s, t, ONES)), jnp.array([25.0, 50.0])),
    'pkt': lambda s, t: pkt.divergence(s, t, ONES),
    'vid': lambda s, t: vid.likelihood(s, jnp.full(3, np.log(np.expm1(5 - 1e-5))), t).mean(),
    'reviewkd': lambda s, t: reviewkd.hierarchical(s, t).mean()}


@functools.cache
def found():
    """{case: (value, gradient in the student, channels first)}, one program."""
    def one(case, loss, student, teacher):
        last = lambda x: jnp.moveaxis(x, 1, -1)  # noqa: E731
        return jax.value_and_grad(lambda s: loss(last(s), last(teacher)))(student)

    @jax.jit
    def run(taps):
        return {case: one(case, loss, *taps[case]) for case, loss in LOSSES.items()}
    return jax.tree.map(np.asarray, run({case: numbers.taps(case) for case in LOSSES}))


@pytest.mark.parametrize('case', numbers.CASES)
def test_a_loss_is_that_of_torchdistill(case):
    value, gradient = found()[case]
    assert float(value) == pytest.approx(STORED[case]['value'], rel=2e-5)
    if case == 'cc':  # ours brings features to norm 1, so that there is no gradient along them
        return
    scale = np.abs(STORED[case]['gradient']).max()
    np.testing.assert_allclose(sample(gradient), STORED[case]['gradient'], rtol=2e-4, atol=2e-5 * scale)
