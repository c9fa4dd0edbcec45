"""Masked autoencoder over modalities (BM-MAE, Robinet et al., 2025, after He et al., CVPR 2022 [published]): the voxels
of hidden patches from the seen ones. Pre-training without labels.

    L = sum_m sum_i h_mi mean_voxel (x^_mi - x_mi)^2 / sum_mi h_mi          h = 1 for hidden patches [published]

of all cases of a batch; patches of modalities that a case lacks are not hidden, but absent. Voxels are those that the
network reads, not normalised in each patch [published default]. The model is modality_vit with hide='patches', which
says how patches are drawn; another model may give `patches` and `reconstruction` [B,N,voxels] and `hidden` [B,N].

A later stage starts from its encoder, with any subset of the modalities:

    c.pretrain = dict(inputs=('ct', 't2'), model=dict(name='modality_vit', hide='patches'),
                      method=dict(name='masked_autoencoder'))
    c.tuned = dict(inputs=('ct',), model=dict(name='modality_vit'), init=dict(stage='pretrain', which='last'))

Published recipe: AdamW 1e-4, weight decay 0.05, 1000 epochs; fine-tuning of a classifier 20 epochs at 1e-4.
"""
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped
from ml_collections import ConfigDict

from jaxkd import errors, steps
from jaxkd.contracts import Method
from jaxkd.state import Context, Mean, Progress

DEFAULTS: dict = {}
PROVENANCE = ('Published: the loss over hidden patches, the masking ratio, the split of the seen ones among modalities.'
              ' Our choice: how that split becomes numbers of patches, see jaxkd/models/modality_vit.py.')


def reconstruction(found: Float[Array, '*b n v'], patches: Float[Array, '*b n v'],
                   hidden: Shaped[Array, '*b n']) -> Mean:
    """The mean over hidden patches of the mean squared error of their voxels."""
    return Mean.of(jnp.mean(jnp.square(found.astype(jnp.float32) - patches), -1), hidden)


def terms(student: Mapping[str, Array], teachers: dict, heads: dict, batch: dict, hp: ConfigDict) -> dict:
    hidden = student['hidden'] * batch['mask'][:, None]
    return {'reconstruction': reconstruction(student['reconstruction'], student['patches'], hidden)}


def weights(hp: ConfigDict, progress: Progress) -> dict:
    return {'reconstruction': 1.0}


def build(hp: ConfigDict, context: Context) -> Method:
    """Raises ConfigError for a model that hides nothing."""
    outputs = steps.output_shapes(context)['student']
    if missing := [name for name in ('reconstruction', 'patches', 'hidden') if name not in outputs]:
        raise errors.ConfigError(f'{context.stage}.method: masked_autoencoder needs "{missing[0]}", which the model '
                                 'does not give. Choose model.name="modality_vit" with model.hide="patches".')
    return steps.make_method(terms, weights, hp, context, provenance=PROVENANCE)
