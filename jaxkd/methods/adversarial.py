"""Adversarial unlearning: features that do not predict the bias. Needs the bias label.

    L = CE(z, y) + CE(a(reverse(h)), b),   reverse: x forwards, -weight times the gradient backwards

h the pooled features, a an adversary with one hidden layer. Gradient reversal: Ganin et al., JMLR 2016 [published];
against biases Kim et al., CVPR 2019 [published]; weight 0.1 and the width [our choice]. batch['bias'] comes from the
transform `shortcut` with reveal=True.
"""
import flax.linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from jaxkd import errors, losses, steps
from jaxkd.contracts import Method
from jaxkd.state import Context, Mean, Progress, labelled_mask

NEEDS = ('bias',)
# weight: of the adversary's reversed gradient in the network, 0 or more; width: hidden units of the adversary
DEFAULTS = dict(weight=0.1, width=64)


class Adversary(nn.Module):
    width: int

    @nn.compact
    def __call__(self, h: Float[Array, 'batch width']) -> Float[Array, 'batch 2']:
        return nn.Dense(2)(nn.relu(nn.Dense(self.width)(h)))


def terms(student: dict, teachers: dict, heads: dict, batch: dict, hp: ConfigDict) -> dict:
    told = heads['adversary'](losses.reverse(student['pooled'], hp.weight))
    return {'ce': Mean.of(losses.cross_entropy(student['logits'], batch['label']), labelled_mask(batch)),
            'adversary': losses.cross_entropy(told, batch['bias'])}


def weights(hp: ConfigDict, progress: Progress) -> dict:
    return {'ce': 1.0, 'adversary': 1.0}


def heads(hp: ConfigDict, shapes: dict) -> dict:
    return {'adversary': Adversary(hp.width)}


def build(hp: ConfigDict, context: Context) -> Method:
    steps.require_keys(NEEDS, hp, context)
    if hp.weight < 0:
        raise errors.ConfigError(f'adversarial.weight = {hp.weight} must not be negative.')
    return steps.make_method(terms, weights, hp, context, heads=heads)
