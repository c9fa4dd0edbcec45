"""Trained stages of each kind of input, and their bundles, made once for all tests."""
import csv
import functools
import pathlib
import tempfile

import jax
import nibabel
import numpy as np
from PIL import Image

from jaxkd import predict
from jaxkd.export import bundle, contents
from tests.fixtures import trained

CANARY = 'Zebedee'  # in everything that only training saw
POINT = dict(threshold=0.1, sensitivity=1.0, specificity=1.0)
FITTED = dict(cases=9, positives=4, slope=1.5, intercept=-0.25, points=dict(youden=POINT, sensitivity_95=POINT))
GREY = dict(image=np.zeros((1, 32, 32, 1), np.float32))
SCANS = dict(source=dict(name='dualphase', root=f'/data/{CANARY}'), transforms=('scan',),
             augment=('patch', 'intensity'),
             scan=dict(keys=('nct', f'ct{CANARY}'), spacing=(3.0, 3.0, 3.0), windows=((-900.0, 100.0), (0.0, 100.0))),
             patch=dict(keys=('nct', f'ct{CANARY}'), size=(8, 8, 4)), intensity=dict(keys=('nct',)))
STUDENTS = {
    'image': dict(
        data=dict(source=dict(name='folder', root=f'/data/{CANARY}'), transforms=('image', 'text', 'labels'),
                  image=dict(size=32), text=dict(vocab=20)),
        inputs=('image',), model=dict(name='vit', size='tiny', width=16, heads=2, patch=8, depth=1), batch=GREY,
        labels=('effusion', 'nodule'), evals=dict(classification={}), assets=dict(text=dict(words=[CANARY.lower()])),
        decision=dict(kind='multilabel', cases=9, labels=dict(effusion=FITTED, nodule=dict(FITTED, points={})))),
    'breast': dict(
        data=dict(source=dict(name='folder', root=f'/data/{CANARY}'), transforms=('breast', 'image', 'harmonise'),
                  image=dict(size=32, fit='letterbox')),
        assets=dict(harmonise=dict(image=dict(mean=0.4, deviation=0.2, quantiles=[0.1, 0.2, 0.45, 0.7, 0.8]))),
        inputs=('image',), model=dict(name='cnn', dims=2, channels=(4,), head='gap'), batch=GREY,
        labels=('benign', 'malignant'), evals=dict(multiclass={}),
        decision=dict(kind='multiclass', cases=9, classes=['benign', 'malignant'], temperature=1.5)),
    'slices': dict(
        data=dict(source=dict(name='acdc', root=f'/data/{CANARY}'), transforms=('image',),
                  image=dict(size=32, fit='squash')),
        inputs=('image',), model=dict(name='unet', channels=(4, 8), norm='group'), batch=GREY,
        labels=('background', 'heart'), evals=dict(segmentation={})),
    'scan': dict(
        data=SCANS, inputs=('nct',), model=dict(name='unet', dims=3, channels=(4, 8), norm='group', classify=1),
        batch=dict(nct=np.zeros((1, 4, 8, 8, 1), np.int16)), labels=('background', 'embolus'),
        evals=dict(segmentation={}),
        decision=dict(kind='segmentation', cases=9, classes=['background', 'embolus'], labels=dict(embolus=FITTED),
                      scan=dict(combine='top', topk=3, t_cls=0.5, v_min=None))),
    'volume': dict(
        data=dict(source=dict(name='paired', root=f'/data/{CANARY}'), transforms=('volume',), augment=('crop',),
                  volume=dict(keys=('ct', f't{CANARY}'), hu=('ct',), spacing=(4.0, 4.0, 4.0), size=(12, 12, 8),
                              margin=(4, 4, 0)), crop=dict(keys=('ct', f't{CANARY}'), size=(12, 12, 8))),
        inputs=('ct',), model=dict(name='cnn', channels=(4,), head='gap'),
        batch=dict(ct=np.zeros((1, 8, 12, 12, 1), np.int16)), labels=('low', 'middle', 'high'),
        evals=dict(multiclass={})),
    'pair': dict(  # a case may lack one of them
        data=dict(source=dict(name='paired', root=f'/data/{CANARY}'), transforms=('volume', 'harmonise'),
                  volume=dict(keys=('ct', 't2', f't{CANARY}'), hu=('ct',), spacing=(4.0, 4.0, 0.0), size=(12, 12, 8)),
                  harmonise=dict(keys=('t2', f't{CANARY}', 'ct'), kind='zscore', background=-9.0, limits=(-2.0, 1.5))),
        assets=dict(harmonise=dict(ct=dict(mean=0.5, deviation=0.3, quantiles=[0.0, 1.0]),
                                   t2=dict(mean=0.1, deviation=0.7, quantiles=[0.0, 1.0]))),
        inputs=('ct', 't2'), model=dict(name='cnn', channels=(4,), head='gap'),
        batch=dict(ct=np.zeros((1, 8, 12, 12, 1), np.int16), t2=np.zeros((1, 8, 12, 12, 1), np.int16)),
        labels=('low', 'high'), evals=dict(multiclass={})),
    'report': dict(  # beside a picture
        data=dict(source=dict(name='folder', root=f'/data/{CANARY}'), transforms=('image', 'text', 'labels'),
                  image=dict(size=32), text=dict(vocab=8, length=12, mask_terms=('Pleural effusion',))),
        inputs=('image', 'tokens'), model=dict(
            name='fusion', image=dict(size='tiny', width=16, heads=2, patch=8, depth=1),
            text=dict(vocab=8, width=16, depth=1, heads=2, length=12)),
        batch=GREY | dict(tokens=np.zeros((1, 12), np.int32)), labels=('effusion',), evals=dict(classification={}),
        assets=dict(text=dict(words=['acute', 'no', 'lung', 'clear']))),
    'pieces': dict(
        data=dict(source=dict(name='folder', root=f'/data/{CANARY}'), transforms=('wordpiece', 'labels'),
                  wordpiece=dict(length=10, mask_terms=('no',))),
        inputs=('tokens',), model=dict(name='text', vocab=9, width=16, depth=1, heads=2, length=10),
        batch=dict(tokens=np.zeros((1, 10), np.int32)), labels=('effusion',), evals=dict(classification={})),
    'table': dict(
        data=dict(source=dict(name='cbis_ddsm', root=f'/data/{CANARY}'), transforms=('table', 'labels')),
        inputs=('row',), model=dict(name='tabular', kind='mlp', widths=(8,)),
        batch=dict(row=np.zeros((1, 5), np.float32)),
        labels=('malignant',), evals=dict(classification={}),
        assets=dict(table=dict(sets={'mass shape': ['OVAL', 'ROUND']}, levels={'breast density': [1.0, 2.0]},
                               numbers={'age': [50.0, 10.0]}))),
}


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix='jaxkd_bundles_')  # removed when the process ends


def folder() -> pathlib.Path:
    """The folder of this process for what tests share."""
    return pathlib.Path(_temporary().name)


@functools.cache
def run(kind: str) -> str:
    """The folder of a run with the student."""
    if kind == 'pieces':
        vocabulary = folder() / 'vocab.txt'
        vocabulary.write_text('[PAD]\n[UNK]\n[CLS]\n[SEP]\nno\nacute\n##s\nf\neffusion\n')
        spec = STUDENTS[kind]
        return trained.write(folder() / 'runs' / kind, **spec | dict(
            data=spec['data'] | dict(wordpiece=spec['data']['wordpiece'] | dict(file=str(vocabulary)))))
    return trained.write(folder() / 'runs' / kind, **STUDENTS[kind])


@functools.cache
def exported(kind: str) -> pathlib.Path:
    """The bundle of the student."""
    jax.config.update('jax_traceback_in_locations_limit', 10)  # the default of JAX, which tests switch off
    files, _ = contents.of_stage(run(kind), options=contents.Options('a student', data_licence='CC-BY-4.0'))
    jax.config.update('jax_traceback_in_locations_limit', 0)
    bundle.write(folder() / 'bundles' / kind, files)
    return folder() / 'bundles' / kind


@functools.cache
def predicted(kind: str) -> pathlib.Path:
    """What jaxkd.predict makes of `cases` with the run."""
    inputs = cases(kind, folder() / 'cases' / kind)
    assert predict.main(['--run', run(kind), '--input', *inputs, '--output', str(folder() / 'predicted' / kind)]) == 0
    return folder() / 'predicted' / kind


def cases(kind: str, place: pathlib.Path) -> list[str]:
    """Files of three cases, written to a folder -> the arguments of --input."""
    rng = np.random.default_rng(3)
    place.mkdir(parents=True, exist_ok=True)
    if kind in ('image', 'breast'):
        for i, (height, width) in enumerate(((60, 50), (41, 77), (32, 32))):
            x = np.arange(width) / width
            inside = x[None] + ((np.arange(height) / height - 0.5) ** 2)[:, None] < 0.7
            grey = np.where(inside[:, ::-1] if i == 1 else inside, rng.integers(90, 250, (height, width)), 3)
            Image.fromarray(grey.astype(np.uint8)).save(place / f'{i}.png')
        if kind == 'image':
            Image.fromarray(rng.integers(0, 256, (50, 40, 3), np.uint8)).save(place / 'colour.png')
        return [str(place)]
    if kind == 'table':
        (place / 'cases.csv').write_text('case,mass shape,breast density,age\na,OVAL,1,40\na,ROUND-LOBE,2,41\n'
                                         'b,,,\nc,NA,2,77.5\n')
        return [str(place / 'cases.csv')]
    reports = ('HISTORY: Acute pain. FINDINGS: Lungs clear, no pleural  effusion.\nIMPRESSION: No acute effusions.',
               'clear lung, no acute. \u00c9f', 'COMPARISON: none. IMPRESSION: ' + 'lung clear acute ' * 9)
    if kind == 'pieces':
        for i, report in enumerate(reports):
            (place / f'{i}.txt').write_bytes(report.replace('\n', '\r\n').encode('utf-8-sig'))
        return [str(place)]
    if kind == 'report':
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (40, 50), np.uint8)).save(place / f'{i}.png')
        with open(place / 'cases.csv', 'w', newline='') as f:
            csv.writer(f).writerows([('image', 'text'), *((f'{i}.png', report) for i, report in enumerate(reports))])
        return [str(place / 'cases.csv')]
    angle = np.deg2rad(20)
    affines = (np.diag([2.0, 2.0, 4.0, 1.0]), np.diag([-3.0, -3.0, 3.0, 1.0]),
               np.array([[3 * np.cos(angle), -3 * np.sin(angle), 0, 5], [3 * np.sin(angle), 3 * np.cos(angle), 0, -9],
                         [0, 0, 2.5, 1], [0, 0, 0, 1]]))
    for i, (affine, shape) in enumerate(zip(affines, ((20, 24, 9), (17, 15, 8), (22, 20, 12)))):
        voxels = rng.normal(-200, 300, shape).astype(np.int16 if i else np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, affine), place / f'{i}.nii.gz')
    if kind == 'pair':
        (place / 'cases.csv').write_text('ct,t2,centre_x,centre_y,centre_z\n0.nii.gz,1.nii.gz,,,\n1.nii.gz,,,,\n'
                                         '2.nii.gz,0.nii.gz,8,-3.5,11\n')
        return [str(place / 'cases.csv')]
    return [str(place)]
