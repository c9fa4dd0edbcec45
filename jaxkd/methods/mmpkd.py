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

It is the method `distil` with the losses `kd_bce` and `cosine`: this file holds their weights and the provenance.
"""
from ml_collections import ConfigDict

from jaxkd import config, errors
from jaxkd.contracts import Method
from jaxkd.methods import distil
from jaxkd.state import Context

PROVENANCE = ('Published: a teacher of reports or metadata, a vision transformer as student, the image alone at test '
              '(Baur et al., 2025). Our choice: every formula, in the form of generalised distillation (Lopez-Paz et '
              'al., 2016), the defaults, and one teacher output for all views of a study. The losses of the article '
              'were not accessible to us: nothing here is presented as a reproduction.')
DEFAULTS = dict(
    alpha=0.5,  # weight of the distillation of logits, L_KD, 0 to 1; that of the labels is 1 - alpha
    gamma=0.0,  # weight of L_rep, the cosine distance of pooled states; 0: none
    temperature=2.0,  # T, the divisor of the logits in L_KD: 0.1 to 100
)


def build(hp: ConfigDict, context: Context) -> Method:
    """Raises ConfigError for more than one teacher, and for alpha, gamma or temperature out of bounds."""
    if len(context.teachers) > 1:
        raise errors.ConfigError(f'mmpkd learns from one teacher, not from {", ".join(context.teachers)}. Take one of '
                                 'them.')
    for key, interval in (('alpha', '[0, 1]'), ('gamma', '[0, inf)'), ('temperature', '[0.1, 100]')):
        errors.check_range(f'{context.stage}.method.{key}', hp[key], interval)
    losses = {} if not context.teachers else dict(
        kd=dict(name='kd_bce', weight=hp.alpha, temperature=hp.temperature), rep=dict(name='cosine', weight=hp.gamma))
    used = {name: loss for name, loss in losses.items() if loss['weight'] or name == 'kd'}
    chosen = dict(name='distil', supervised=1 - hp.alpha, losses=used)
    _, options = config.options('methods', chosen, f'{context.stage}.method')
    options.name = hp.name  # in messages
    return distil.build(options, context)._replace(provenance=PROVENANCE, plain=False)
