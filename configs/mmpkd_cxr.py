"""MMPKD on chest radiographs: a teacher reads the report, an image-only ViT learns from it.

    python -m jaxkd.main --config configs/mmpkd_cxr.py:help     all variants and their commands

Every patient has a report and one in twenty has labels, as in a hospital (`base`). `teacher` learns to read findings in
the reports of the labelled patients and tells them of all; `image_only`, `self_training`, `kd_shuffled` and `student`
are the same ViT with the same initial weights, augmentation and number of steps. The last three learn from the few
labels and from a teacher of all training images, in the same order: the trained `image_only`, the text teacher whose
outputs belong to other patients, the text teacher. With labels for everybody: `full_labels`.

Teacher and image_only draw labelled cases alone: among all of them a batch of 32 would hold 1.6 labels, and image_only
would be the worse for it. Nothing is selected by the few labelled validation patients; the last step counts. Sizes,
steps, learning rate and alpha were chosen on other draws of the phantom.

The variant of a public archive trains a ViT-B/16 at 224 pixels, as is usual for pretrained ones [our choice]: give both
their weights, --config.image_only.init.path=FILE --config.student.init.path=FILE.
"""
from ml_collections import ConfigDict

from jaxkd import config
from jaxkd.data.sources import chexpert as chexpert_source
from jaxkd.data.sources.shared import ms_cxr
from jaxkd.phantoms.thorax import labeller

PHANTOM = 'jaxkd.phantoms.thorax'
VIT = dict(name='vit', width=96, depth=3, heads=4, mlp=2, patch=8, std=(0.5,))
SMALL_VIT = VIT | dict(width=64)
CNN = dict(name='cnn', dims=2, channels=(16, 32, 64), act='relu', norm='group', head='gap')
REPORT = dict(name='text', width=64, depth=2, heads=4, length=96, vocab=1024)
OPTIM = dict(lr=1e-3, b2=0.95, weight_decay=0.05, clip=1.0, warmup='5%')
# Arms of `losses`: one loss beside that of the labels, with the weight that its file in jaxkd/distillation gives.
LOSSES = dict(
    kd=dict(kd=dict(name='kd_bce')), gd=dict(gd={}), hint=dict(hint={}), cosine=dict(cosine={}),
    vid=dict(vid=dict(student='pooled')), sp=dict(sp={}), cc=dict(cc={}), rkd=dict(rkd={}), pkt=dict(pkt={}),
    crd=dict(crd={}), curvature=dict(curvature={}),
    infonce=dict(infonce={}), barlow=dict(barlow={}), margin=dict(pmkl_contrast={}),
    kd_crd=dict(kd=dict(name='kd_bce'), crd={}))


def base() -> ConfigDict:
    """Reports for everybody, labels for one patient in twenty: the thorax phantom, minutes on two CPU cores
    python -m jaxkd.main --config configs/mmpkd_cxr.py
    """
    c = ConfigDict(dict(seed=0, stages=('teacher', 'image_only', 'self_training', 'kd_shuffled', 'student')))
    c.data = dict(
        source=dict(name=PHANTOM, patients=1500, size=64, difficulty=0.25),
        transforms=('image', 'text', 'labels'), augment=('affine', 'contrast'),
        image=dict(size=64, fit='squash'), text=dict(section='both', length=96, vocab=1024),
        labels=dict(uncertain='ignore', blank='zeros', share=0.05), split=dict(fractions=(0.7, 0.05, 0.25)))
    common, few = dict(optim=OPTIM, batch=32, eval_every='50%'), dict(labels=dict(only=True))
    c.teacher = dict(common, inputs=('tokens',), model=REPORT, length='150 steps', data=few,
                     evals=dict(classification={}))
    c.teacher.optim.lr = 3e-3
    image = dict(common, inputs=('image',), model=SMALL_VIT, length='1200 steps',
                 evals=dict(classification={}, localisation={}))
    image['optim'] = OPTIM | dict(lr=2e-3)
    c.image_only = dict(image, method=dict(name='mmpkd', alpha=0.0), data=few)
    c.student = dict(image, method=dict(name='mmpkd', alpha=0.9, temperature=2.0),
                     teachers=dict(report=dict(stage='teacher')))
    c.self_training = c.student.to_dict() | dict(teachers=dict(image=dict(stage='image_only')))
    c.kd_shuffled = c.student.to_dict() | dict(teachers=dict(report=dict(stage='teacher', shuffled=True)))
    return c


def full_labels(c: ConfigDict) -> None:
    """Labels for everybody
    python -m jaxkd.main --config configs/mmpkd_cxr.py:full_labels
    """
    if c.data.labels.share == 1:
        return
    c.stages, c.data.labels.share = ('teacher', 'image_only', 'student'), 1.0
    c.data.source.patients, c.data.split.fractions = 2000, (0.75, 0.1, 0.15)
    for name in config.stage_names(c):
        c[name].update(select='classification/auroc', data=ConfigDict())
    c.teacher.update(length='3 epochs', eval_every='1 epoch')
    for name in _image_stages(c):
        c[name].update(model=ConfigDict(VIT), optim=ConfigDict(OPTIM), length='13 epochs', eval_every='2 epochs')
    for name in ('student', 'self_training', 'kd_shuffled'):
        c[name].method.alpha = 0.5


def smoke(c: ConfigDict) -> None:
    """Seconds: does everything run?
    python -m jaxkd.main --config configs/mmpkd_cxr.py:smoke
    """
    if c.data.source.name == PHANTOM:
        c.data.source.patients = 60
        if c.data.labels.share < 1:
            c.data.labels.share, c.data.split.fractions = 0.5, (0.6, 0.2, 0.2)
    c.bootstrap = 50
    for name in config.stage_names(c):
        c[name].update(length='8 steps', eval_every='4 steps', log_every='4 steps', batch=16)


def controls(c: ConfigDict) -> None:
    """More arms, which say whether a gain comes from the report
    python -m jaxkd.main --config configs/mmpkd_cxr.py:controls
    python -m jaxkd.main --config configs/mmpkd_cxr.py:full_labels,controls

    `kd_shuffled` learns from what the teacher said of other patients (with the same labels, where everybody has some),
    `kd_same_modality` from a network that reads the image itself, `image_only_seed1000`, which is image_only with
    another seed. Where few have labels, `label_smoothing` is image_only with soft labels, and `all_labels` the ceiling:
    the labels of all training patients, seen in the order of the student.
    """
    few = c.data.labels.share < 1
    shuffled = dict(report=dict(stage='teacher', shuffled=True))
    c.kd_shuffled = c.student.to_dict() | dict(teachers=shuffled)
    c.image_only_seed1000 = c.image_only.to_dict() | dict(seed=1000)
    c.kd_same_modality = c.student.to_dict() | dict(teachers=dict(image=dict(stage='image_only_seed1000')))
    c.label_smoothing = c.image_only.to_dict() | dict(method=dict(name='supervised', smoothing=0.1))
    c.all_labels = c.image_only.to_dict() | dict(data=dict(labels=dict(share=1.0)))
    arms = ('kd_shuffled', 'image_only_seed1000', 'kd_same_modality')
    c.stages = tuple(dict.fromkeys((*c.stages, *arms, *(('label_smoothing', 'all_labels') if few else ()))))


def losses(c: ConfigDict) -> None:
    """An arm for each loss of distillation that vectors and labels allow, from the same report
    python -m jaxkd.main --config configs/mmpkd_cxr.py:losses

    Weights are those that are published or usual, most of them tuned on CIFAR-100 with batches of 64: see
    jaxkd/distillation and docs/reference/losses.md.
    """
    c.stages = ('teacher', 'image_only', *LOSSES)
    for name, chosen in LOSSES.items():
        supervised = 0.5 if name == 'gd' else 1.0
        c[name] = c.student.to_dict() | dict(method=dict(name='distil', supervised=supervised, losses=chosen))


def convolutions(c: ConfigDict) -> None:
    """Convolutional students, whose Grad-CAM is scored against the boxes
    python -m jaxkd.main --config configs/mmpkd_cxr.py:convolutions

    `focal` is image_only with the focal loss: the usual classifier of radiographs whose heat maps are shown.
    """
    c.focal = c.image_only.to_dict() | dict(method=dict(name='supervised', focal=2.0))
    c.stages = (*c.stages, 'focal')
    for name in _image_stages(c):
        c[name].model = ConfigDict(CNN)


def bottleneck(c: ConfigDict) -> None:
    """A teacher of image and report made of two trained networks, which stay as they are, and of adapters between them
    python -m jaxkd.main --config configs/mmpkd_cxr.py:bottleneck
    """
    sides = {part: c[stage].model.to_dict() for part, stage in (('image', 'image_only'), ('text', 'teacher'))}
    for side in sides.values():
        del side['name']
    model = dict(sides, name='bottleneck', width=16)
    c.fused = c.image_only.to_dict() | dict(
        inputs=('image', 'tokens'), model=model, method=dict(name='supervised'), evals=dict(classification={}),
        length='150 steps', init=dict(parts=dict(image=dict(stage='image_only'), text=dict(stage='teacher'))))
    c.fused.optim.freeze = ('student/image/', 'student/text/')
    c.fused_student = c.student.to_dict() | dict(teachers=dict(both=dict(stage='fused', cache='no')))
    c.stages = ('teacher', 'image_only', 'student', 'fused', 'fused_student')


def encoders(c: ConfigDict) -> None:
    """all-MiniLM-L6-v2 as teacher beside the small text encoder
    python -m jaxkd.main --config configs/mmpkd_cxr.py:encoders --config.data.wordpiece.file=DIR/vocab.txt \
        --config.bert.init.path=DIR --config.frozen.init.path=DIR

    Teachers read words without those that name a label: the small encoder from scratch (`teacher`), and
    all-MiniLM-L6-v2, trained further (`bert`) or as it is under a linear head (`frozen`). Its students differ in
    nothing but the teacher.
    """
    full_labels(c)
    if c.data.source.name == PHANTOM:
        c.data.source.patients, c.data.split.fractions = 500, (0.6, 0.1, 0.3)
        c.data.text.mask_terms = labeller.TERMS
    minilm = dict(name='bert', width=384, depth=6, pool='mean')
    c.stages = ('teacher', 'bert', 'frozen', 'image_only', 'student', 'bert_student')
    c.data.wordpiece = dict(length=c.data.text.length, mask_terms=c.data.text.get('mask_terms', ()))
    pieces = dict(transforms=('image', 'wordpiece', 'labels'))
    adam = dict(weight_decay=0.01, clip=1.0, warmup='10%')
    c.teacher.length = '20 epochs'  # from scratch
    c.bert = c.teacher.to_dict() | dict(model=minilm, data=pieces, optim=dict(adam, lr=1e-4), length='5 epochs')
    linear = dict(adam, lr=1e-2, freeze=('student/(?!head)',))
    c.frozen = c.bert.to_dict() | dict(model=dict(minilm, frozen=True), optim=linear)
    c.bert_student = c.student.to_dict() | dict(data=pieces, teachers=dict(report=dict(stage='bert')))


def folder(c: ConfigDict) -> None:
    """Your images and reports (cases.csv), of a size that fits their number and the device: see tiny to large
    python -m jaxkd.main --config configs/mmpkd_cxr.py:folder --config.data.source.root=DIR
    """
    full_labels(c)
    c.data.source = dict(name='folder', root='')
    c.data.image = dict(size=224, fit='letterbox')
    c.data.text = dict(section='both', length=256, vocab=8192)
    base_size(c)
    c.preset = 'auto'


def table(c: ConfigDict) -> None:
    """A teacher that reads columns of your cases.csv, such as measurements, in the place of reports
    python -m jaxkd.main --config configs/mmpkd_cxr.py:folder,table --config.data.source.root=DIR \
        --config.data.source.findings=density,age --config.data.table.sets=density --config.data.table.numbers=age
    """
    if c.data.source.name != 'folder':
        folder(c)
    c.data.source.empty_text = 'ok'
    c.data.transforms = ('image', 'table', 'labels')
    c.data.table = dict(sets=(), levels=(), descriptors=(), numbers=())
    c.teacher.inputs, c.teacher.model = ('row',), ConfigDict(dict(name='tabular', kind='mlp'))
    c.teacher.optim = ConfigDict(dict(lr=1e-3, weight_decay=1e-4, clip=1.0, warmup='5%'))


def tiny(c: ConfigDict) -> None:
    """The networks of the phantom at 64 pixels, minutes on a CPU
    python -m jaxkd.main --config configs/mmpkd_cxr.py:folder,tiny --config.data.source.root=DIR
    """
    c.preset, c.data.image.size = 'tiny', 64
    for name in _image_stages(c):
        c[name].model, c[name].optim.lr = ConfigDict(VIT), 1e-3
        c[name].update(batch=16, length='10000 examples', eval_every='10%')
    _small_teacher(c, '5000 examples')


def small(c: ConfigDict) -> None:
    """ViT-Ti/16 at 128 pixels
    python -m jaxkd.main --config configs/mmpkd_cxr.py:folder,small --config.data.source.root=DIR
    """
    c.preset, c.data.image.size = 'small', 128
    for name in _image_stages(c):
        c[name].model, c[name].optim.lr = ConfigDict(dict(name='vit', size='Ti', patch=16, drop_path=0.1)), 3e-4
        c[name].update(length='60000 examples', eval_every='5%')
    _small_teacher(c, '20000 examples')


def base_size(c: ConfigDict) -> None:
    """ViT-S/16 at 224 pixels
    python -m jaxkd.main --config configs/mmpkd_cxr.py:folder,base --config.data.source.root=DIR
    """
    c.preset, c.data.image.size = 'base', 224
    for name in _image_stages(c):
        c[name].model = ConfigDict(dict(name='vit', size='S', patch=16, drop_path=0.1, fused=True))
        c[name].length, c[name].optim.lr = '30 epochs', 1e-4
    if c.teacher.inputs == ('tokens',):  # a teacher of a table stays as it is
        c.teacher.model = ConfigDict(dict(name='text'))
        c.teacher.length, c.teacher.optim.lr = '10 epochs', 2e-4


def large(c: ConfigDict) -> None:
    """ViT-B/16 at 224 pixels
    python -m jaxkd.main --config configs/mmpkd_cxr.py:folder,large --config.data.source.root=DIR
    """
    base_size(c)
    c.preset = 'large'
    for name in _image_stages(c):
        c[name].model.size = 'B'
        c[name].batch = 64


def covid(c: ConfigDict) -> None:
    """covid-chestxray-dataset: 158 patients, the small networks of the phantom
    python -m jaxkd.main --config configs/mmpkd_cxr.py:covid --config.data.source.root=DIR
    """
    full_labels(c)
    c.note = ('A small public collection. With a few dozen test patients an AUROC interval spans 0.2 to 0.4: this '
              'shows that the path works on real files, and cannot rank methods. View and hospital go along with the '
              'diagnosis, notes describe the patient rather than the image, and the boxes are lungs, not findings.')
    c.data.source = dict(name='covid', root='')
    # The notes name the diagnosis that is to be predicted: the teacher must not read it there.
    masked = ('covid 19', 'covid', 'coronavirus', 'sars cov 2', 'sars', 'pcr', 'pneumocystis', 'pcp',
              'jirovecii', 'streptococcus', 'klebsiella', 'mycoplasma', 'legionella', 'bacterial', 'fungal')
    c.data.text = dict(section='both', length=256, vocab=8192, mask_terms=masked)
    c.data.image = dict(size=96, fit='letterbox')
    c.data.split = dict(fractions=(0.6, 0.15, 0.25))  # more patients for testing
    for name in _image_stages(c):
        c[name].length = '30 epochs'
    c.teacher.model = ConfigDict(REPORT | dict(length=256, vocab=8192))
    c.teacher.length, c.teacher.optim.lr = '20 epochs', 1e-3


def mimic(c: ConfigDict) -> None:
    """MIMIC-CXR-JPG with the reports of MIMIC-CXR and the boxes of MS-CXR
    python -m jaxkd.main --config configs/mmpkd_cxr.py:mimic --config.data.source.root=DIR \
        --config.data.source.reports=DIR --config.data.source.ms_cxr=DIR
    """
    _archive(c, name='mimic_cxr', root='', reports='', ms_cxr='')
    c.note = ('Labels were read from reports by a program. The teacher reads the same reports, so its AUROC is close '
              'to 1 and says nothing of what it can teach: see data.text.section=findings, data.text.mask_terms and '
              'out_of_fold.')


def bert(c: ConfigDict) -> None:
    """A pretrained BERT as teacher: BioClinicalBERT, CXR-BERT and others of their shape
    python -m jaxkd.main --config configs/mmpkd_cxr.py:mimic,bert --config.data.wordpiece.file=BERT/vocab.txt \
        --config.teacher.init.path=BERT
    """
    c.data.transforms, c.data.wordpiece = ('image', 'wordpiece', 'labels'), dict(section='both', length=256)
    c.teacher.model = ConfigDict(dict(name='bert', pool='cls'))
    c.teacher.update(batch=32, optim=ConfigDict(dict(lr=2e-5, weight_decay=0.01, clip=1.0, warmup='10%')))


def other_archives(c: ConfigDict) -> None:
    """Both ViTs tested on all test images of ChestX-ray14 and CheXlocalize, for the findings of the run
    python -m jaxkd.main --config configs/mmpkd_cxr.py:mimic,other_archives --config.data.external.nih.source.root=DIR \
        --config.data.external.chexlocalize.source.localize=DIR
    """
    c.data.external = dict(
        nih=dict(source=dict(name='nih_cxr14', root='', resized=False, labels=ms_cxr.FINDINGS),
                 split=dict(fractions=(0.9, 0.1, 0.0))),
        chexlocalize=dict(source=dict(name='chexpert', root='', localize='', labels=ms_cxr.FINDINGS),
                          split=dict(fractions=(0.0, 0.0, 1.0))))
    for name in _image_stages(c):
        for archive in c.data.external:
            c[name].evals[archive] = dict(name='classification', data=archive)
            c[name].evals[f'{archive}_localisation'] = dict(name='localisation', data=archive)


def openi(c: ConfigDict) -> None:
    """Open-i, whose labels were coded by hand
    python -m jaxkd.main --config configs/mmpkd_cxr.py:openi --config.data.source.root=DIR
    """
    _archive(c, name='openi', root='')
    c.data.text = dict(section='both', length=128, vocab=4096)
    c.teacher.model = ConfigDict(REPORT | dict(length=128, vocab=4096))
    c.teacher.update(length='20 epochs', optim=ConfigDict(OPTIM))
    for name in _image_stages(c):
        c[name].update(length='30 epochs', evals=ConfigDict(dict(classification={})))  # nobody drew a box
    c.note = 'Labels were coded by hand from the reports that the teacher reads.'


def with_images(c: ConfigDict) -> None:
    """with the folder of its images: all three stages
    python -m jaxkd.main --config configs/mmpkd_cxr.py:openi_images --config.data.source.images=FOLDER
    """
    c.data.source.images = 'images'


def reports_only(c: ConfigDict) -> None:
    """the teacher alone, which needs no image"""
    c.stages, c.data.transforms, c.data.augment = ('teacher',), ('text', 'labels'), ()


def nih(c: ConfigDict) -> None:
    """ChestX-ray14, which has boxes and no reports: the ViT alone
    python -m jaxkd.main --config configs/mmpkd_cxr.py:nih --config.data.source.root=DIR
    """
    _archive(c, name='nih_cxr14', root='')
    c.data.split.fractions = (0.9, 0.1, 0.0)  # 10 % of the patients outside the official test part are for validation
    _images_only(c)


def chexpert(c: ConfigDict) -> None:
    """CheXpert with the masks of CheXlocalize and no reports: the ViT alone
    python -m jaxkd.main --config configs/mmpkd_cxr.py:chexpert --config.data.source.root=DIR \
        --config.data.source.localize=DIR
    """
    _archive(c, name='chexpert', root='', localize='', labels=chexpert_source.LABELS[1:])  # No Finding is not a target
    _images_only(c)


PRESETS = dict(tiny=0, small=200, base=2_000, large=20_000)  # cases from which on each is chosen [our choice]
VARIANTS = dict(full_labels=full_labels, smoke=smoke, controls=controls, losses=losses, convolutions=convolutions,
                bottleneck=bottleneck, encoders=encoders, folder=folder, table=table, tiny=tiny, small=small,
                base=base_size, large=large, covid=covid,
                covid_encoders=(covid, encoders), mimic=mimic, bert=bert, mimic_bert=(mimic, bert),
                other_archives=other_archives, external=(mimic, other_archives), openi=(openi, reports_only),
                openi_images=(openi, with_images), nih=nih, chexpert=chexpert)


def get_config(arg: str = '') -> ConfigDict:
    return config.variant(base(), VARIANTS, arg)


def _image_stages(c: ConfigDict) -> list[str]:
    return [name for name in config.stage_names(c) if c[name].inputs == ('image',)]


def _small_teacher(c: ConfigDict, length: str) -> None:
    if c.teacher.inputs == ('tokens',):  # a teacher of a table stays as it is
        c.teacher.model, c.teacher.optim.lr = ConfigDict(REPORT | dict(length=256, vocab=8192)), 1e-3
    c.teacher.update(length=length, eval_every='10%')


def _images_only(c: ConfigDict) -> None:
    """No reports were published, so there is nothing to distil."""
    c.stages, c.data.transforms = ('image_only',), ('image', 'labels')
    c.note = ('Without reports this is the image-only arm: what an archive gives without a teacher, and its boxes or '
              'masks to localise.')


def _archive(c: ConfigDict, **source) -> None:
    """A public archive with its own split, and networks of the size that its number of images allows [our choice]."""
    full_labels(c)
    c.data.source = source
    c.data.image = dict(size=224, fit='crop', resize=256, channels=3)
    c.data.text = dict(section='both', length=256, vocab=8192)
    vit = dict(name='vit', size='B', patch=16, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
               fused=True)
    optim = dict(lr=5e-5, weight_decay=0.05, clip=1.0, warmup='5%', lr_scale=(('student/head/', 10.0),))
    for name in _image_stages(c):
        c[name].model, c[name].optim = ConfigDict(vit), ConfigDict(optim)
        c[name].update(batch=64, length='10 epochs', eval_every='1 epoch')
    c.teacher.model = ConfigDict(dict(name='text'))
    c.teacher.optim = ConfigDict(dict(lr=2e-4, weight_decay=0.01, clip=1.0, warmup='10%'))
    c.teacher.length = '3 epochs'
