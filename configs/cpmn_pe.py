"""CPMN: pulmonary embolism on non-contrast CT; a CTPA pathway of the same patients is trained along and thrown away.

    python -m jaxkd.main --config configs/cpmn_pe.py:help     all variants and their commands
    python -m jaxkd.multirun --config configs/cpmn_pe.py --config.stages=nct,oneway,cpmn --seeds 0,1,2

Stages: `nct` is the plain pathway, `cpmn` the same NCT network with equal initial weights, data order and steps, a CTPA
pathway trained beside it. Further arms are defined and not run by default, add them to `stages`:
    ctpa         the plain pathway on CTPA, tested on CTPA: what could be seen with contrast
    oneway       IFA teaches the NCT pathway alone
    joint        two pathways without IFA and IFD. Losses alone couple the pathways, so this equals `nct` bit for bit
    ifa, ifd     CPMN with one of the two          from_ctpa     NCT that starts from the weights of `ctpa`
    mutual       with deep mutual learning on the output as well (weight 1)
    cpmn_shuffled, cpmn_same_modality   controls: alignment with the CTPA of another patient; a second pathway on NCT
What is published of CPMN (little) and what is our choice stands in jaxkd/methods/cpmn.py. Variant tag of the default:
ifa=mixed, ifd=proto_nce.
"""
from ml_collections import ConfigDict

from jaxkd import config

PHANTOM = 'jaxkd.phantoms.pulmonary'


def base() -> ConfigDict:
    """The embedded pulmonary vessel phantom, 20 minutes on a CPU core
    python -m jaxkd.main --config configs/cpmn_pe.py
    """
    c = ConfigDict(dict(seed=0, stages=('nct', 'cpmn')))
    c.data = dict(
        source=dict(name=PHANTOM, patients=512, difficulty=0.0, seed=2),  # options were tuned on draws 0 and 1
        transforms=('scan',), augment=('patch', 'intensity'),
        # in NCT clots lie 12 to 37 HU above blood
        scan=dict(spacing=(2.5, 2.5, 2.5), windows=((0.0, 100.0), (-200.0, 500.0))),
        patch=dict(size=(28, 28, 16), foreground=0.5),
        intensity=dict(keys=('nct', 'ctpa'), brightness=0.1, contrast=0.1),
        split=dict(fractions=(0.5, 0.125, 0.375), stratify=('pe',)))
    unet = dict(name='unet', dims=3, channels=(8, 16, 32), blocks=(1, 2, 2), block='residual', down='stride',
                up='transpose', norm='instance', activation='leaky', bias=False, deep=1, classify=1,
                classify_at='finest')
    optim = dict(name='adam', lr=2e-3, schedule='cosine', warmup='', clip=12.0)
    common = dict(model=unet, optim=optim, batch=4, length='2000 steps', eval_every='1000 steps',
                  select='segmentation/dice',
                  # windows that do not overlap hold a clot once or twice: the largest counts
                  evals=dict(segmentation=dict(policy='present', lesions=True, overlap=0.0, combine='max')))
    method = dict(name='cpmn', ifa_tap='dec1', projection=16, voxels=5)  # 78 mm3 of embolus make a window positive
    plain = dict(method, ifd_weight=0.0, ifa_weight=0.0)
    ctpa = dict(ctpa=dict(inputs=('ctpa',), model=unet))
    c.ctpa = dict(common, inputs=('ctpa',), method=plain)
    nct = dict(common, inputs=('nct',))
    c.nct = dict(nct, method=plain)
    c.joint = dict(nct, method=plain, networks=ctpa)
    c.oneway = dict(nct, method=dict(method, detach_privileged=True), networks=ctpa)
    c.cpmn = dict(nct, method=method, networks=ctpa)
    c.ifa = dict(nct, method=dict(method, ifd_weight=0.0), networks=ctpa)
    c.ifd = dict(nct, method=dict(method, ifa_weight=0.0), networks=ctpa)
    c.mutual = dict(nct, method=dict(method, mutual=1.0), networks=ctpa)
    c.cpmn_shuffled = dict(nct, method=dict(method, shuffled=True), networks=ctpa)
    c.cpmn_same_modality = dict(nct, method=method, networks=dict(ctpa, ctpa=dict(inputs=('nct',), model=unet)))
    c.from_ctpa = dict(nct, method=plain, init=dict(stage='ctpa'))
    return c


def smoke(c: ConfigDict) -> None:
    """Seconds: does everything run?
    python -m jaxkd.main --config configs/cpmn_pe.py:smoke
    """
    if c.data.source.name == PHANTOM:
        c.data.source.patients = 20
    c.bootstrap = 50
    for name in config.stage_names(c):
        c[name].update(length='2 steps', eval_every='2 steps', log_every='2 steps', batch=2)


def folder(c: ConfigDict) -> None:
    """Your paired NCT and CTPA (cases.csv), of a size that fits their number and the device: see tiny to large
    python -m jaxkd.main --config configs/cpmn_pe.py:folder --config.data.source.root=DIR
    """
    c.data.source = dict(name='dualphase', root='')
    c.data.scan = dict(windows=((-100.0, 200.0), (-200.0, 700.0)), lungs=True)
    c.data.patch = dict(foreground=0.33)
    c.data.augment = ('patch', 'affine3d', 'intensity')
    c.data.affine3d = dict(keys=('nct', 'ctpa'), labels=('label',), joint=True, degrees=15.0, scale=0.3, shift=0.0,
                           prob=0.2)
    c.data.intensity = dict(keys=('nct', 'ctpa'), brightness=0.25, contrast=0.25, noise=0.1, gamma=0.3, blur=1.0,
                            prob=0.15)
    for name in config.stage_names(c):
        c[name].optim = dict(name='sgd', lr=1e-2, b1=0.99, nesterov=True, weight_decay=3e-5, no_decay=(),
                             schedule='poly', warmup='', clip=12.0)
        c[name].update(batch=2)
        c[name].method.voxels = 20
        c[name].evals.segmentation.update(overlap=0.5, combine='top')
    large(c)
    c.preset = 'auto'


def tiny(c: ConfigDict) -> None:
    """The U-Nets of the phantom on patches of 32 x 32 x 16 voxels, minutes on a CPU
    python -m jaxkd.main --config configs/cpmn_pe.py:folder,tiny --config.data.source.root=DIR
    """
    _sized(c, 'tiny', (1.6, 1.6, 3.0), (32, 32, 16), dict(channels=(8, 16, 32), blocks=(1, 2, 2), strides=(2,), deep=1),
           dict(ifa_tap='dec1', projection=16), length='600 steps', eval_every='200 steps')


def small(c: ConfigDict) -> None:
    """U-Nets of 16 to 128 channels on patches of 64 x 64 x 32 voxels of twice the size
    python -m jaxkd.main --config configs/cpmn_pe.py:folder,small --config.data.source.root=DIR
    """
    unet = dict(channels=(16, 32, 64, 128), blocks=(1, 2, 2, 2), strides=(2,), deep=2)
    _sized(c, 'small', (1.6, 1.6, 3.0), (64, 64, 32), unet, dict(ifa_tap='dec2', projection=32), length='8000 steps',
           eval_every='800 steps')


def base_size(c: ConfigDict) -> None:
    """U-Nets of 32 to 320 channels on patches of 96 x 96 x 48 voxels
    python -m jaxkd.main --config configs/cpmn_pe.py:folder,base --config.data.source.root=DIR
    """
    unet = dict(channels=(32, 64, 128, 256, 320), blocks=(1, 2, 2, 2, 2), strides=(2, 2, 2, 2), deep=3)
    _sized(c, 'base', (0.8, 0.8, 1.5), (96, 96, 48), unet, dict(ifa_tap='dec2', projection=64), length='40000 steps',
           eval_every='2000 steps')


def large(c: ConfigDict) -> None:
    """The reference size of the specification: 32 to 320 channels in six levels, patches of 128 x 128 x 64 voxels
    python -m jaxkd.main --config configs/cpmn_pe.py:folder,large --config.data.source.root=DIR
    """
    unet = dict(channels=(32, 64, 128, 256, 320, 320), blocks=(1, 2, 2, 2, 2, 2), strides=(2, 2, 2, 2, (1, 2, 2)),
                deep=3)
    _sized(c, 'large', (0.8, 0.8, 1.5), (128, 128, 64), unet, dict(ifa_tap='dec2', projection=64),
           length='75000 steps', eval_every='2500 steps')


def fumpe(c: ConfigDict) -> None:
    """FUMPE, CTPA alone: its NCT is made of the CTPA, good for tests alone
    python -m jaxkd.main --config configs/cpmn_pe.py:fumpe --config.data.source.root=DIR
    """
    _ctpa_alone(c, 'fumpe')


def cad_pe(c: ConfigDict) -> None:
    """CAD-PE, likewise
    python -m jaxkd.main --config configs/cpmn_pe.py:cad_pe --config.data.source.root=DIR
    """
    _ctpa_alone(c, 'cad_pe')


def read(c: ConfigDict) -> None:
    """READ, likewise
    python -m jaxkd.main --config configs/cpmn_pe.py:read --config.data.source.root=DIR
    """
    _ctpa_alone(c, 'read_pe')


PRESETS = dict(tiny=0, small=40, base=200, large=500)  # cases from which on each is chosen [our choice]
VARIANTS = dict(smoke=smoke, folder=folder, tiny=tiny, small=small, base=base_size, large=large, fumpe=fumpe,
                cad_pe=cad_pe, read=read)


def get_config(arg: str = '') -> ConfigDict:
    return config.variant(base(), VARIANTS, arg)


def _sized(c: ConfigDict, preset: str, spacing: tuple[float, ...], patch: tuple[int, ...], unet: dict, method: dict,
           **stage: str) -> None:
    c.preset, c.data.scan.spacing, c.data.patch.size = preset, spacing, patch
    for name in config.stage_names(c):
        for network in (c[name], *c[name].get('networks', {}).values()):
            network.model.update(unet)
        c[name].method.update(method)
        c[name].update(stage)


def _ctpa_alone(c: ConfigDict, source: str) -> None:
    folder(c)
    c.preset = ''
    c.note = ('The non-contrast CT of this set is made of its CTPA by a rule: good to test that everything runs, '
              'useless for any claim about non-contrast CT.')
    c.data.source = dict(name=source, root='')
    c.data.transforms = ('pseudo_nct', 'scan')
    c.data.split.stratify = ()
