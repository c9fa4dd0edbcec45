"""Adversarial unlearning: features from which the bias cannot be read. Needs the bias label.

    L = CE(z, y) + CE(a(reverse(h)), b),   reverse: x forwards, -weight times the gradient backwards

h the pooled features, a an adversary with one hidden layer. Gradient reversal: Ganin et al., JMLR 2016 [published];
against biases Kim et al., CVPR 2019 [published]; weight 0.1 and the width [our choice]. batch['bias'] comes from the
transform `shortcut` with reveal=True.
"""
import flax.linen as nn
import jax

from jaxkd import errors, losses, steps

NEEDS = ('bias',)
DEFAULTS = dict(weight=0.1, width=64)


class Adversary(nn.Module):
    width: int

    @nn.compact
    def __call__(self, h):
        return nn.Dense(2)(nn.relu(nn.Dense(self.width)(h)))


def reverse(x, weight):
    """x, with -weight times its gradient."""
    return jax.lax.stop_gradient((1 + weight) * x) - weight * x


def terms(student, teachers, heads, batch, hp):
    return {'ce': losses.cross_entropy(student['logits'], batch['label']),
            'adversary': losses.cross_entropy(heads['adversary'](reverse(student['pooled'], hp.weight)), batch['bias'])}


def weights(hp, progress):
    return {'ce': 1.0, 'adversary': 1.0}


def heads(hp, shapes):
    return {'adversary': Adversary(hp.width)}


def build(hp, context):
    steps.require_keys(NEEDS, hp, context)
    if hp.weight < 0:
        raise errors.ConfigError(f'adversarial.weight = {hp.weight} must not be negative.')
    return steps.make_method(terms, weights, hp, context, heads=heads)
