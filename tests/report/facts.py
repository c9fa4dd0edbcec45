"""What the summary of a made-up stage says of its loss: of the method's own weights, as jaxkd/evaluation.py says it of
a real one."""
import inspect

import numpy as np

from jaxkd import config
from jaxkd.state import Progress

# terms of the student and its labels, coarser ones too
LABELS = ('sup', 'ce', 'dice', 'main', 'cls', 'ifd', 'boundary', 'distance')

NAMED = dict(  # of methods whose terms a config names: (hp, Progress) -> {term: weight}
    distil=lambda hp, progress: {'sup': hp.supervised} | {name: options.weight for name, options in hp.losses.items()},
    mmpkd=lambda hp, progress: {'sup': 1 - hp.alpha, 'kd': hp.alpha} | ({'rep': hp.gamma} if hp.gamma else {}),
    sikd=lambda hp, progress: {'ce': hp.ce} | ({'distil': hp.weight} if hp.weight else {}))


def loss(method, inputs, frozen=None, trained=None, steps=60, epochs=2.4):
    """frozen, trained: {network: its inputs}. A method called "some" has one term, which comes from its teacher."""
    frozen, trained = frozen or {}, trained or {}
    others = {n: dict(frozen=n in frozen, inputs=reads, privileged=sorted(set(reads or ()) - set(inputs)))
              for n, reads in {**trained, **frozen}.items()}
    weights = {'kd': [0.5]}
    if method['name'] != 'some':
        module, hp = config.options('methods', {k: v for k, v in method.items() if k != 'shuffle'}, 'method')
        own = NAMED.get(method['name'], vars(module).get('weights'))
        more = {'tasks': dict.fromkeys(trained)} if 'tasks' in inspect.signature(own).parameters else {}
        points = [own(hp, Progress(f * steps, f * epochs, f), **more) for f in np.linspace(0, 1, 21)]
        weights = {term: [float(p[term]) for p in points] for term in points[0]}
    terms = [t for t in weights if t.rstrip('0123456789') not in LABELS and not t.startswith('aux_')] if others else []
    return dict(other_networks=others, teacher_terms=terms,
                term_weights={t: max(v, key=abs) for t, v in weights.items()},
                uses_teacher=any(any(weights[t]) for t in terms), plain=method['name'] == 'supervised',
                provenance='Published: the loss.' if method['name'] == 'distil' else 'Certain: the loss.')
