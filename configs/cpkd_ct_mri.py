"""CPKD: a CT student for pancreatic lesions, whose MRI networks are trained along and thrown away.

    python -m jaxkd.main --config configs/cpkd_ct_mri.py             the embedded pancreas phantom, minutes on two CPU cores
    python -m jaxkd.main --config configs/cpkd_ct_mri.py:smoke       seconds: does everything run?
    python -m jaxkd.main --config configs/cpkd_ct_mri.py:folder --config.data.source.root=DIR    your cases.csv and NIfTI folders
    python -m jaxkd.main --config configs/cpkd_ct_mri.py:paper --config.data.source.root=DIR     the published numbers
    python -m jaxkd.multirun --config configs/cpkd_ct_mri.py:sts --folds 5 --config.data.source.root=DIR   soft-tissue sarcoma
    python -m jaxkd.multirun --config configs/cpkd_ct_mri.py --seeds 0,1,2,3,4                     the comparison of the README

Stages: `mri`, a classifier of the MRI, is the teacher of `kd` and the ceiling of what MRI tells. `ct_only`, `kd`, `dpk` (CPKD
without its two calibrations) and `cpkd` are the same CT network with the same initial weights, data order, augmentation and
steps. What is published of CPKD and what is our reconstruction stands in jaxkd/methods/cpkd.py.
"""
from ml_collections import ConfigDict

from jaxkd import errors

VARIANTS = ('', 'smoke', 'folder', 'paper', 'sts')


def get_config(arg=''):
    if arg not in VARIANTS:
        raise errors.ConfigError(f'configs/cpkd_ct_mri.py has no variant "{arg}".{errors.nearest(arg, VARIANTS[1:])}')
    own = arg in ('folder', 'paper', 'sts')
    c = ConfigDict(dict(seed=0, stages=('mri', 'ct_only', 'kd', 'dpk', 'cpkd')))
    c.data = dict(
        source=dict(name='jaxkd.phantoms.pancreas', patients=1200, size=32, depth=14, field=(66.0, 66.0, 60.0), difficulty=0.25,
                    seed=11),  # a draw of the phantom that nothing was tuned on
        transforms=('volume', 'prior'),
        augment=('crop',),  # HU mean something: with their brightness changed at random, learning begins much later
        # A narrow window: the contrast of a lesion is a fifth of it, and a small network finds it in minutes.
        volume=dict(spacing=(2.1, 2.1, 4.3), size=(24, 24, 10), margin=(3, 3, 2), window=(0.0, 180.0)),
        crop=dict(size=(24, 24, 10)),
        split=dict(fractions=(0.5, 0.1, 0.4), stratify=('class', 'center')),
    )
    net = dict(name='resnet', width=0.125, stem='small')
    optim = dict(name='adamw', lr=4e-3, weight_decay=0.05, clip=1.0, schedule='cosine', warmup='5%')
    common = dict(model=net, optim=optim, batch=16, length='20 epochs', every='2 epochs', select='multiclass/accuracy')
    evals = dict(multiclass={}, slices={})
    inputs = ('t2',)
    c.mri = dict(common, inputs=inputs, method=dict(name='supervised', kind='classes'), evals=dict(multiclass={}))
    ct = dict(common, inputs=('ct',), evals=evals)
    networks = {task: dict(inputs=inputs, task=task, model=net) for task in ('texture', 'duct')}
    one = dict(num_heads=1, head_indice=0)  # no exits: plain distillation has none, and all arms are the same CT network
    off = dict(name='cpkd', kd_mode='static', clinical=False, **one)
    c.ct_only = dict(ct, method=off)
    c.kd = dict(ct, method=dict(name='kd'), teachers=dict(mri=dict(stage='mri', cache='no')))
    c.dpk = dict(ct, method=off, networks=networks)
    c.cpkd = dict(ct, method=dict(name='cpkd', **one), networks=networks)
    # A control that is not in `stages`: the same labels and the same networks, but they read the CT as well.
    c.same = dict(c.cpkd, networks={task: dict(inputs=('ct',), task=task, model=net) for task in ('texture', 'duct')})

    if arg == 'smoke':
        c.data.source.patients, c.bootstrap = 60, 50
        for name in (*c.stages, 'same'):
            c[name].update(length='4 steps', every='2 steps', log_every='2 steps', batch=8)
    if own:  # a researcher's own machine: whole MobileNetV2 at 224 x 224 x 32, the recipe that follows from the published one
        inputs = ('t1', 't2')
        c.data.source = dict(name='paired', root='')
        c.data.augment = ('crop', 'rotate_flip', 'intensity')
        c.data.volume = dict(spacing=(0.8, 0.8, 3.0), size=(224, 224, 32), margin=(16, 16, 4))
        c.data.crop.size = (224, 224, 32)
        c.data.split = dict(fractions=(0.7, 0.1, 0.2), stratify=('class', 'center'))
        arms = (*c.stages, 'same')
        for name in arms:
            c[name].model = ConfigDict(dict(name='mobilenet'))
            c[name].optim = ConfigDict(dict(name='adam', lr=1e-4, weight_decay=5e-4, schedule='plateau', patience=20, floor=1e-6,
                                            warmup=''))
            c[name].update(batch=4, length='200 epochs', every='1 epoch')
            for network in c[name].get('networks', {}).values():
                network.inputs = ('ct',) if name == 'same' else inputs
                network.model = ConfigDict(dict(name='mobilenet'))
        c.mri.inputs = inputs
    # What the public training script declares; the default of its MRI is T1 alone. The inside of the calibrations, hard_over
    # included, and the preprocessing are our reconstruction here as well.
    if arg == 'paper':
        c.stages = ('cpkd',)
        c.data.augment = ('rotate_flip', 'crop')
        c.data.volume.margin = (0, 0, 0)
        c.data.rotate_flip = dict(chance=1.0)
        c.cpkd.optim.update(no_decay=(), patience=5, floor=0.0)
        c.cpkd.update(length='1000 epochs', every='20 steps')
        c.cpkd.method = ConfigDict(dict(name='cpkd', num_heads=5, head_indice=3, hard_over='hard'))
        for task in ('texture', 'duct'):
            c.cpkd.networks[task].inputs = ('t1',)
    if arg == 'sts':  # a few dozen patients, another question: does MRI and PET of the tumour teach CT who will have metastases?
        c.note = ('A small public collection with a distant outcome: some 36 patients, a third of them with metastases. Intervals '
                  'are wide; this shows that the path works on real scans, and cannot rank methods.')
        c.data.source = dict(name='sts', root='')
        c.data.transforms = ('volume',)
        # 42 mm around the middle of the tumour: inside every field of view, whose extent would tell the tumour's size.
        keys = ('ct', 't1', 'pet')
        c.data.volume = dict(keys=keys, spacing=(3.0, 3.0, 3.0), size=(12, 12, 12), margin=(2, 2, 2))
        c.data.crop = dict(keys=keys, size=(12, 12, 12), joint=True)  # the scans are registered
        c.data.rotate_flip = dict(keys=keys, joint=True)
        c.data.intensity = dict(keys=keys)
        c.data.split = dict(fractions=(0.7, 0.1, 0.2), stratify=('class',))
        inputs = ('t1', 'pet')
        c.mri.inputs = inputs
        c.stages = ('mri', 'ct_only', 'kd', 'dpk')
        for name in c.stages:
            c[name].model = ConfigDict(net)
            c[name].optim = ConfigDict(optim)
            c[name].update(batch=8, length='40 epochs', every='5 epochs', select='')  # too few to select on: the last step
        c.dpk.networks = ConfigDict(dict(scans=dict(inputs=inputs, model=net)))
        del c['cpkd'], c['same']  # the calibrations need texture and duct
    return c
