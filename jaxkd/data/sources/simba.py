"""SimBA: synthetic T1-weighted brains whose disease, bias and subject are known deformations (Stanley et al., JAMIA
2024).

Published archives: Borealis, DOI 10.5683/SP3/0A1IA0 and 10.5683/SP3/A9SOBZ; or whatever the public generator wrote:

    <experiment>/{train,val,test}/00012_0.318_S_1.204_D.nii.gz      _2.113_B before the ending: with bias, of that
                                                                    coefficient
    <experiment>/{train,val,test}.csv                               isv_dst, effect_dst, ..., bias_label, class_label,
                                                                    filename

The tables define the parts: train.csv, val.csv and test.csv may be anywhere below the root, and so may each file that
they list, by its name (`filepath` holds paths of the author's machine). Of two files of one name that in the folder of
its part is used. The coefficients in file name and table must agree. A file is a case and a patient.

`bias_label` is never an input: it is the group `bias` (yes, no). With `twins`, the root of another experiment of the
same coefficients, every case of an experiment without bias also has `twin`: the image with bias whose name has the same
S and D.

Files hold x, y, z in this order (the loader of SimBA swaps because SimpleITK gives z, y, x). Volumes are turned to
RAS, which mirrors axes and swaps none: [173, 211, 155] voxels of 1 mm.
"""
import collections
import contextlib
import dataclasses
import functools
import os
import re
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import SourcePlugin
from jaxkd.data import splits, volume
from jaxkd.data.formats import checks, csv_table, nifti
from jaxkd.data.source import Case, Source
from jaxkd.data.sources.shared import loading_errors
from jaxkd.data.sources.shared.loading_errors import FileSource

DEFAULTS = dict(
    root='',  # the folder of an experiment
    twins='',  # root of the experiment with bias, of the same coefficients; '': no twins
    on_error='fail',  # at bad images: fail (stop) or skip (read all once at the start and leave the bad ones out)
    nifti_form='auto',  # which affine of NIfTI files holds: sform, qform, or auto (refuse a file whose two disagree)
    max_voxels=2**26,  # most voxels of a volume; a larger one is refused
)

LABELS = ('none', 'disease')
_COLUMNS = ('isv_dst', 'effect_dst', 'bias_label', 'class_label', 'filename')
_NUMBER = r'-?[0-9.e-]{1,24}'
_NAME = re.compile(rf'(?P<number>\d{{1,9}})_(?P<s>{_NUMBER})_S_(?P<d>{_NUMBER})_D(_(?P<b>{_NUMBER})_B)?\.nii(\.gz)?')
_ROUNDED = 6e-4  # names give three decimals
_N_SHAPES = 9  # whose shape is asked
_MAX_FILES = 10**6  # files below a root


@dataclasses.dataclass
class Simba(FileSource):
    """A source of volumes (see jaxkd/data/source.py)."""

    cases: tuple
    targets: dict = dataclasses.field()  # 'label': int32 [n]
    files: tuple  # for each case {'t1': path, and 'twin'}
    max_voxels: int
    nifti_form: str
    skipped: tuple = ()
    name: str = 'simba'
    note: str = 'synthetic brains; AUROC above 0.92 is luck or a shortcut'
    labels: tuple = LABELS
    per_case = ('targets', 'files')

    @functools.cached_property
    def shape(self) -> tuple[int, ...]:
        """(x, y, z) voxels that most of the first few files have, and so all should."""
        shapes: collections.Counter[tuple[int, ...]] = collections.Counter()
        for files in self.files[:_N_SHAPES]:
            with contextlib.suppress(errors.BadData, errors.MissingInput):  # told when that case is read
                shapes[nifti.head(files['t1'])[0]] += 1
        return shapes.most_common(1)[0][0] if shapes else ()

    def __getitem__(self, i: int) -> dict[str, Any]:
        record = {key: self._read(path) for key, path in self.files[i].items()}
        return record | {'label': self.targets['label'][i], 'case': self.cases[i].id}

    def paths(self, i: int) -> tuple[str, ...]:
        return tuple(self.files[i].values())

    def _read(self, path: str) -> volume.Volume:
        shape = nifti.head(path)[0]
        if shape != self.shape:
            raise checks.bad(path, f'it has {" x ".join(map(str, shape))} voxels, others have '
                                   f'{" x ".join(map(str, self.shape))}',
                                   'Images of an experiment have one shape: take it out')
        return volume.read(path, self.max_voxels, self.nifti_form)


def build(hp: ConfigDict) -> Source:
    loading_errors.check_options('simba', hp)
    all_rows = _experiment(hp.root, 'root', hp.on_error)
    if hp.twins:
        all_rows = _paired(all_rows, _experiment(hp.twins, 'twins', hp.on_error), hp)
    rows = [row for row in all_rows if not row.wrong]
    cases = tuple(Case(r.case, r.case, split=r.part, groups={'bias': 'yes' if r.bias else 'no'}) for r in rows)
    files = tuple({'t1': r.path} | ({'twin': r.twin} if r.twin else {}) for r in rows)
    source = Simba(cases, {'label': np.array([r.label for r in rows], np.int32)}, files, hp.max_voxels,
                   hp.nifti_form, tuple((r.case, r.wrong) for r in all_rows if r.wrong))
    return loading_errors.usable(source, hp.on_error, hp.root)


@dataclasses.dataclass(frozen=True)
class _Row:
    """A row of a table. `wrong`: why it cannot be used."""

    case: str
    part: str
    label: int = 0
    bias: int = 0
    number: str = ''
    effect: tuple = ()  # (S, D) as the name gives them
    path: str = ''
    twin: str = ''
    wrong: str = ''


def _experiment(root: str, option: str, on_error: str) -> list[_Row]:
    """The _Rows of the three tables below a root."""
    tables = {}
    paths_by_name: dict[str, list[str]] = _files(root, option)
    for part in splits.NAMES:
        paths = paths_by_name.get(f'{part}.csv', [])
        if len(paths) != 1:
            raise errors.MissingInput(f'simba: {option} "{root}" holds {len(paths)} files {part}.csv, one is needed. '
                                      f'Set {option} to the folder of one experiment, with its three tables.')
        tables[part] = paths[0]
    rows, ids = [], set()
    for part, path in tables.items():
        columns, cells = csv_table.read(path, _COLUMNS)
        index = {name: columns.index(name) for name in _COLUMNS}
        for number, row in cells:
            try:
                rows.append(_row(root, part, {k: row[j] for k, j in index.items()}, paths_by_name,
                                 f'{path}, row {number}'))
                if rows[-1].case in ids:
                    raise errors.BadData(f'{path}, row {number}: {rows.pop().case} stands there a second time. Keep '
                                         'one of the rows.')
                ids.add(rows[-1].case)
            except (errors.BadData, errors.MissingInput) as e:
                if on_error == 'fail':
                    raise
                rows.append(_Row(f'{part}, row {number}', part, wrong=str(e)))
    return rows


def _row(root: str, part: str, row: dict[str, str], paths_by_name: dict[str, list[str]], location: str) -> _Row:
    name = row['filename']
    match = _NAME.fullmatch(name)
    if not match:
        raise errors.BadData(f'{location}: column "filename" is not <number>_<S>_S_<D>_D.nii.gz, with _<B>_B before '
                             'the ending where there is bias. Restore the table.')
    label, bias = (csv_table.label(row[column]) for column in ('class_label', 'bias_label'))
    try:
        differences = [float(row['isv_dst']) - float(match['s']), float(row['effect_dst']) - float(match['d'])]
    except ValueError:
        differences = []
    if label not in (0, 1) or bias not in (0, 1) or not differences:
        raise errors.BadData(f'{location}: class_label and bias_label must be 0 or 1, isv_dst and effect_dst numbers. '
                             'Restore the table.')
    if not (np.abs(differences) < _ROUNDED).all() or (match['b'] is not None) != bias:
        raise errors.BadData(f'{location}: the coefficients or the bias_label are not those of {name}. Columns or rows '
                             'were mixed up: restore the table.')
    paths = paths_by_name.get(name.lower(), [])
    in_part = [p for p in paths if os.path.basename(os.path.dirname(p)).lower() == part]
    if not paths:
        raise errors.MissingInput(f'{location}: there is no file {name} below its root. Copy it there, or remove the '
                                  'row.')
    if len(paths) > 1 and len(in_part) != 1:
        raise errors.BadData(f'{location}: {name} is there {len(paths)} times, {len(in_part)} times in a folder '
                             f'"{part}". Keep one.')
    path = csv_table.resolve(root, os.path.relpath((in_part or paths)[0], root))
    return _Row(f'{part}/{name.partition(".nii")[0]}', part, int(label), int(bias), match['number'],
                (match['s'], match['d']), path)


def _paired(rows: list[_Row], twin_rows: list[_Row], hp: ConfigDict) -> list[_Row]:
    """The rows, each with the path of its twin."""
    twins_by_effect: dict[tuple, list[_Row]] = {}
    for twin in twin_rows:
        if twin.bias and not twin.wrong:
            twins_by_effect.setdefault((twin.part, *twin.effect), []).append(twin)
    out = []
    for row in rows:
        twins = twins_by_effect.get((row.part, *row.effect), [])
        twins = [t for t in twins if t.number == row.number] if len(twins) > 1 else twins  # few share both coefficients
        problem = row.wrong
        if not problem and row.bias:
            problem = (f'Case {row.case} has bias itself. With twins, root must be the experiment without bias: '
                       'exchange the two.')
        elif not problem and (len(twins) != 1 or twins[0].label != row.label):
            problem = (f'Case {row.case} has {len(twins)} twins with bias and its class in {hp.twins}. Generate both '
                     'experiments with the same coefficients, the second with bias in all, or set twins="".')
        if problem and hp.on_error == 'fail':
            raise errors.BadData(problem)
        out.append(dataclasses.replace(row, wrong=problem, twin='' if problem else twins[0].path))
    return out


def _files(root: str, option: str) -> dict[str, list[str]]:
    """{name in lower case: paths} of all tables and volumes below a root. Links to folders are not followed."""
    if not os.path.isdir(root):
        raise errors.MissingInput(f'simba: {option} "{root}" is not a folder. Set it to that of the experiment.')
    count = 0
    paths_by_name: dict[str, list[str]] = {}
    for folder, inner, names in os.walk(root):
        inner.sort()
        for name in names:
            if name.lower().endswith(('.csv', '.nii.gz', '.nii')) and not name.startswith('.'):
                paths_by_name.setdefault(name.lower(), []).append(os.path.join(folder, name))
        count += len(names)
        if count > _MAX_FILES:
            raise errors.ConfigError(f'simba: {option} "{root}" holds more than {_MAX_FILES:,} files. Set it to the '
                                     'folder of one experiment.')
    return paths_by_name


PLUGIN = SourcePlugin(paths=('root', 'twins'))
