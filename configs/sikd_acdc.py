"""SIKD on cardiac cine-MR: a teacher sees the label painted with the image's greys, a U-Net on images learns from it.

    python -m jaxkd.main --config configs/sikd_acdc.py:help     all variants and their commands

Stages: `teacher` reads image and label (class-averaged, no skips). `unet` (no teacher), `kd` (pixel KD from that U-Net)
and `sikd` are one network with equal initial weights, data order, augmentation and steps. `shifted` tests the same
patients as another scanner shows them. Further arms are defined and not run by default: add them to `stages`,
    born_again, hint, attention, channel, affinity, variation, region,      other taps and losses, teacher on raw images
    pmkl, protokd, kdnet, acn
    sikd_shuffled                           a control: the teacher sees the image averaged over another patient's shapes
    sikd_shape, sikd_skips                                                  ablations: label alone, a teacher with skips
    boundary, distance                                                      no teacher: losses on the signed distance
e.g. --config.stages=teacher,unet,channel,sikd. What each is stands in jaxkd/distillation.
"""
from ml_collections import ConfigDict

from jaxkd import config

PHANTOM = 'jaxkd.phantoms.heart'
ARMS = dict(
    kd=dict(kd=dict(weight=1.0)), born_again=dict(kd=dict(temperature=1.0, weight=1.0)),
    hint=dict(hint=dict(student='feature', weight=2.0)), attention=dict(at=dict(student='feature')),
    channel=dict(channel=dict(weight=3.0)), affinity=dict(affinity=dict(student='feature')),
    variation=dict(variation=dict(weight=10.0)), region=dict(region={}),
    pmkl=dict(pmkl={}, contrast=dict(name='pmkl_contrast', student='enc2')),
    protokd=dict(kd=dict(temperature=10.0, t2=False, every=True, weight=10.0), prototype={}),
    kdnet=dict(kd=dict(temperature=5.0, weight=0.75),
               bottleneck=dict(name='kd', student='enc2', temperature=1.0, weight=1.0)),
    acn=dict(probabilities=dict(schedule='ramp 20%'), vid=dict(student='enc2', weight=0.5),
             entropy=dict(name='adversary'), features=dict(
                 name='adversary', of='features', student='enc2', reverse=0.0002)))


def base() -> ConfigDict:
    """The embedded heart phantom, 8 minutes on two CPU cores
    python -m jaxkd.main --config configs/sikd_acdc.py
    """
    c = ConfigDict(dict(seed=0, stages=('teacher', 'unet', 'kd', 'sikd')))
    c.data = dict(
        source=dict(name=PHANTOM, patients=80, size=64, empty=True),
        transforms=('image',), augment=('affine',), image=dict(size=64, fit='squash'),
        # Of the published augmentation the shift; turning by up to 20 degrees instead of all around, which needs longer
        # training.
        affine=dict(degrees=20.0, scale=0.0, shift=0.125, prob=0.5, labels=('label',)),
        distance=dict(classes=4), split=dict(fractions=(0.5, 0.1, 0.4), stratify=('group',)),
        train_filter='foreground=yes',  # slices without any structure are tested, not trained on
        external=dict(shifted=dict(source=dict(domain='B'))))
    unet = dict(name='unet', channels=(8, 16, 32))
    optim = dict(name='adam', lr=3e-3, schedule='cosine', warmup='5%')
    evals = dict(segmentation={}, shifted=dict(name='segmentation', data='shifted'))
    common = dict(inputs=('image',), model=unet, optim=optim, batch=16, length='12 epochs', eval_every='6 epochs',
                  select='segmentation/dice', evals=evals)
    c.teacher = dict(common, inputs=('image', 'label'), input_fn='jaxkd.methods.sikd.class_mean',
                     model=dict(unet, skips=False), method=dict(name='segmentation'), evals=dict(segmentation={}))
    c.unet = dict(common, method=dict(name='segmentation'))
    c.sikd = dict(common, method=dict(name='sikd'), teachers=dict(shape=dict(stage='teacher', cache='no')))
    c.sikd_shuffled = dict(c.sikd, teachers=dict(shape=dict(stage='teacher', cache='no', shuffled=True)))
    for name, losses in ARMS.items():
        c[name] = dict(common, method=dict(name='distil', losses=losses),
                       teachers=dict(raw=dict(stage='unet', cache='no')))
    c.teacher_shape = dict(c.teacher, input_fn='jaxkd.methods.sikd.one_hot')
    c.teacher_skips = dict(c.teacher, model=unet)
    c.sikd_shape = dict(c.sikd, teachers=dict(shape=dict(stage='teacher_shape', cache='no')))
    c.sikd_skips = dict(c.sikd, teachers=dict(shape=dict(stage='teacher_skips', cache='no')))
    with_distance = dict(augment=('affine', 'distance'))
    c.boundary = dict(common, method=dict(name='segmentation', boundary=0.1), data=with_distance)
    c.distance = dict(common, method=dict(name='segmentation', distance=1.0), data=with_distance)
    return c


def smoke(c: ConfigDict) -> None:
    """Seconds: does everything run?
    python -m jaxkd.main --config configs/sikd_acdc.py:smoke
    """
    if c.data.source.name == PHANTOM:
        c.data.source.patients = 20
    c.bootstrap = 50
    for name in config.stage_names(c):
        c[name].update(length='4 steps', eval_every='2 steps', log_every='2 steps', batch=8)


def volumes(c: ConfigDict) -> None:
    """The phantom's volumes and a 3D U-Net
    python -m jaxkd.main --config configs/sikd_acdc.py:volumes
    """
    c.data.source = dict(name=PHANTOM, patients=60, size=48, dims=3)
    c.data.external.shifted.source = dict(domain='B', dims=3)
    c.data.transforms, c.data.augment, c.data.train_filter = ('scan',), ('patch', 'affine3d'), ''
    c.data.scan = dict(keys=('image',), windows=((),), spacing=(0.0, 0.0, 0.0))
    c.data.patch = dict(keys=('image',), size=(48, 48, 8), foreground=1.0)
    c.data.affine3d = dict(keys=('image',), labels=('label',), joint=True, degrees=20.0, scale=0.0, shift=0.125,
                           prob=0.5)
    for name in config.stage_names(c):
        c[name].model.update(dims=3, channels=(8, 16, 32), strides=((1, 2, 2), (2, 2, 2)))
        c[name].batch = 4
    for name in ('boundary', 'distance'):
        c[name].data = dict(augment=('patch', 'affine3d', 'distance'))


def acdc(c: ConfigDict) -> None:
    """The challenge's folders, with the published numbers
    python -m jaxkd.main --config configs/sikd_acdc.py:acdc --config.data.source.root=DIR
    """
    c.data.source = dict(name='acdc', root='')
    _published(c)


def mnms(c: ConfigDict) -> None:
    """Tested on M&Ms as well
    python -m jaxkd.main --config configs/sikd_acdc.py:acdc,mnms --config.data.external.mnms.source.root=DIR
    """
    c.data.external = dict(mnms=dict(source=dict(name='mnms', root='')))
    for name in config.stage_names(c):
        if 'shifted' in c[name].evals:
            c[name].evals = dict(segmentation={}, mnms=dict(name='segmentation', data='mnms', part='all'))


def slices(c: ConfigDict) -> None:
    """h5 or npz slices of ACDC, a thousand on two cores: the network of the phantom, and the split by patient
    python -m jaxkd.multirun --config configs/sikd_acdc.py:slices --config.data.source.root=DIR --seeds 0,1,2
    """
    c.note = ('Slices whose pixel size and absolute intensity were thrown away by those who prepared them: distances '
              'are in pixels. The shifted part is the same test patients, changed by gamma, blur, a bias field and '
              'noise.')
    c.data.source = dict(name='slices', root='')
    c.data.image = dict(size=72, fit='crop', resize=128)  # of ACDC's hearts 99.9 % of the voxels lie in the middle
    for name in config.stage_names(c):
        c[name].update(length='15 epochs', eval_every='5 epochs')
    c.data.split = dict(fractions=(0.6, 0.1, 0.3), stratify=('group',))
    _shifted_test_part(c)


def masks(c: ConfigDict) -> None:
    """Your images/ and masks/, of a size that fits their number and the device: see tiny to large
    python -m jaxkd.main --config configs/sikd_acdc.py:masks --config.data.source.root=DIR
    """
    _published(c)
    c.preset = 'auto'
    c.data.source = dict(name='masks', root='')
    c.data.distance.classes = 2
    c.data.train_filter = ''
    c.data.split = dict(fractions=(0.7, 0.1, 0.2))
    c.data.image = dict(size=256, fit='squash', channels=3)


def tiny(c: ConfigDict) -> None:
    """The U-Net of the phantom at 64 pixels, minutes on a CPU
    python -m jaxkd.main --config configs/sikd_acdc.py:masks,tiny --config.data.source.root=DIR
    """
    _sized(c, 'tiny', 64, (8, 16, 32), dict(batch=8, length='8000 examples', eval_every='10%'))


def small(c: ConfigDict) -> None:
    """A U-Net of 16 to 128 channels at 128 pixels
    python -m jaxkd.main --config configs/sikd_acdc.py:masks,small --config.data.source.root=DIR
    """
    _sized(c, 'small', 128, (16, 32, 64, 128), dict(batch=16, length='40000 examples', eval_every='5%'))


def base_size(c: ConfigDict) -> None:
    """A U-Net of 32 to 512 channels at 256 pixels, the published schedule
    python -m jaxkd.main --config configs/sikd_acdc.py:masks,base --config.data.source.root=DIR
    """
    large(c)
    c.preset = 'base'
    for name in config.stage_names(c):
        c[name].model.channels = (32, 64, 128, 256, 512)


def large(c: ConfigDict) -> None:
    """The published U-Net of 64 to 1024 channels at 256 pixels
    python -m jaxkd.main --config configs/sikd_acdc.py:masks,large --config.data.source.root=DIR
    """
    _published(c)
    c.preset = 'large'


def refuge(c: ConfigDict) -> None:
    """REFUGE: disc and cup in fundus images
    python -m jaxkd.main --config configs/sikd_acdc.py:refuge --config.data.source.root=DIR
    """
    masks(c)
    c.data.source.update(labels=('background', 'disc', 'cup'), values=(255, 128, 0))
    c.data.distance.classes = 3


def polyp(c: ConfigDict) -> None:
    """Polyps in endoscopy, whose masks are JPEG
    python -m jaxkd.main --config configs/sikd_acdc.py:polyp --config.data.source.root=DIR
    """
    masks(c)
    c.data.source.tolerance = 127


def busi(c: ConfigDict) -> None:
    """BUSI: lesions in ultrasound of the breast
    python -m jaxkd.main --config configs/sikd_acdc.py:busi --config.data.source.root=DIR
    """
    masks(c)
    c.data.source.layout = 'class'
    c.data.image.channels = 1


PRESETS = dict(tiny=0, small=100, base=500, large=5_000)  # cases from which on each is chosen [our choice]
VARIANTS = dict(smoke=smoke, volumes=volumes, acdc=acdc, mnms=mnms, acdc_mnms=(acdc, mnms), slices=slices, masks=masks,
                tiny=tiny, small=small, base=base_size, large=large, refuge=refuge, polyp=polyp, busi=busi)


def get_config(arg: str = '') -> ConfigDict:
    return config.variant(base(), VARIANTS, arg)


def _published(c: ConfigDict) -> None:
    """The public training script."""
    c.data.image.size = 256
    c.data.affine.degrees = 180.0
    for name in config.stage_names(c):
        c[name].model.channels = (64, 128, 256, 512, 1024)
        c[name].optim = dict(name='adam', lr=1e-3, weight_decay=0.0, schedule='milestones', factor=0.5, floor=1e-5,
                             warmup='', milestones=('60 epochs', '100 epochs', '150 epochs', '180 epochs'))
        c[name].update(batch=16, length='200 epochs', eval_every='1 epoch')
    _shifted_test_part(c)


def _sized(c: ConfigDict, preset: str, size: int, channels: tuple[int, ...], stage: dict) -> None:
    c.preset, c.data.image.size = preset, size
    for name in config.stage_names(c):
        c[name].model.channels = channels
        c[name].optim = dict(name='adam', lr=3e-3, schedule='cosine', warmup='5%')
        c[name].update(stage)


def _shifted_test_part(c: ConfigDict) -> None:
    """No other scanner: the same test patients under gamma, blur, a bias field and noise."""
    c.data.external = dict(shifted=dict(transforms=('image', 'domain_shift'), domain_shift=dict()))
