"""A source on which everything can be known: a faint disc in one of 16 cells, or none; the report names the cell."""
import numpy as np

from jaxkd.data.source import Case

DEFAULTS = dict(cases=1200, contrast=0.35)


class Discs:
    name, note, labels, skipped = 'discs', 'discs: a test pattern', ('disc',), ()

    def __init__(self, cases, contrast):
        self.contrast = contrast
        self.cases = tuple(Case(f'case{i}', f'patient{i // 2}') for i in range(cases))

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        image = rng.normal(0.5, 0.08, (64, 64))
        cell, present = int(rng.integers(16)), i % 2
        boxes = np.zeros((0, 5), np.float32)
        if present:
            y, x = (16 * np.array(divmod(cell, 4)) + rng.integers(5, 11, 2)).tolist()
            rows, columns = np.ogrid[:64, :64]
            image += self.contrast * ((rows - y) ** 2 + (columns - x) ** 2 <= 16)
            boxes = np.float32([[0, x - 4, y - 4, 9, 9]])
        text = f'FINDINGS: A disc in cell {cell}.' if present else 'FINDINGS: Nothing is seen.'
        return {'image': np.clip(image, 0, 1).astype(np.float32), 'text': text, 'label': np.float32([present]),
                'boxes': boxes}


def build(hp):
    return Discs(hp.cases, hp.contrast)


def config(**stages):
    """Teacher, image-only arm and student on discs, at the size of the specification's synthetic check."""
    vit = dict(name='vit', size='tiny', patch=8)
    common = dict(batch=32, optim=dict(lr=1e-3, weight_decay=0.01, clip=1.0), select='classify/auroc')
    image = dict(common, inputs=('image',), model=vit, length='8 epochs', every='4 epochs',
                 evals=dict(classify={}, localise={}))
    run = dict(
        stages=('teacher', 'image_only', 'student'), bootstrap=200, tensorboard=False,
        data=dict(source=dict(name='tests.disc'), transforms=('image', 'text', 'labels'), split=dict(fractions=(.6, .15, .25)),
                  image=dict(size=64, fit='squash'), text=dict(length=16, vocab=64)),
        teacher=dict(common, inputs=('tokens',), length='3 epochs', every='3 epochs', evals=dict(classify={}),
                     model=dict(name='text', width=32, depth=2, heads=2, length=16, vocab=64)),
        image_only=dict(image, method=dict(name='mmpkd', alpha=0.0)),
        student=dict(image, method=dict(name='mmpkd', alpha=0.5), teachers=dict(report=dict(stage='teacher'))))
    for name, changes in stages.items():
        run[name] = {**run[name], **changes}
    return run
