"""CPKD: a CT student for pancreatic lesions, whose MRI networks are trained along and thrown away.

    python -m jaxkd.main --config configs/cpkd_ct_mri.py:help                       all variants and their commands
    python -m jaxkd.multirun --config configs/cpkd_ct_mri.py --seeds 0,1,2,3,4      the comparison of the README

Stages: `mri`, a classifier of the MRI, is the teacher of `kd` and the ceiling of what MRI tells. `ct_only`, `kd`, `dpk`
(CPKD without its two calibrations) and `cpkd` are the same CT network with the same initial weights, data order,
augmentation and steps. What is published of CPKD and what is our reconstruction stands in jaxkd/methods/cpkd.py.
"""
from ml_collections import ConfigDict

from jaxkd import config

PHANTOM = 'jaxkd.phantoms.pancreas'
RESNET = dict(name='resnet', width=0.125, stem='small')
# Of the arms whose step is differentiated through, or that are many: a few convolutions, which compile in seconds.
CNN = dict(name='cnn', channels=(8, 16, 32), act='relu', norm='group', head='gap', dropout=0.0)
OPTIM = dict(name='adamw', lr=4e-3, weight_decay=0.05, clip=1.0, schedule='cosine', warmup='5%')
PLATEAU = dict(name='adam', lr=1e-4, weight_decay=5e-4, schedule='plateau', patience=20, floor=1e-6, warmup='')
TOKENS = dict(name='modality_vit', width=96, depth=3, heads=4, mlp=2, patch=(5, 6, 6))
TASKS = ('texture', 'duct')
# Arms of `losses`: one loss beside that of the labels, with the weight that its file in jaxkd/distillation gives.
LOSSES = dict(
    dkd=dict(dkd={}), dist=dict(dist={}), lskd=dict(lskd={}), hint=dict(hint=dict(student='level3')),
    at=dict(at=dict(student='level2,level3')), affinity=dict(affinity=dict(student='level3')),
    vid=dict(vid=dict(student='level2,level3')), review=dict(reviewkd=dict(student='level1,level2,level3,pooled')),
    sp=dict(sp=dict(student='level4')), rkd=dict(rkd={}), pkt=dict(pkt={}), cc=dict(cc={}), mad=dict(mad={}),
    crd=dict(crd={}), infonce=dict(infonce={}))


def base() -> ConfigDict:
    """The embedded pancreas phantom, minutes on two CPU cores
    python -m jaxkd.main --config configs/cpkd_ct_mri.py
    """
    c = ConfigDict(dict(seed=0, stages=('mri', 'ct_only', 'kd', 'dpk', 'cpkd')))
    c.data = dict(
        source=dict(name=PHANTOM, patients=1200, size=32, depth=14, field=(66.0, 66.0, 60.0), difficulty=0.25,
                    seed=11),  # a draw of the phantom that nothing was tuned on
        transforms=('volume', 'prior'),
        augment=('crop',),  # HU mean something: with their brightness changed at random, learning begins much later
        # A narrow window: the contrast of a lesion is a fifth of it, and a small network finds it in minutes.
        volume=dict(spacing=(2.1, 2.1, 4.3), size=(24, 24, 10), margin=(3, 3, 2), window=(0.0, 180.0)),
        crop=dict(size=(24, 24, 10)), split=dict(fractions=(0.5, 0.1, 0.4), stratify=('class', 'center')))
    common = dict(model=RESNET, optim=OPTIM, batch=16, length='20 epochs', eval_every='2 epochs',
                  select='multiclass/accuracy')
    c.mri = dict(common, inputs=('t2',), method=dict(name='supervised', kind='classes'), evals=dict(multiclass={}))
    ct = dict(common, inputs=('ct',), evals=dict(multiclass={}, slices={}))
    networks = {task: dict(inputs=('t2',), task=task, model=RESNET) for task in TASKS}
    # no exits: plain distillation has none, and all arms are the same CT network
    one_head = dict(num_heads=1, head_indice=0)
    uncalibrated = dict(name='cpkd', kd_mode='static', clinical=False, **one_head)
    c.ct_only = dict(ct, method=uncalibrated)
    plain = dict(name='distil', supervised=0.1, losses=dict(kd=dict(weight=0.9)))
    c.kd = dict(ct, method=plain, teachers=dict(mri=dict(stage='mri', cache='no')))
    c.dpk = dict(ct, method=uncalibrated, networks=networks)
    c.cpkd = dict(ct, method=dict(name='cpkd', **one_head), networks=networks)
    # A control that is not in `stages` (see `controls`): the same labels and networks, but they read the CT as well.
    c.cpkd_same_modality = dict(c.cpkd, networks={
        task: dict(inputs=('ct',), task=task, model=RESNET) for task in TASKS})
    return c


def smoke(c: ConfigDict) -> None:
    """Seconds: does everything run?
    python -m jaxkd.main --config configs/cpkd_ct_mri.py:smoke
    """
    if c.data.source.name == PHANTOM:
        c.data.source.patients = 60
    c.bootstrap = 50
    for name in config.stage_names(c):
        c[name].update(length='4 steps', eval_every='2 steps', log_every='2 steps', batch=8)
        if c[name].model.name == TOKENS['name']:
            c[name].model.depth = 1


def controls(c: ConfigDict) -> None:
    """More arms: does a gain come from the MRI, and does it need networks that are trained along?
    python -m jaxkd.main --config configs/cpkd_ct_mri.py:controls

    `cpkd_same_modality` is CPKD whose other networks read the CT. `along` and `two_stages` transfer from one MRI
    network of the main class: trained with the student, or before it (`mri`) and frozen. In `kd_shuffled` that network
    reads the MRI of another patient of the same class, in `kd_same_modality` another CT network teaches, and
    `label_smoothing` is the CT network with soft labels.
    """
    c.along = c.dpk.to_dict() | dict(networks=dict(mri=dict(inputs=c.mri.inputs, model=c.mri.model.to_dict())))
    c.two_stages = c.dpk.to_dict() | dict(networks={}, teachers=dict(mri=dict(stage='mri', cache='no')))
    c.kd_shuffled = c.kd.to_dict() | dict(teachers=dict(mri=dict(stage='mri', cache='no', shuffled=True)))
    c.ct_only_seed1000 = c.ct_only.to_dict() | dict(seed=1000)
    c.kd_same_modality = c.kd.to_dict() | dict(teachers=dict(ct=dict(stage='ct_only_seed1000', cache='no')))
    c.label_smoothing = c.ct_only.to_dict() | dict(method=dict(name='distil', smoothing=0.1))
    c.stages = (*c.stages, 'cpkd_same_modality', 'along', 'two_stages', 'kd_shuffled', 'ct_only_seed1000',
                'kd_same_modality', 'label_smoothing')


def many_tested(c: ConfigDict) -> None:
    """The phantom with 1,920 test patients, for narrow intervals; as many train as without it
    python -m jaxkd.main --config configs/cpkd_ct_mri.py:many_tested
    """
    if c.data.source.name == PHANTOM:
        c.data.source.patients, c.data.split.fractions = 2640, (600 / 2640, 120 / 2640, 1920 / 2640)


def losses(c: ConfigDict) -> None:
    """An arm for each loss of distillation between maps, features and classes, from the MRI network
    python -m jaxkd.main --config configs/cpkd_ct_mri.py:losses
    """
    c.stages = ('mri', 'ct_only', 'kd', *LOSSES, 'mutual', 'cmim')
    for name, chosen in LOSSES.items():
        c[name] = c.kd.to_dict() | dict(method=dict(name='distil', losses=chosen))
    _trained_along(c)


def _trained_along(c: ConfigDict) -> None:
    """Two arms whose MRI network is trained with the student: deep mutual learning, and cross-modal information."""
    peer = dict(mri=dict(inputs=c.mri.inputs, model=c.mri.model.to_dict()))
    towards = dict(kd=dict(teacher='mri/logits', temperature=1.0, weight=1.0),
                   back=dict(name='kd', student='mri/logits', teacher='student/logits', temperature=1.0, weight=1.0))
    alike = dict(infonce=dict(teacher='mri/pooled', both=True), joint=dict(teacher='mri/pooled', both=True))
    for name, losses in dict(mutual=towards, cmim=alike).items():
        c[name] = c.ct_only.to_dict() | dict(method=dict(name='distil', losses=losses), networks=peer)


def subsets(c: ConfigDict) -> None:
    """One network for CT, MRI or both, trained with modality dropout and tested on each of them; or one for each
    python -m jaxkd.main --config configs/cpkd_ct_mri.py:subsets

    `ct_only`, `mri` and `full` are a network for each subset. `full` is trained on both and sees both; `dropped` keeps
    a random subset of the inputs of each case, and `mmanet` learns from `full` besides, most where that is uncertain,
    and practises what it is weak at (MMANet). `shaspec` has shared and specific encoders.
    """
    c.stages = ('ct_only', 'mri', 'full', 'dropped', 'mmanet', 'shaspec')
    both = c.ct_only.to_dict() | dict(inputs=('ct', 't2'), model=dict(RESNET, fuse='mean'))
    evals = dict(multiclass={}, modalities=dict(of=dict(name='multiclass')))
    teachers = dict(full=dict(stage='full', cache='no'))
    c.full = both | dict(method=dict(name='distil'), evals=evals)
    c.dropped = c.full.to_dict() | dict(method=dict(name='distil', drop='subset'))
    c.mmanet = c.dropped.to_dict() | dict(method=dict(name='distil', drop='subset', losses=dict(mad={}, mar={})),
                                          teachers=teachers)
    ring = dict(shaspec_ring={}, shaspec_domain={})
    c.shaspec = c.full.to_dict() | dict(model=dict(name='shaspec', of=RESNET),
                                        method=dict(name='distil', drop='count', losses=ring))


def several(c: ConfigDict) -> None:
    """Several teachers, of the MRI and of the CT: their mean, weights by confidence, weights that the config names
    python -m jaxkd.main --config configs/cpkd_ct_mri.py:several

    In `weighed` the teacher of the MRI has a fixed weight, and that of the CT one that falls to 0 by half of the time.
    """
    teachers = {name: dict(stage=stage, cache='no') for name, stage in (('mri', 'mri'), ('ct', 'ct_only'))}
    both = dict(weight=0.9, teacher='mri/logits,ct/logits')
    arms = dict(mean=dict(ensemble=both), confident=dict(confident=both), weighed=dict(
        mri=dict(name='kd', teacher='mri/logits', weight=0.6),
        ct=dict(name='kd', teacher='ct/logits', weight=0.3, schedule='linear down 50%')))
    for name, chosen in arms.items():
        c[name] = c.kd.to_dict() | dict(method=dict(name='distil', supervised=0.1, losses=chosen), teachers=teachers)
    c.stages = ('mri', 'ct_only', 'kd', *arms)


def masked(c: ConfigDict) -> None:
    """One ViT for any subset of the scans, pre-trained as a masked autoencoder of both (BM-MAE)
    python -m jaxkd.main --config configs/cpkd_ct_mri.py:masked

    `pretrain` reads no label. `tuned` starts from its encoder and is tuned with modality dropout, `tuned_ct` for the CT
    alone; `scratch` and `scratch_ct` are the same without pre-training.
    """
    decoder = dict(width=48, depth=1, heads=4)
    _pretrained(c, TOKENS | dict(hide='patches', decoder=decoder), dict(name='masked_autoencoder'))


def hidden_modality(c: ConfigDict) -> None:
    """The same ViT, pre-trained by self-distillation with a whole modality hidden (MM-DINOv2)
    python -m jaxkd.main --config configs/cpkd_ct_mri.py:hidden_modality

    In `sees_ct` the student sees the CT and its running mean, the teacher, both: privileged learning without labels,
    from which `sees_ct_tuned` starts.
    """
    shared = TOKENS | dict(tokenizer='shared', prototypes=16)
    _pretrained(c, shared | dict(hide='modality'), dict(name='self_distillation'), ema=0.99)
    c.sees_ct = c.pretrain.to_dict() | dict(model=shared | dict(hide='others', seen=('ct',)))
    c.sees_ct_tuned = c.tuned_ct.to_dict() | dict(init=dict(stage='sees_ct', which='last'))
    c.stages = (*c.stages, 'sees_ct', 'sees_ct_tuned')


def _pretrained(c: ConfigDict, model: dict, method: dict, **optim) -> None:
    both, last = dict(inputs=('ct', 't2')), dict(stage='pretrain', which='last')
    adam = dict(OPTIM, lr=1e-3, b2=0.95)
    vit = dict(model=TOKENS | dict(tokenizer=model.get('tokenizer', 'own')), optim=adam)
    c.pretrain = c.ct_only.to_dict() | both | dict(model=model, method=method, optim=adam | optim, evals={}, select='')
    c.scratch = c.ct_only.to_dict() | both | vit | dict(
        method=dict(name='distil', drop='subset'),
        evals=dict(multiclass={}, modalities=dict(of=dict(name='multiclass'))))
    c.scratch_ct = c.ct_only.to_dict() | vit | dict(method=dict(name='distil'), evals=dict(multiclass={}))
    c.tuned, c.tuned_ct = (stage.to_dict() | dict(init=last) for stage in (c.scratch, c.scratch_ct))
    c.stages = ('pretrain', 'scratch', 'tuned', 'scratch_ct', 'tuned_ct')


def meta(c: ConfigDict) -> None:
    """SMIL: what a case lacks is made of what it has, and the network is trained to be soon right without it
    python -m jaxkd.main --config configs/cpkd_ct_mri.py:meta

    `together` learns from cases with both inputs. `smil` starts from it, fits centroids of its features, and goes on
    with CT alone in its inner step; its MRI encoder stays as it is.
    """
    c.stages = ('together', 'smil')
    evals = dict(multiclass={}, modalities=dict(of=dict(name='multiclass')))
    model = dict(name='smil', encoders=dict(ct=CNN, t2=CNN))
    c.together = c.ct_only.to_dict() | dict(inputs=('ct', 't2'), model=model, method=dict(name='distil'), evals=evals)
    c.smil = c.together.to_dict() | dict(method=dict(name='smil', complete=1.0), init=dict(stage='together'),
                                         optim=OPTIM | dict(lr=1e-3, freeze=('student/t2/',)))


def mind(c: ConfigDict) -> None:
    """MIND: two networks of the CT and two of the MRI teach a small one that reads whichever a case has
    python -m jaxkd.main --config configs/cpkd_ct_mri.py:mind

    `joint` is the small network without teachers. A head for each input learns from the teachers of that input, the
    fused one from all of them.
    """
    wide, teachers = dict(CNN, channels=(16, 32, 64)), {}
    for scan, name in (('ct', 'ct'), ('t2', 'mri')):
        c[name] = c.mri.to_dict() | dict(inputs=(scan,), model=CNN)
        c[f'{name}_wide'] = c[name].to_dict() | dict(model=wide)
        teachers |= {n: dict(stage=n, cache='no') for n in (name, f'{name}_wide')}
    c.stages = (*teachers, 'joint', 'mind')
    evals = dict(multiclass={}, modalities=dict(of=dict(name='multiclass')))
    model = dict(name='mind', encoders=dict(ct=CNN, t2=CNN))
    c.joint = c.ct_only.to_dict() | dict(inputs=('ct', 't2'), model=model, evals=evals,
                                         method=dict(name='distil', losses=dict(heads={})))
    learned = dict(ct=('ct', 'ct_wide'), t2=('mri', 'mri_wide'), fused=tuple(teachers))
    ensembles = {head: dict(name='ensemble', student=f'logits_{head}', teacher=','.join(f'{n}/logits' for n in names))
                 for head, names in learned.items()}
    c.mind = c.joint.to_dict() | dict(method=dict(name='distil', losses=dict(heads={}, **ensembles)), teachers=teachers)


def folder(c: ConfigDict) -> None:
    """Your cases.csv and NIfTI folders, of a size that fits their number and the device: see tiny to large
    python -m jaxkd.main --config configs/cpkd_ct_mri.py:folder --config.data.source.root=DIR
    """
    c.data.source = dict(name='paired', root='')
    c.data.augment = ('crop', 'rotate_flip', 'intensity')
    c.data.volume = dict()
    c.data.split = dict(fractions=(0.7, 0.1, 0.2), stratify=('class',))
    _mri_inputs(c, ('t1', 't2'))
    large(c)
    c.preset = 'auto'


def tiny(c: ConfigDict) -> None:
    """The networks of the phantom on crops of 48 x 48 x 16 voxels, minutes on a CPU
    python -m jaxkd.main --config configs/cpkd_ct_mri.py:folder,tiny --config.data.source.root=DIR
    """
    _sized(c, 'tiny', (3.6, 3.6, 6.0), (48, 48, 16), (3, 3, 1), RESNET, OPTIM, batch=8, length='5000 examples',
           eval_every='10%')


def small(c: ConfigDict) -> None:
    """MobileNetV2 on crops of 96 x 96 x 24 voxels
    python -m jaxkd.main --config configs/cpkd_ct_mri.py:folder,small --config.data.source.root=DIR
    """
    _sized(c, 'small', (1.8, 1.8, 4.0), (96, 96, 24), (8, 8, 3), dict(name='mobilenet'), PLATEAU, batch=8,
           length='100 epochs', eval_every='1 epoch')


def base_size(c: ConfigDict) -> None:
    """MobileNetV2 on crops of 160 x 160 x 32 voxels
    python -m jaxkd.main --config configs/cpkd_ct_mri.py:folder,base --config.data.source.root=DIR
    """
    _sized(c, 'base', (1.1, 1.1, 3.0), (160, 160, 32), (12, 12, 4), dict(name='mobilenet'), PLATEAU, batch=4,
           length='200 epochs', eval_every='1 epoch')


def large(c: ConfigDict) -> None:
    """MobileNetV2 on crops of 224 x 224 x 32 voxels, a recipe that follows from the published one
    python -m jaxkd.main --config configs/cpkd_ct_mri.py:folder,large --config.data.source.root=DIR
    """
    _sized(c, 'large', (0.8, 0.8, 3.0), (224, 224, 32), (16, 16, 4), dict(name='mobilenet'), PLATEAU, batch=4,
           length='200 epochs', eval_every='1 epoch')


def no_tasks(c: ConfigDict) -> None:
    """A cases.csv without the columns texture and duct: the arms that need neither, without the calibrations
    python -m jaxkd.main --config configs/cpkd_ct_mri.py:folder,no_tasks --config.data.source.root=DIR
    """
    if c.data.source.name != PHANTOM:
        c.data.source.update(tasks=(), classes=())
    _without_tasks(c)


def paper(c: ConfigDict) -> None:
    """The published numbers, as the public training script declares them
    python -m jaxkd.main --config configs/cpkd_ct_mri.py:paper --config.data.source.root=DIR

    The default of its MRI is T1 alone. The inside of the calibrations, hard_over included, and the preprocessing are
    our reconstruction here as well.
    """
    folder(c)
    c.preset, c.stages = '', ('cpkd',)
    c.data.augment = ('rotate_flip', 'crop')
    c.data.volume.margin = (0, 0, 0)
    c.data.rotate_flip = dict(prob=1.0)
    c.cpkd.optim.update(no_decay=(), patience=5, floor=0.0)
    c.cpkd.update(length='1000 epochs', eval_every='20 steps')
    c.cpkd.method = ConfigDict(dict(name='cpkd', num_heads=5, head_indice=3, hard_over='hard'))
    for task in TASKS:
        c.cpkd.networks[task].inputs = ('t1',)


def sts(c: ConfigDict) -> None:
    """Soft-tissue sarcoma: do MRI and PET of the tumour teach CT who will have metastases?
    python -m jaxkd.multirun --config configs/cpkd_ct_mri.py:sts --folds 5 --config.data.source.root=DIR
    """
    folder(c)
    c.preset = ''
    c.note = ('A small public collection with a distant outcome: some 36 patients, a third of them with metastases. '
              'Intervals are wide; this shows that the path works on real scans, and cannot rank methods.')
    c.data.source = dict(name='sts', root='')
    # 42 mm around the middle of the tumour: inside every field of view, whose extent would tell the tumour's size.
    keys = ('ct', 't1', 'pet')
    c.data.volume = dict(keys=keys, spacing=(3.0, 3.0, 3.0), size=(12, 12, 12), margin=(2, 2, 2))
    c.data.crop = dict(keys=keys, size=(12, 12, 12), joint=True)  # the scans are registered
    c.data.rotate_flip = dict(keys=keys, joint=True)
    c.data.intensity = dict(keys=keys)
    c.data.split = dict(fractions=(0.7, 0.1, 0.2), stratify=('class',))
    c.mri.inputs, c.mri.model = ('t1', 'pet'), ConfigDict(RESNET)
    _without_tasks(c)
    for name in c.stages:
        c[name].model, c[name].optim = ConfigDict(RESNET), ConfigDict(OPTIM)
        # too few to select on: the last step
        c[name].update(batch=8, length='40 epochs', eval_every='5 epochs', select='')


PRESETS = dict(tiny=0, small=40, base=200, large=500)  # cases from which on each is chosen [our choice]
VARIANTS = dict(smoke=smoke, controls=controls, many_tested=many_tested, losses=losses, several=several,
                subsets=subsets, meta=meta, mind=mind, folder=folder, tiny=tiny, small=small, base=base_size,
                large=large, no_tasks=no_tasks, paper=paper, sts=sts, masked=masked, hidden_modality=hidden_modality)


def get_config(arg: str = '') -> ConfigDict:
    return config.variant(base(), VARIANTS, arg)


def _sized(c: ConfigDict, preset: str, spacing: tuple[float, ...], size: tuple[int, ...], margin: tuple[int, ...],
           model: dict, optim: dict, **stage) -> None:
    """A field of view of some 176 x 176 x 96 mm in so many voxels."""
    c.preset, c.data.crop.size = preset, size
    c.data.volume.update(spacing=spacing, size=size, margin=margin)
    for name in config.stage_names(c):
        c[name].model, c[name].optim = ConfigDict(model), ConfigDict(optim)
        c[name].update(stage)
        for network in c[name].get('networks', {}).values():
            network.model = ConfigDict(model)


def _without_tasks(c: ConfigDict) -> None:
    """One MRI network of the main class stands for those of texture and duct; the calibrations need both."""
    c.data.transforms, c.stages = ('volume',), ('mri', 'ct_only', 'kd', 'dpk')
    c.dpk.networks = ConfigDict(dict(scans=dict(inputs=c.mri.inputs, model=c.mri.model.to_dict())))
    del c['cpkd'], c['cpkd_same_modality']


def _mri_inputs(c: ConfigDict, inputs: tuple[str, ...]) -> None:
    c.mri.inputs = inputs
    for name in ('dpk', 'cpkd'):
        for task in TASKS:
            c[name].networks[task].inputs = inputs
