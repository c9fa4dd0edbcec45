"""MMPKD: multimodal privileged knowledge distillation into a vision transformer.

Baur, Benova, Dolgener Cantu, Ma: On the effectiveness of multimodal privileged knowledge distillation in two vision
transformer based diagnostic applications. arXiv 2508.06558 (2025).

A frozen teacher reads an input that exists only in training (the report, the metadata row). The student reads the image
alone.

    L     = (1 - alpha) L_sup + alpha L_KD + gamma L_rep
    L_sup = sum_bc w_bc [softplus(z_S) - y z_S] / sum w            labels y [B,C], w = 0 where a label is uncertain
    L_KD  = T^2 mean_bc KL( Bernoulli(z_T / T) || Bernoulli(z_S / T) )    over all entries, those with w = 0 included:
                                                                   the teacher fills in the uncertain labels
    L_rep = mean_b 1 - cos(P h_S, h_T)                             h the pooled states, P a trained linear map

[published] text teacher (radiographs) or metadata teacher (mammograms), ViT student, image alone at test.
[our choice] every formula above, in the form of generalised distillation (Lopez-Paz et al., 2016); the defaults; that
all views of a study share one teacher output. The article's losses were not accessible to us, so no number obtained
with this file is a reproduction. alpha = 0 and gamma = 0 is the image-only arm, with the same code.
"""
import functools
from collections.abc import Sequence

import flax.linen as nn
from ml_collections import ConfigDict

from jaxkd import errors, losses, steps
from jaxkd.contracts import Method
from jaxkd.state import Context, Mean, Progress, valid_mask

PROVENANCE = ('Published: a teacher of reports or metadata, a vision transformer as student, the image alone at test '
              '(Baur et al., 2025). Our choice: every formula, in the form of generalised distillation (Lopez-Paz et '
              'al., 2016), the defaults, and one teacher output for all views of a study. The losses of the article '
              'were not accessible to us: nothing here is presented as a reproduction.')
DEFAULTS = dict(
    alpha=0.5,  # weight of the distillation of logits, L_KD, 0 to 1; that of the labels is 1 - alpha
    gamma=0.0,  # weight of L_rep, the cosine distance of pooled states; 0: none
    temperature=2.0,  # T, the divisor of the logits in L_KD: 0.1 to 100
)


def terms(student: dict, teachers: dict, heads: dict, batch: dict, hp: ConfigDict, reads: Sequence[str] = ()) -> dict:
    """Student and teacher logits [B,C]; label, label_weight [B,C]. Without a teacher only the supervised term remains.

    reads: privileged inputs of the teacher. A case without any of them has no terms of the teacher.
    """
    weight = batch['label_weight'] * batch['mask'][:, None]
    values = {'sup': Mean.of(losses.binary_cross_entropy(student['logits'], batch['label']), weight)}
    for teacher in teachers.values():
        valid = valid_mask(batch, reads)
        gap = losses.bernoulli_kl(teacher['logits'], student['logits'], hp.temperature)
        values['kd'] = Mean.of(gap.mean(-1), valid)
        if hp.gamma:
            gap = losses.cosine_distance(heads['project'](student['pooled']), teacher['pooled'])
            values['rep'] = Mean.of(gap, valid)
    return values


def weights(hp: ConfigDict, progress: Progress) -> dict:
    used = {'sup': 1 - hp.alpha, 'kd': hp.alpha, 'rep': hp.gamma}
    return {name: w for name, w in used.items() if w or name == 'sup'}


def heads(hp: ConfigDict, shapes: dict) -> dict:
    """The projector P, as wide as the teacher's pooled state."""
    teachers = [out for name, out in shapes.items() if name != 'student']
    return {'project': nn.Dense(teachers[0]['pooled'].shape[-1], use_bias=False)} if hp.gamma and teachers else {}


def build(hp: ConfigDict, context: Context) -> Method:
    """Raises ConfigError for more than one teacher, and for alpha, gamma or temperature out of bounds."""
    if len(context.teachers) > 1:
        raise errors.ConfigError(f'mmpkd learns from one teacher, not from {", ".join(context.teachers)}. Take one of '
                                 'them.')
    if not (0 <= hp.alpha <= 1 and hp.gamma >= 0 and 0.1 <= hp.temperature <= 100):
        raise errors.ConfigError(f'mmpkd: alpha = {hp.alpha} must lie in 0..1, gamma = {hp.gamma} must not be '
                                 f'negative, temperature = {hp.temperature} must lie in 0.1..100.')
    reads = [k for teacher in context.teachers.values() for k in steps.privileged_inputs(teacher, context)]
    return steps.make_method(functools.partial(terms, reads=reads), weights, hp, context, heads=heads,
                             provenance=PROVENANCE)
