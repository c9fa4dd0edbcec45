"""MMPKD on chest radiographs: a teacher reads the report, an image-only ViT learns from it.

    python -m jaxkd.main --config configs/mmpkd_cxr.py             the embedded thorax phantom, minutes on two CPU cores
    python -m jaxkd.main --config configs/mmpkd_cxr.py:smoke       seconds: does everything run?
    python -m jaxkd.main --config configs/mmpkd_cxr.py:controls    the phantom, with the two controls below
    python -m jaxkd.main --config configs/mmpkd_cxr.py:encoders --config.data.wordpiece.file=DIR/vocab.txt \
        --config.bert.init.path=DIR --config.frozen.init.path=DIR     the phantom: MiniLM as teacher beside the small encoder
    ... configs/mmpkd_cxr.py:covid_encoders ... --config.data.source.root=DIR     the same on covid-chestxray-dataset
    python -m jaxkd.main --config configs/mmpkd_cxr.py:folder --config.data.source.root=DIR     your images and reports
    python -m jaxkd.main --config configs/mmpkd_cxr.py:covid --config.data.source.root=DIR      covid-chestxray-dataset
    python -m jaxkd.main --config configs/mmpkd_cxr.py:mimic --config.data.source.root=DIR --config.data.source.reports=DIR \
        --config.data.source.ms_cxr=DIR     MIMIC-CXR-JPG, MIMIC-CXR and MS-CXR
    ... configs/mmpkd_cxr.py:mimic_bert ... --config.data.wordpiece.file=BERT/vocab.txt --config.teacher.init.path=BERT     with a BERT as teacher
    ... configs/mmpkd_cxr.py:external ... --config.data.external.nih.source.root=DIR --config.data.external.chexlocalize.source.localize=DIR
                                                                the same, and both ViTs tested on ChestX-ray14 and CheXlocalize
    ... configs/mmpkd_cxr.py:openi --config.data.source.root=DIR            reports of Open-i: the teacher alone
    ... configs/mmpkd_cxr.py:openi_images --config.data.source.root=DIR --config.data.source.images=FOLDER     all three stages
    ... configs/mmpkd_cxr.py:nih --config.data.source.root=DIR              ChestX-ray14, which has boxes and no reports: the ViT alone
    ... configs/mmpkd_cxr.py:chexpert --config.data.source.root=DIR --config.data.source.localize=DIR          CheXpert, likewise

Three stages. `teacher` reads the report. `image_only` (alpha = 0) and `student` (alpha = 0.5) are the same ViT with the
same initial weights, data order, augmentation and steps; only alpha differs. What to expect stands in the README.

The variant `controls` adds what says whether a gain comes from the report: `shuffled` learns from what the teacher said of other
patients with the same labels, `same` from a network that reads the image itself, `other`, which is image_only with another seed.

The variant of a public archive trains a ViT-B/16 at 224 pixels, as is usual for pretrained ones [our choice]: give both their
weights, --config.image_only.init.path=FILE --config.student.init.path=FILE.
"""
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data.sources import chexpert
from jaxkd.data.sources.shared import ms_cxr
from jaxkd.phantoms.thorax import labeller

VARIANTS = ('', 'smoke', 'controls', 'encoders', 'folder', 'covid', 'covid_encoders', 'mimic', 'mimic_bert', 'external', 'openi', 'openi_images', 'nih', 'chexpert')


def get_config(arg=''):
    if arg not in VARIANTS:
        raise errors.ConfigError(f'configs/mmpkd_cxr.py has no variant "{arg}".{errors.nearest(arg, VARIANTS[1:])}')
    c = ConfigDict(dict(seed=0, stages=('teacher', 'image_only', 'student')))
    c.data = dict(
        source=dict(name='jaxkd.phantoms.thorax', patients=2000, size=64, difficulty=0.25),
        transforms=('image', 'text', 'labels'),
        augment=('affine', 'contrast'),
        image=dict(size=64, fit='squash'),
        text=dict(section='both', length=96, vocab=1024),
        labels=dict(uncertain='ignore', blank='zeros'),
        split=dict(fractions=(0.75, 0.1, 0.15)),
    )
    vit = dict(name='vit', width=96, depth=3, heads=4, mlp=2, patch=8, std=(0.5,))
    report = dict(name='text', width=64, depth=2, heads=4, length=96, vocab=1024)
    optim = dict(lr=1e-3, b2=0.95, weight_decay=0.05, clip=1.0, warmup='5%')
    classified, localised = dict(classification={}), dict(classification={}, localisation={})
    common = dict(optim=optim, batch=32, select='classification/auroc')
    c.teacher = dict(common, inputs=('tokens',), model=report, length='3 epochs', evals=classified)
    c.teacher.optim.lr = 3e-3
    image = dict(common, inputs=('image',), model=vit, length='13 epochs', every='2 epochs', evals=localised)
    c.image_only = dict(image, method=dict(name='mmpkd', alpha=0.0))
    c.student = dict(image, method=dict(name='mmpkd', alpha=0.5, temperature=2.0), teachers=dict(report=dict(stage='teacher')))

    if arg == 'controls':
        c.stages = ('teacher', 'image_only', 'student', 'shuffled', 'other', 'same')
        kd = dict(name='mmpkd', alpha=0.5, temperature=2.0)
        c.shuffled = dict(image, method=kd, teachers=dict(report=dict(stage='teacher', shuffled=True)))
        c.other = dict(image, method=dict(name='mmpkd', alpha=0.0), seed=1000)
        c.same = dict(image, method=kd, teachers=dict(image=dict(stage='other')))
    if arg == 'smoke':
        c.data.source.patients = 60
        c.bootstrap = 50
        for name in c.stages:
            c[name].update(length='8 steps', every='4 steps', log_every='4 steps', batch=16)
    covid = arg in ('covid', 'covid_encoders')
    if covid or arg == 'folder':  # a researcher's own machine: ViT-S/16 at 224 pixels
        c.data.source = dict(name='covid' if covid else arg, root='')
        c.data.image = dict(size=224, fit='letterbox')
        c.data.text = dict(section='both', length=256, vocab=8192)
        for name in ('image_only', 'student'):
            c[name].model = ConfigDict(dict(name='vit', size='S', patch=16, drop_path=0.1))
            c[name].length, c[name].optim.lr = '30 epochs', 1e-4
        c.teacher.model = ConfigDict(dict(name='text'))
        c.teacher.length, c.teacher.optim.lr = '10 epochs', 2e-4
    if covid:  # 158 patients: the small networks of the default, more patients for testing
        c.note = ('A small public collection. With a few dozen test patients an AUROC interval spans 0.2 to 0.4: this shows that '
                  'the path works on real files, and cannot rank methods. View and hospital go along with the diagnosis, '
                  'notes describe the patient rather than the image, and the boxes are lungs, not findings.')
        # The notes name the diagnosis that is to be predicted: the teacher must not read it there.
        c.data.text.mask_terms = ('covid 19', 'covid', 'coronavirus', 'sars cov 2', 'sars', 'pcr', 'pneumocystis', 'pcp',
                                  'jirovecii', 'streptococcus', 'klebsiella', 'mycoplasma', 'legionella', 'bacterial', 'fungal')
        c.data.image = dict(size=96, fit='letterbox')
        c.data.split = dict(fractions=(0.6, 0.15, 0.25))
        for name in ('image_only', 'student'):
            c[name].model = ConfigDict(vit)
            c[name].optim.lr = 1e-3
        c.teacher.model = ConfigDict(report | dict(length=256, vocab=8192))
        c.teacher.length, c.teacher.optim.lr = '20 epochs', 1e-3
    if arg == 'encoders':
        c.data.source.patients, c.data.split.fractions = 500, (0.6, 0.1, 0.3)
        c.data.text.mask_terms = labeller.TERMS
    if arg in ('encoders', 'covid_encoders'):
        _encoders(c)
    if arg in ('mimic', 'mimic_bert', 'external'):
        _archive(c, name='mimic_cxr', root='', reports='', ms_cxr='')
        c.note = ('Labels were read from reports by a program. The teacher reads the same reports, so its AUROC is close to 1 and '
                  'says nothing of what it can teach: see data.text.section=findings, data.text.mask_terms and out_of_fold.')
    if arg == 'mimic_bert':  # BioClinicalBERT, CXR-BERT and others of their shape
        c.data.transforms, c.data.wordpiece = ('image', 'wordpiece', 'labels'), dict(section='both', length=256)
        c.teacher.model = ConfigDict(dict(name='bert'))
        c.teacher.update(batch=32, optim=ConfigDict(dict(lr=2e-5, weight_decay=0.01, clip=1.0, warmup='10%')))
    if arg == 'external':  # all test images of two other archives, for the findings of this run
        c.data.external = dict(
            nih=dict(source=dict(name='nih_cxr14', root='', resized=False, labels=ms_cxr.FINDINGS),
                     split=dict(fractions=(0.9, 0.1, 0.0))),
            chexlocalize=dict(source=dict(name='chexpert', root='', localize='', labels=ms_cxr.FINDINGS),
                              split=dict(fractions=(0.0, 0.0, 1.0))))
        for name in ('image_only', 'student'):
            for archive in c.data.external:
                c[name].evals[archive] = dict(name='classification', data=archive)
                c[name].evals[f'{archive}_localise'] = dict(name='localisation', data=archive)
    if arg in ('openi', 'openi_images'):
        _archive(c, name='openi', root='')
        c.data.text = dict(section='both', length=128, vocab=4096)
        c.teacher.model = ConfigDict(report | dict(length=128, vocab=4096))
        c.teacher.update(length='20 epochs', optim=ConfigDict(optim))
        for name in ('image_only', 'student'):
            c[name].update(length='30 epochs', evals=ConfigDict(classified))  # nobody drew a box
        c.note = 'Labels were coded by hand from the reports that the teacher reads.'
    if arg == 'openi_images':
        c.data.source.images = 'images'
    elif arg == 'openi':
        c.stages, c.data.transforms, c.data.augment = ('teacher',), ('text', 'labels'), ()
    if arg == 'nih':  # 10 % of the patients outside the official test part are for validation
        _archive(c, name='nih_cxr14', root='')
        c.data.split.fractions = (0.9, 0.1, 0.0)
    elif arg == 'chexpert':
        _archive(c, name='chexpert', root='', localize='', labels=chexpert.LABELS[1:])  # No Finding is not a target
    if arg in ('nih', 'chexpert'):  # no reports were published, so there is nothing to distil
        c.stages, c.data.transforms = ('image_only',), ('image', 'labels')
        c.note = 'Without reports this is the image-only arm: what an archive gives without a teacher, and its boxes or masks to localise.'
    return c


def _encoders(c):
    """Teachers that read words without those that name a label: the small encoder from scratch (`teacher`), and all-MiniLM-L6-v2,
    trained further (`bert`) or as it is under a linear head (`frozen`). Its students differ in nothing but the teacher."""
    minilm = dict(name='bert', width=384, depth=6, pool='mean')
    c.stages = ('teacher', 'bert', 'frozen', 'image_only', 'student', 'bert_student')
    c.data.wordpiece = dict(length=c.data.text.length, mask_terms=c.data.text.mask_terms)
    pieces = dict(transforms=('image', 'wordpiece', 'labels'))
    adam = dict(weight_decay=0.01, clip=1.0, warmup='10%')
    c.teacher.length = '20 epochs'  # from scratch
    c.bert = c.teacher.to_dict() | dict(model=minilm, data=pieces, optim=dict(adam, lr=1e-4), length='5 epochs')
    c.frozen = c.bert.to_dict() | dict(model=dict(minilm, frozen=True), optim=dict(adam, lr=1e-2, freeze=('student/(?!head)',)))
    c.bert_student = c.student.to_dict() | dict(data=pieces, teachers=dict(report=dict(stage='bert')))


def _archive(c, **source):
    """A public archive with its own split, and networks of the size that its number of images allows [our choice]."""
    c.data.source = source
    c.data.image = dict(size=224, fit='crop', resize=256, channels=3)
    c.data.text = dict(section='both', length=256, vocab=8192)
    vit = dict(name='vit', size='B', patch=16, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    for name in ('image_only', 'student'):
        c[name].model = ConfigDict(vit)
        c[name].optim = ConfigDict(dict(lr=5e-5, weight_decay=0.05, clip=1.0, warmup='5%', lr_scale=(('student/head/', 10.0),)))
        c[name].update(batch=64, length='10 epochs', every='1 epoch')
    c.teacher.model = ConfigDict(dict(name='text'))
    c.teacher.optim = ConfigDict(dict(lr=2e-4, weight_decay=0.01, clip=1.0, warmup='10%'))
    c.teacher.length = '3 epochs'
