"""M&Ms: short-axis cine-MR of the heart from four vendors and six hospitals, to test what was trained on ACDC.

Campello et al.: Multi-centre, multi-vendor and multi-disease cardiac segmentation: the M&Ms challenge. IEEE TMI 40
(2021). Layout, at `root` or in root/OpenDataset; .nii may stand for .nii.gz:
    <table>.csv                                                 External code, Vendor, Centre, ED, ES; any other columns
    {Training/Labeled,Validation,Testing}/<ID>/<ID>_sa.nii.gz   4D: all frames; and <ID>_sa_gt.nii.gz, likewise
Training/Unlabeled is left out, and so are rows of the table without a folder.

Cases, studies, records, rows and columns are those of jaxkd/data/sources/acdc.py: ED and ES of a subject are two
studies, <ID>_frame00 (frames as the table counts them, from 0). Labels are those of ACDC: 1 and 3 change places, since
the files have 1 for the left ventricle. Groups: vendor, centre, phase, and for slices foreground. The image of a frame
is scaled by itself.

official=True gives each case the part of its folder (Training: train, Validation: val, Testing: test).

A frame of the table without any labelled voxel is an error.
"""
import functools
import os

from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data.formats import csv_table
from jaxkd.data.source import Source
from jaxkd.data.sources import acdc
from jaxkd.data.sources.shared import loading_errors, slice_stacks

DEFAULTS = dict(
    root='',  # the folder of the table and the parts, or the one above
    table='',  # name of the CSV file; '': the one there is
    dims=2,  # 2: a case is a slice; 3: a volume
    official=False,  # the split of the challenge; False: the run draws it
    foreground=False,  # True: slices without any label are no cases
    on_error='fail',  # at bad volumes: fail (stop) or skip (read all once at the start and leave the bad ones out)
    nifti_form='auto',  # which affine of NIfTI files holds: sform, qform, or auto (refuse a file whose two disagree)
    max_voxels=acdc.MAX_VOXELS,  # most voxels of a frame; a larger one is refused
)

LABELS = acdc.LABELS
PLUGIN = acdc.PLUGIN
TO_ACDC = 0, 3, 2, 1
_PARTS = {'Training/Labeled': 'train', 'Validation': 'val', 'Testing': 'test'}
_NAMES = {'id': ('externalcode',), 'vendor': ('vendor',), 'centre': ('centre', 'center'), 'ED': ('ed',), 'ES': ('es',)}


def build(hp: ConfigDict) -> Source:
    slice_stacks.check(hp, 'mnms')
    top = next(p for p in (os.path.join(hp.root, 'OpenDataset'), hp.root) if os.path.isdir(p))
    rows, path = _rows(hp, top)
    studies: list[slice_stacks.Study] = []
    problems = loading_errors.Problems(hp.on_error)
    folder_by_name: dict[str, str] = {}
    for folder, part in _PARTS.items():
        folder_path = os.path.join(top, folder)
        for name in sorted(os.listdir(folder_path)) if os.path.isdir(folder_path) else ():
            if name.startswith('.') or not os.path.isdir(os.path.join(folder_path, name)):
                continue
            with problems.noted(name):
                if (earlier := folder_by_name.setdefault(name, folder)) != folder:
                    raise errors.BadData(f'{folder_path} and {os.path.join(top, earlier)} both hold a subject {name}. '
                                         'Keep one.')
                studies += _subject(os.path.join(folder_path, name), name, rows, path, part if hp.official else '')
    if not folder_by_name:
        raise errors.MissingInput(f'mnms: {top} holds no subject in {", ".join(_PARTS)}. Set root to OpenDataset or '
                                  'the folder above it.')
    read = functools.partial(acdc.read, max_voxels=hp.max_voxels, order=TO_ACDC, form=hp.nifti_form)
    studies, counts, bad = slice_stacks.survey('mnms', studies, read, hp.on_error)
    return slice_stacks.assemble('mnms', studies, counts, read, hp, LABELS, problems.skipped + bad)


def _rows(hp: ConfigDict, top: str) -> tuple[dict[str, tuple[int, dict[str, str]]], str]:
    """({id: (row number, {name: cell})}, path) of the table."""
    folders = dict.fromkeys((top, hp.root))
    tables = [os.path.join(f, n) for f in folders for n in sorted(os.listdir(f))
             if (n == hp.table if hp.table else n.lower().endswith('.csv') and not n.startswith('.'))]
    if not tables:
        raise errors.MissingInput(f'mnms: {top} holds no {hp.table or "table (.csv)"}. Put the table of the data set '
                                  'there.')
    if len(tables) > 1:
        raise errors.ConfigError(f'mnms: {tables[0]} and {tables[1]} are both there. Set table to the name of the one '
                                 'that is meant, or remove one.')
    path = tables[0]
    columns, rows = csv_table.read(path, ())
    normalized = [''.join(c.lower().split()) for c in columns]
    index = {}
    for name, spellings in _NAMES.items():
        matches = [j for j, c in enumerate(normalized) if c in spellings]
        if len(matches) != 1:
            raise errors.BadData(f'{path} has {len(matches)} columns for "{name}" ({" or ".join(spellings)}); it needs '
                                 f'one. Columns: {", ".join(columns)}.')
        index[name] = matches[0]
    out = {}
    for number, cells in rows:
        row = {name: cells[j] for name, j in index.items()}
        if row['id'] in out:
            raise errors.BadData(f'{path}, row {number}: names {row["id"]} a second time. Keep one of the rows.')
        out[row['id']] = number, row
    return out, path


def _subject(folder: str, name: str, rows: dict[str, tuple[int, dict[str, str]]], path: str,
             split: str) -> list[slice_stacks.Study]:
    """The two studies of a subject."""
    if name not in rows:
        raise errors.BadData(f'{path} has no row for {name}, which {folder} holds. Add it, or take the folder out.')
    number, row = rows[name]
    file_names = set(os.listdir(folder))
    files = tuple(slice_stacks.locate(file_names, name + end, folder) for end in ('_sa', '_sa_gt'))
    frames = {phase: _frame(row[phase], phase, f'{path}, row {number}') for phase in ('ED', 'ES')}
    if frames['ED'] == frames['ES']:
        raise errors.BadData(f'{path}, row {number}: ED and ES of {name} are one frame. Correct one of them.')
    groups = {'vendor': row['vendor'], 'centre': row['centre']}
    return [slice_stacks.Study(f'{name}_frame{t:02d}', name, {**groups, 'phase': phase}, files, split, t)
            for phase, t in frames.items()]


def _frame(cell: str, phase: str, location: str) -> int:
    number = cell.removesuffix('.0')  # spreadsheets
    if not (number.isascii() and number.isdigit() and len(number) < 5):
        raise errors.BadData(f'{location}: column "{phase}" is not the number of a frame. Correct it.')
    return int(number)
