"""MMPKD on mammography: a teacher reads the table of findings, an image-only ViT learns from it.

    python -m jaxkd.main --config configs/mmpkd_mammo.py:help     all variants and their commands

`teacher` reads the radiologist's descriptors, without the BI-RADS assessment (data.table.use_assessment=True adds it:
that is nearly the diagnosis). `image_only` (alpha = 0) and `student` (alpha = 0.5) are the same ViT with the same
initial weights, data order, augmentation and steps. Two controls say whether a gain comes from the table: `kd_shuffled`
learns from what the teacher said of other patients with the same label, `kd_same_modality` from a network that reads
the image itself, `image_only_seed1000`, which is image_only with another seed.
"""
from ml_collections import ConfigDict

from jaxkd import config

WITHOUT_HEAD = '^(?!head/)'  # parameters of the encoder
ARMS = ('image_only', 'student', 'kd_shuffled', 'image_only_seed1000', 'kd_same_modality')


def base() -> ConfigDict:
    """The embedded breast phantom, minutes on two CPU cores
    python -m jaxkd.main --config configs/mmpkd_mammo.py
    """
    c = ConfigDict(dict(seed=0, stages=('teacher', *ARMS)))
    c.data = dict(
        source=dict(name='jaxkd.phantoms.breast', patients=2000, kind='mass', size=96, difficulty=0.0),
        transforms=('breast', 'image', 'table', 'labels'), augment=('affine', 'flip', 'contrast'),
        image=dict(size=64, fit='letterbox'), affine=dict(degrees=15.0), split=dict(fractions=(0.75, 0.1, 0.15)))
    vit = dict(name='vit', width=64, depth=2, heads=4, mlp=2, patch=8, std=(0.5,))
    optim = dict(lr=1e-3, b2=0.95, weight_decay=0.05, clip=1.0, warmup='5%')
    common = dict(optim=optim, batch=32, select='classification/auroc')
    c.teacher = dict(common, inputs=('row',), model=dict(name='tabular', kind='mlp'), length='15 epochs',
                     eval_every='3 epochs', evals=dict(classification={}), batch=64)
    c.teacher.optim = dict(lr=1e-3, weight_decay=1e-4, clip=1.0, warmup='5%')
    image = dict(common, inputs=('image',), model=vit, length='10 epochs', eval_every='2 epochs',
                 evals=dict(classification={}, localisation={}))
    no_teacher, kd = dict(name='mmpkd', alpha=0.0), dict(name='mmpkd', alpha=0.5, temperature=2.0)
    c.image_only = dict(image, method=no_teacher)
    c.student = dict(image, method=kd, teachers=dict(table=dict(stage='teacher')))
    c.kd_shuffled = dict(image, method=kd, teachers=dict(table=dict(stage='teacher', shuffled=True)))
    # a teacher, no arm
    c.image_only_seed1000 = dict(image, method=no_teacher, seed=1000, evals=dict(classification={}))
    c.kd_same_modality = dict(image, method=kd, teachers=dict(image=dict(stage='image_only_seed1000')))
    return c


def smoke(c: ConfigDict) -> None:
    """Seconds: does everything run?
    python -m jaxkd.main --config configs/mmpkd_mammo.py:smoke
    """
    if c.data.source.name == 'jaxkd.phantoms.breast':
        c.data.source.patients = 40
        c.data.split.fractions = (0.5, 0.2, 0.3)
    c.bootstrap = 50
    for name in config.stage_names(c):
        model, source = (inside.get('of', inside) for inside in (
            c[name].model, c[name].get('data', ConfigDict()).get('source', ConfigDict())))
        if model.name == 'vit':
            model.depth = 1
        if source.get('name', '').startswith('jaxkd.phantoms.'):
            source.patients = 40
        c[name].update(length='6 steps', eval_every='3 steps', log_every='3 steps', batch=16)


def controls(c: ConfigDict) -> None:
    """One more control: image_only with soft labels
    python -m jaxkd.main --config configs/mmpkd_mammo.py:controls
    """
    c.label_smoothing = c.image_only.to_dict() | dict(method=dict(name='supervised', smoothing=0.1))
    c.stages = (*c.stages, 'label_smoothing')


def styles(c: ConfigDict) -> None:
    """Pre-training by contrast between styles of an image and views of a breast (MSVCL)
    python -m jaxkd.main --config configs/mmpkd_mammo.py:styles

    `pretrain` reads no label: an image, itself in another style, and the other projection of the same breast. `tuned`
    and `tuned_student` are image_only and student that start from its encoder.
    """
    c.pretrain = _contrast(c)
    start = dict(init=dict(stage='pretrain', which='last', only=(WITHOUT_HEAD,)))
    c.tuned, c.tuned_student = (c[name].to_dict() | start for name in ('image_only', 'student'))
    c.stages = ('teacher', 'pretrain', 'image_only', 'tuned', 'student', 'tuned_student')


def transfer(c: ConfigDict) -> None:
    """Staged transfer: findings on chest radiographs, contrast on mammograms, then the label of mammograms
    python -m jaxkd.main --config configs/mmpkd_mammo.py:transfer

    Arms: from scratch (`image_only`), from the source task alone (`from_source`), from the contrast alone (`tuned`) and
    from the contrast that began at the source task (`staged`).
    """
    styles(c)
    chests = dict(name='jaxkd.phantoms.thorax', patients=2000, size=64, difficulty=0.25)
    plain = dict(name='supervised')
    c.source = c.image_only.to_dict() | dict(method=plain, evals=dict(classification={}), data=dict(
        source=chests, transforms=('image', 'labels'), augment=('affine', 'contrast')))
    first = dict(stage='source', only=(WITHOUT_HEAD,))
    c.source_pretrain = c.pretrain.to_dict() | dict(init=first)
    c.from_source = c.image_only.to_dict() | dict(init=first)
    c.staged = c.tuned.to_dict() | dict(init=dict(stage='source_pretrain', which='last', only=(WITHOUT_HEAD,)))
    c.stages = ('source', 'source_pretrain', 'pretrain', 'image_only', 'from_source', 'tuned', 'staged')


def harmonised(c: ConfigDict) -> None:
    """Grey values of all images brought to those of the training patients
    python -m jaxkd.main --config configs/mmpkd_mammo.py:harmonised
    """
    c.data.transforms = ('breast', 'image', 'harmonise', 'table', 'labels')


def _contrast(c: ConfigDict) -> dict:
    """The stage of contrast between styles and views, of the encoder of image_only."""
    of, image = c.image_only.model.to_dict(), c.data.image.to_dict()
    losses = dict(styles=dict(name='ntxent', student='pooled', teacher='student/pooled_style', both=True),
                  views=dict(name='ntxent', student='pooled', teacher='student/pooled_view', both=True))
    return c.image_only.to_dict() | dict(
        inputs=('image', 'style', 'view'), model=dict(name='views', of=of), evals={}, select='',
        method=dict(name='distil', supervised=0.0, losses=losses),
        data=dict(source=dict(name='two_views', of=c.data.source.to_dict()),
                  transforms=('breast', 'image', 'view', 'labels'), augment=('affine', 'flip', 'style'),
                  view=dict(image, breast=True), style=dict(views=('view',))))


def healnet(c: ConfigDict) -> None:
    """A teacher of image and table, HEALNet, beside the teacher of the table
    python -m jaxkd.main --config configs/mmpkd_mammo.py:healnet

    What its student gains over `student` is what the image adds to the table in a teacher.
    """
    model = dict(name='healnet', latents=16, width=32, depth=2, heads=4, head=8, patch=8, mean=(0.5,), std=(0.5,))
    c.healnet = c.image_only.to_dict() | dict(inputs=('image', 'row'), model=model, evals=dict(
        classification={}, modalities=dict(of=dict(name='classification'))))
    c.healnet_student = c.student.to_dict() | dict(teachers=dict(both=dict(stage='healnet', cache='no')))
    c.stages = ('teacher', 'healnet', 'image_only', 'student', 'healnet_student')


def trimmed(c: ConfigDict) -> None:
    """Labels with the largest loss of their class are left out (Step-E), ranked by the student or by its teacher
    python -m jaxkd.main --config configs/mmpkd_mammo.py:trimmed
    """
    few = dict(rate=0.2, schedule='linear 4 epochs after 2 epochs')
    c.image_only_trimmed = c.image_only.to_dict() | dict(trim=few)
    c.student_trimmed = c.student.to_dict() | dict(trim=few | dict(by='table'))
    c.stages = ('teacher', 'image_only', 'image_only_trimmed', 'student', 'student_trimmed')


def cbis(c: ConfigDict) -> None:
    """CBIS-DDSM, DICOM and tables, with its official test part: ViT-S/16 at 384 pixels
    python -m jaxkd.main --config configs/mmpkd_mammo.py:cbis --config.data.source.root=DIR
    """
    c.data.source = dict(name='cbis_ddsm', root='', kind='both')
    c.data.image = dict(size=384, fit='letterbox')
    c.data.split = dict(fractions=(0.9, 0.1, 0.0))  # of the patients that the archive trains on
    c.teacher.update(length='200 epochs', eval_every='5 epochs', batch=128)
    for name in ARMS:
        c[name].model = ConfigDict(dict(name='vit', size='S', patch=16, std=(0.5,), drop_path=0.1, fused=True))
        c[name].length, c[name].eval_every, c[name].optim.lr = '50 epochs', '2 epochs', 1e-4


def mias(c: ConfigDict) -> None:
    """mini-MIAS: 161 patients, without descriptors
    python -m jaxkd.main --config configs/mmpkd_mammo.py:mias --config.data.source.root=DIR
    """
    c.note = ('A small public collection without descriptors: the table is the background tissue and the class of the'
              ' abnormality. Normal films are left out, since their class is the label. With a few dozen test '
              'patients an AUROC interval spans 0.2 to 0.4: this shows that the path works on real files, and cannot '
              'rank methods.')
    c.data.source = dict(name='mini_mias', root='', normals=False)
    c.data.table = dict(sets=('tissue', 'class', 'side'), levels=(), descriptors=())
    c.data.split = dict(fractions=(0.6, 0.15, 0.25))


VARIANTS = dict(smoke=smoke, controls=controls, healnet=healnet, trimmed=trimmed, styles=styles, transfer=transfer,
                harmonised=harmonised, cbis=cbis, mias=mias)


def get_config(arg: str = '') -> ConfigDict:
    return config.variant(base(), VARIANTS, arg)
