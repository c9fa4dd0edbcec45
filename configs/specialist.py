"""Specialist teachers: a network learns from shortcut-ridden images without learning the shortcut.

    python -m jaxkd.main --config configs/specialist.py:help     all variants and their commands

The shortcut is chosen by --config.data.shortcut.kind=noise (square_const, square_rand, tag, gain) and
--config.data.shortcut.rates="(0.95, 0.05)". Every arm is tested on the same held-out images five times: `id` (rates of
the training), `clean`, `neutral` (half of each class has it), `flip` (rates exchanged) and, on the thorax phantom,
`ood` (other people, clean); elsewhere name another archive in data.external.

Nobody knows the shortcut, so nothing is selected by clean data: all arms take the same number of steps and the last one
counts. `select` and data.external offer the rest (select='clean/auroc' is an oracle).
"""
from ml_collections import ConfigDict

from jaxkd import config

MAIN = ('teacher', 'probes', 'oracle', 'erm', 'specialist')
OTHERS = ('pooled', 'finetuned', 'augmented', 'mixup', 'reweighed', 'dro', 'jtt_first', 'jtt', 'dfr', 'kd', 'hint',
          'attention', 'confidence', 'adversarial')
SETS = ('id', 'clean', 'neutral', 'flip', 'ood')
CLEAN, NEUTRAL = (0.0, 0.0), (0.5, 0.5)
PHANTOM = dict(name='jaxkd.phantoms.thorax', patients=14000, images_per_patient=(1, 1), size=64, difficulty=0.5)
CNN = dict(name='cnn', dims=2, channels=(8, 16, 32, 64), act='relu', head='gap', momentum=0.9, dropout=0.0)
TAPS = ('block1', 'block2', 'block3')
OPTIM = dict(lr=1e-3, weight_decay=1e-4, clip=1.0, warmup='5%')


def base() -> ConfigDict:
    """The thorax phantom with a square in every positive image
    python -m jaxkd.main --config configs/specialist.py
    """
    c = ConfigDict(dict(seed=0, stages=MAIN))
    c.data = dict(
        source=dict(name='binary', of=PHANTOM, finding='Pleural Effusion', blank='zeros'),
        transforms=('image',), augment=('affine', 'contrast', 'shortcut'),
        image=dict(size=32, fit='squash', channels=1),
        shortcut=dict(kind='square_const', rates=(1.0, 0.0), parts=dict(clean=CLEAN)),
        split=dict(fractions=(0.6, 0.1, 0.3), stratify=('class',), reserve=('clean', 0.1)))
    _arms(c, CNN, TAPS, ('block4',), '1000 steps', optim=OPTIM, batch=32, ood=True)
    _external(c, ood=dict(source=dict(of=dict(PHANTOM, seed=7, difficulty=0.7, patients=1200))))
    return c


def all_methods(c: ConfigDict) -> None:
    """All methods that it is compared with
    python -m jaxkd.main --config configs/specialist.py:all
    """
    c.stages = MAIN + OTHERS


def smoke(c: ConfigDict) -> None:
    """Seconds, all methods: does everything run?
    python -m jaxkd.main --config configs/specialist.py:smoke
    """
    c.bootstrap = 50
    c.data.split.reserve = ('clean', 0.3)
    if c.data.source.get('of', {}).get('name') == PHANTOM['name']:
        c.stages = MAIN + OTHERS
        c.data.source.of.patients, c.data.external.ood.source.of.patients = 1200, 300
    for name in config.stage_names(c):
        if name not in ('jtt_first', 'dfr'):
            c[name].update(length='8 steps', eval_every='8 steps')


def ood_teacher(c: ConfigDict) -> None:
    """The specialist learned from other, harder images
    python -m jaxkd.main --config configs/specialist.py:ood_teacher
    """
    # as many images as the clean part has, of other people
    people = dict(PHANTOM, seed=8, difficulty=0.7, patients=1200)
    for name in ('teacher', 'probes'):
        c[name].data = ConfigDict(dict(source=dict(of=people), shortcut=dict(rates=CLEAN),
                                       split=dict(fractions=(0.8, 0.1, 0.1))))


def simba_phantom(c: ConfigDict) -> None:
    """3D brains, disease and bias are deformations of two regions
    python -m jaxkd.main --config configs/specialist.py:simba_phantom
    """
    _twins(c, size=(28, 32, 24), name='jaxkd.phantoms.brain', cases=3000, twins=True)
    cnn = dict(name='cnn', channels=(8, 16, 32, 32), act='relu', head='gap', momentum=0.9, dropout=0.0)
    _arms(c, cnn, TAPS, ('block4',), '600 steps', inputs=('t1',), optim=OPTIM, batch=16)
    _external(c)


def simba(c: ConfigDict) -> None:
    """SimBA brains
    python -m jaxkd.main --config configs/specialist.py:simba --config.data.source.root=DIR
    """
    _twins(c, size=(173, 211, 155), name='simba', root='', twins='')
    optim = dict(name='adam', lr=1e-4, schedule='constant', warmup='')
    _arms(c, dict(name='cnn'), (*TAPS, 'block4'), ('block5',), '40 epochs', inputs=('t1',), optim=optim, batch=2)
    _external(c)


def chexpert(c: ConfigDict) -> None:
    """CheXpert, ResNet-18 at 224 pixels
    python -m jaxkd.main --config configs/specialist.py:chexpert --config.data.source.of.root=DIR
    """
    c.data.augment = ('affine', 'shortcut')
    c.data.affine = dict(degrees=10.0, scale=0.0, shift=0.05)
    c.data.source = dict(name='binary', of=dict(name='chexpert', root='', train='', valid='none'),
                         finding='Pleural Effusion', balance=True)
    _resnet(c, '20 epochs', batch=64, warmup='500 steps')


def isic(c: ConfigDict) -> None:
    """ISIC 2017, part 3, ResNet-18 at 224 pixels
    python -m jaxkd.main --config configs/specialist.py:isic --config.data.source.of.root=DIR
    """
    c.data.augment = ('affine', 'flip', 'shortcut')
    c.data.affine = dict(degrees=180.0, scale=0.0, shift=0.0)
    c.data.source = dict(name='binary', of=dict(name='isic2017', root=''), finding='melanoma', balance=False)
    _resnet(c, '60 epochs', batch=32, warmup='5%')
    c.data.transforms, c.data.flip = ('image', 'class_weight'), dict(horizontal=0.5)  # melanomas are rare
    for name in MAIN + OTHERS:
        if c[name].method.name in ('supervised', 'specialist') and not c[name].method.get('weight'):
            c[name].method.weight = 'class_weight'


def covid(c: ConfigDict) -> None:
    """covid-chestxray-dataset: the view as a natural shortcut
    python -m jaxkd.main --config configs/specialist.py:covid --config.data.source.of.root=DIR

    No artefact of ours: ill patients are X-rayed lying down. Clean are those who stood.
    """
    c.note = ('A small public collection: some 140 patients, whose images come from publications and web sites. View '
              'goes along with severity and hospital as well as with the diagnosis, so there is no ground truth of '
              'what is shortcut and what is disease. Intervals are wide; this shows that the path works on real files'
              ' and cannot rank methods.')
    c.stages = ('teacher', 'probes', 'erm', 'specialist')
    c.data.source = dict(name='binary', of=dict(name='covid', root='', require_text=False), finding='covid19',
                         one=False, balance=False)
    c.data.image = dict(size=64, fit='letterbox', channels=1)
    c.data.transforms, c.data.augment = ('image', 'class_weight'), ('affine', 'contrast', 'shortcut')
    c.data.shortcut = dict(kind='attribute', attribute='view=AP Supine', rates=())
    c.data.split = dict(fractions=(0.65, 0.1, 0.25), reserve=('clean', 0.4))
    c.data.external = {}
    _arms(c, CNN, TAPS, ('block4',), '600 steps', sets=(), optim=OPTIM, batch=16)
    for name in ('teacher', 'probes'):
        c[name].data = dict(train='clean', train_filter='view=PA')
    for name in MAIN:
        c[name].method.weight = 'class_weight'
    del c.probes.method.weight, c.oracle


VARIANTS = dict(all=all_methods, smoke=smoke, ood_teacher=ood_teacher, simba_phantom=simba_phantom, chexpert=chexpert,
                isic=isic, simba=simba, covid=covid)


def get_config(arg: str = '') -> ConfigDict:
    return config.variant(base(), VARIANTS, arg)


def _twins(c: ConfigDict, size: tuple[int, int, int], **source) -> None:
    """Brains whose twin with bias takes the place of the image."""
    c.data.source = source
    c.data.transforms, c.data.augment = ('volume',), ('shortcut',)
    c.data.strong = dict(keys=('t1',), limits=(-0.5, 0.5))
    c.data.volume = dict(keys=('t1', 'twin'), hu=(), minmax=('t1', 'twin'), spacing=(0.0, 0.0, 0.0), size=size)
    c.data.shortcut = dict(kind='twin', keys=('t1',), rates=(1.0, 0.0), parts=dict(clean=CLEAN))
    c.data.split = dict(fractions=(0.6, 0.1, 0.3), reserve=('clean', 0.1))


def _resnet(c: ConfigDict, length: str, batch: int, warmup: str) -> None:
    """A researcher's own machine: ResNet-18 at 224 pixels."""
    c.data.image = dict(size=224, fit='crop', channels=3)
    c.data.split = dict(fractions=(0.6, 0.1, 0.3), stratify=('class',), reserve=('clean', 0.1))
    resnet = dict(name='resnet', depth=18, dims=2, features=0, norm='batch', activation='relu',
                  weight_standardisation=False, stem_stride=(2, 2, 2), mean=(0.485, 0.456, 0.406),
                  std=(0.229, 0.224, 0.225))
    _arms(c, resnet, ('layer1', 'layer2', 'layer3'), ('layer4',), length, optim=dict(OPTIM, lr=1e-4, warmup=warmup),
          batch=batch)
    _external(c)


def _arms(c, network, taps, last, length, sets=SETS, ood=False, **common):
    """All stages, which differ in nothing but what they are named for."""
    clean, reveal = dict(data=dict(shortcut=dict(rates=CLEAN))), dict(data=dict(shortcut=dict(reveal=True)))
    supervised = dict(name='supervised', kind='classes')
    model = dict(name='probed', of=network, taps=taps)
    arm = dict(dict(inputs=('image',)) | common, model=model, length=length, eval_every=length, method=supervised,
               evals=dict(multiclass={}))
    arm['evals'] |= {name: dict(name='multiclass', data=name, part='all' if name == 'ood' else 'test') for name in sets
                     if ood or name != 'ood'}
    arm['evals'] |= dict(prediction_depth=dict(taps=(*taps, *last))) if sets else {}
    taught = dict(specialist=dict(stage='probes', outputs=('logits', *(f'probe_{tap}' for tap in taps))))
    middle = taps[len(taps) // 2]
    stages: dict[str, dict] = dict(
        teacher=dict(data=dict(train='clean')),
        probes=dict(data=dict(train='clean'), init=dict(stage='teacher'), method=dict(name='probe'),
                    model=dict(model, frozen=True), optim=dict(common['optim'], freeze=('student/of/',))),
        oracle=clean,  # ERM on the same images without the shortcut
        erm={}, specialist=dict(method=dict(name='specialist', taps=taps), teachers=taught),
        pooled=dict(data=dict(train='train+clean')), finetuned=dict(data=dict(train='clean'), init=dict(stage='erm')),
        augmented=dict(data=dict(augment=(*c.data.augment, 'strong'))), mixup=dict(method=dict(name='mixup')),
        reweighed=dict(reveal, method=dict(supervised, weight='bias_weight')),  # needs b, as do dro and adversarial
        dro=dict(reveal, method=dict(name='group_dro')), jtt_first=dict(length='50 steps', eval_every='50 steps'),
        jtt=dict(method=dict(name='jtt'), teachers=dict(first=dict(stage='jtt_first', outputs=('logits',)))),
        dfr=dict(data=dict(train='clean'), init=dict(stage='erm'), method=dict(name='dfr'), length='1 steps',
                 eval_every='1 steps'), kd=dict(method=dict(name='specialist', taps=taps, inter=0.0), teachers=taught),
        hint=dict(method=dict(name='distil', losses=dict(hint=dict(student=middle))),
                  teachers=dict(specialist=dict(stage='teacher', outputs=(middle,)))),
        attention=dict(method=dict(name='distil', losses=dict(at=dict(student=middle))),
                       teachers=dict(specialist=dict(stage='teacher', outputs=(middle,)))),
        confidence=dict(method=dict(supervised, confidence=0.1)),
        adversarial=dict(reveal, method=dict(name='adversarial')))
    for name, differences in stages.items():
        c[name] = ConfigDict(arm | differences)


def _external(c, **more):
    """The same held-out images with other rates, and whatever else."""
    p1, p0 = c.data.shortcut.rates
    rates = dict(id=(p1, p0), clean=CLEAN, neutral=NEUTRAL, flip=(p0, p1), marked=(1.0, 1.0),
                 **{name: CLEAN for name in more})
    c.data.external = {name: dict(more.get(name, {}), shortcut=dict(rates=r, parts={})) for name, r in rates.items()}
