"""The synthetic check of the specification: 32 x 32 noise, the class is the orientation of a faint grating at a random place."""
import numpy as np

from jaxkd.data.source import Case

DEFAULTS = dict(cases=4400)
CNN = dict(name='cnn', dims=2, channels=(8, 16, 32, 32), act='relu', norm='group', head='gap', dropout=0.0)


class Gratings:
    name, note, labels, skipped = 'gratings', 'a test pattern', ('down', 'up'), ()

    def __init__(self, cases):
        self.targets = {'label': np.arange(cases, dtype=np.int32) % 2}
        self.cases = tuple(Case(f'g{i}', f'g{i}') for i in range(cases))

    def __getitem__(self, i):
        """Unit noise, a 16 x 16 grating of amplitude 0.6 and period 6 pixels at 45 or 135 degrees."""
        rng, y = np.random.default_rng(i), int(self.targets['label'][i])
        image = rng.standard_normal((32, 32, 1)).astype(np.float32)
        row, column = rng.integers(0, 17, 2)
        a, b = np.mgrid[:16, :16]
        wave = 0.6 * np.sin(2 * np.pi * (a + (1 if y else -1) * b) / np.sqrt(2) / 6 + rng.uniform(0, 2 * np.pi))
        image[row:row + 16, column:column + 16, 0] += wave.astype(np.float32)
        return {'image': image, 'label': self.targets['label'][i]}


def build(hp):
    return Gratings(hp.cases)


def config(cases=4400, steps='1000 steps', batch=64, seed=0, stages=('teacher', 'probes', 'specialist'), **changes):
    """Teacher and probes (clean part), ERM, distillation of the final output, of probes, and of both; square of value 3."""
    taps = ('block1', 'block2', 'block3')
    clean = dict(train='clean')
    optim = dict(lr=1e-3, weight_decay=1e-4, clip=1.0, warmup='5%')
    model = dict(name='probed', of=CNN, taps=taps)
    arm = dict(inputs=('image',), model=model, optim=optim, batch=batch, length=steps, every=steps,
               method=dict(name='supervised', kind='classes'), evals=dict(
                   multiclass={}, **{e: dict(name='multiclass', data=e) for e in ('neutral', 'flip')}))
    taught = dict(specialist=dict(stage='probes', outputs=('logits', *(f'probe_{t}' for t in taps))))
    run = dict(
        seed=seed, stages=stages, bootstrap=0, tensorboard=False,
        data=dict(source=dict(name='tests.grating', cases=cases), augment=('shortcut',),
                  split=dict(fractions=(0.5, 0.05, 0.45), reserve=('clean', 0.2)),
                  shortcut=dict(rates=(1.0, 0.0), parts=dict(clean=(0.0, 0.0)), value=3.0, size=0.125, start=0.0625, limits=(-9.0, 9.0)),
                  elsewhere=dict(neutral=dict(shortcut=dict(rates=(0.5, 0.5), parts={})), flip=dict(shortcut=dict(rates=(0.0, 1.0), parts={})))),
        teacher=dict(arm, data=clean, method=dict(name='probe', final=1.0, weight=0.3)),  # probes trained jointly, as in the check
        probes=dict(arm, data=clean, init=dict(stage='teacher'), method=dict(name='probe'), model=dict(model, frozen=True),
                    optim=dict(optim, freeze=('student/of/',))),
        erm=arm,
        specialist=dict(arm, method=dict(name='specialist'), teachers=taught),
        final=dict(arm, method=dict(name='specialist', inter=0.0), teachers=taught),
        inter=dict(arm, method=dict(name='specialist', final=0.0), teachers=taught))
    for name, given in changes.items():
        run[name] = {**run[name], **given}
    return run
