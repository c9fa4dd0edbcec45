"""ACDC: short-axis cine-MR of the heart at end-diastole (ED) and end-systole (ES); right ventricle, muscle, left
ventricle.

Bernard et al.: Deep learning techniques for automatic MRI cardiac multi-structures segmentation and diagnosis: is the
problem solved? IEEE TMI 37 (2018). Layout, at `root`, in root/<folder> or in root/database/<folder>; .nii may stand for
.nii.gz:
    patient001/Info.cfg                          "ED: 1", "ES: 12": numbers of frames; "Group: DCM"
    patient001/patient001_frame01.nii.gz         and patient001_frame01_gt.nii.gz, likewise for the other of the two
                                                 frames

A case is a slice (dims=2) or a volume (dims=3); the study of a slice is its volume, patient001_frame01. Groups: phase
(ED, ES), group (of the disease), and for slices foreground (yes, no): whether any pixel is labelled. Networks are
trained on slices with foreground (data.train_filter = 'foreground=yes') and tested on all slices of a volume;
foreground=True leaves the other slices out of every part, which makes volumes incomplete.

    image    float32 in [0,1]: each volume scaled by slice_stacks.scale
    axes     rows are the second axis of the file, columns the first, slices the third, for image and label, without
             flips: the orientation of image viewers and of the HDF5 form of the data set
    Volume   (dims=3) keeps the axes of the file, so slices are the third. The label has the grid of the image: both
             agree voxel by voxel, and the header of the label is not used
    spacing  mm, of the header. A file without sform and qform gets an axis-aligned grid of its spacing

official=True gives the patients 1 to 100 the parts of the public code of SIKD, 70 / 15 / 15, if all of them are
present; otherwise the split is drawn, and `note` states it.

All labels are read once at the start. on_error='fail' stops at the first bad label, and at a bad image when it is read.
'skip' also reads the images at the start, leaves out volumes that do not load, and lists them in `skipped`.
"""
import functools
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import contracts, errors
from jaxkd.data import mask_values
from jaxkd.data.formats import image, nifti
from jaxkd.data.source import Source
from jaxkd.data.sources.shared import loading_errors, slice_stacks

MAX_VOXELS = 2**26
DEFAULTS = dict(
    root='',  # the folder of the data set
    folder='training',  # the archive's part: training or testing
    dims=2,  # 2: a case is a slice; 3: a volume
    official=True,  # the split of the public code; False: the run draws it
    foreground=False,  # True: slices without any label are no cases
    on_error='fail',  # at bad volumes: fail (stop) or skip (read all once at the start and leave the bad ones out)
    nifti_form='auto',  # which affine of NIfTI files holds: sform, qform, or auto (refuse a file whose two disagree)
    max_voxels=MAX_VOXELS,  # most voxels of a volume; a larger one is refused
)

LABELS = ('background', 'RV', 'MYO', 'LV')
VAL = (2, 7, 10, 23, 26, 33, 35, 56, 58, 73, 75, 76, 89, 98, 100)
TEST = (4, 16, 18, 21, 32, 40, 42, 52, 60, 62, 63, 64, 86, 88, 91)
_MAX_TEXT_BYTES = 2**16  # bytes


def build(hp: ConfigDict) -> Source:
    slice_stacks.check(hp, 'acdc')
    top = _top(hp)
    names = sorted(name for name in os.listdir(top) if re.fullmatch(r'patient\d{3}', name))
    if not names:
        raise errors.MissingInput(f'acdc: {top} holds no folder patient001 or the like. Set root to the folder that '
                                  'does, or to the one above.')
    numbers = {name: int(name.removeprefix('patient')) for name in names}
    complete = {*range(1, 101)} <= {*numbers.values()}
    parts = {n: 'val' if n in VAL else 'test' if n in TEST else 'train'
            for n in range(1, 101)} if hp.official and complete else {}
    studies: list[slice_stacks.Study] = []
    problems = loading_errors.Problems(hp.on_error)
    for name in names:
        with problems.noted(name):
            studies += _patient(top, name, parts.get(numbers[name], ''))
    load = functools.partial(read, max_voxels=hp.max_voxels, form=hp.nifti_form)
    note = '' if complete or not hp.official else f'not the published split: {len(names)} patients, not the 100 of ACDC'
    studies, counts, bad = slice_stacks.survey('acdc', studies, load, hp.on_error)
    return slice_stacks.assemble('acdc', studies, counts, load, hp, LABELS, problems.skipped + bad, note)


PLUGIN = contracts.SourcePlugin(scale=slice_stacks.scale)


def _top(hp: ConfigDict) -> str:
    tried = [os.path.join(hp.root, *parts) for parts in (('database', hp.folder), (hp.folder,), ())]
    return next(path for path in tried if os.path.isdir(path))


def _patient(top: str, name: str, split: str) -> list[slice_stacks.Study]:
    """The two studies of a patient."""
    folder = os.path.join(top, name)
    info, file_names = _info(os.path.join(folder, 'Info.cfg')), set(os.listdir(folder))
    studies = []
    for phase in ('ED', 'ES'):
        stem = f'{name}_frame{info[phase]:02d}'
        files = tuple(slice_stacks.locate(file_names, stem + end, folder) for end in ('', '_gt'))
        studies.append(slice_stacks.Study(stem, name, {'phase': phase, 'group': info['Group']}, files, split))
    return studies


def _info(path: str) -> dict[str, Any]:
    """{'ED': int, 'ES': int, 'Group': str} of an Info.cfg."""
    pairs = [line.partition(':') for line in image.read_lines(path, _MAX_TEXT_BYTES)]
    info: dict[str, Any] = {key.strip(): value.strip() for key, _, value in pairs}
    for key in ('ED', 'ES'):
        if not re.fullmatch(r'[0-9]{1,3}', info.get(key, '')):
            raise errors.BadData(f'{path} has no line "{key}: <number of the frame>". Copy it again from where it '
                                 'came.')
        info[key] = int(info[key])
    if info['ED'] == info['ES']:
        raise errors.BadData(f'{path} names frame {info["ED"]} as both ED and ES. Copy it again from where it came.')
    return {'Group': '', **info}


def read(study: slice_stacks.Study, image: bool = True, max_voxels: int = MAX_VOXELS,
         order: Sequence[int] = range(len(LABELS)), form: str = 'auto') -> slice_stacks.Slices:
    """See Stacks.read. order: of each number in the file the index of its class in LABELS."""
    path, gt = study.files
    label = mask_values.indices(nifti.load(gt, max_voxels, study.frame, placed=False, form=form)[0], LABELS, gt).T
    label = np.array(order, np.uint8)[label]
    if study.frame is not None and not label.any():
        raise errors.BadData(f'{gt} has no label in frame {study.frame} (from 0), which the table calls '
                             f'{study.groups["phase"]}. Correct the table, or take the subject out.')
    if not image:
        slice_stacks.same_grid(nifti.head(path)[0], label.T.shape, study)
        return None, label, None
    voxels, affine = nifti.load(path, max_voxels, study.frame, placed=False, form=form)
    slice_stacks.same_grid(voxels.shape, label.T.shape, study)
    return slice_stacks.scale(voxels).T, label, affine
