"""Images with segmentation masks of your own: fundus, polyps, ultrasound; grey or colour, one image a case.

layout='folders'    root/<images>/x.jpg and root/<masks>/x<suffix>.png (Kvasir-SEG, CVC-ClinicDB, REFUGE): the same name
                    but for its ending, .png .jpg .jpeg .bmp .tif .tiff. Both may be one folder when masks have a suffix
layout='class'      root/<class>/benign (1).png and benign (1)_mask.png (BUSI), for each of the folders `folders`;
                    groups: class
Further masks x<suffix>_1, x<suffix>_2, ... of an image are joined: each pixel has the highest class of all of them.
Masks of a second reader, x<second_suffix> in the folder `second_masks` (or that of the masks), train nothing: the
evaluator `segmentation` measures them against those of the first. Some images may lack one.

`values` gives the grey value of each of `labels`, in their order:
    polyps, ultrasound   labels ('background', 'lesion'), values (0, 255)
    REFUGE               labels ('background', 'disc', 'cup'), values (255, 128, 0)
A pixel between them takes the nearest value if that is at most `tolerance` away, and is an error otherwise. Masks in
JPEG, and those with soft edges, need tolerance=127, which for (0, 255) means: above 127 is the lesion. The tolerance
never reaches half the way from one value to another, values closer than 16 have none, and an even patch of a grey that
is more than 16 away is a class that is not listed: an error; so is, with a tolerance up to 16, one of another grey than
its value where that has even patches, too. A mask that is no JPEG and whose values are below the
number of classes, yet not in `values`, holds indices: it is refused rather than read as black.
PNG, BMP and TIFF of 1, 2 or 4 bits and with a palette hold numbers: where all of them are in `values`, they count,
otherwise the greys that are shown. All masks are read at the start.

Ids are the names without ending, in layout='class' after the folder, as benign/benign (1). Patients, who never part in
a split, are
    in cases.csv, if it is there: columns image (an id, or with its ending), patient_id, optional split, and `groups`
    in the names, if `patient` is given, a regular expression whose one group is found at the start, as r'(\\d+)_'
or else every image is a patient of its own.

duplicates='drop' reads all images at the start and keeps one of several with equal pixels, the first by name; none
where they are in folders of different classes, since the class is then unknown. `skipped` lists and `note` counts
them.

on_error='fail' stops at the first bad image or mask when it is asked for. 'skip' reads all at the start, leaves the bad
ones out and lists them in `skipped`. An image without a mask is bad, and so is a mask without an image.
"""
import collections
import concurrent.futures
import dataclasses
import hashlib
import os
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy import ndimage

from jaxkd import errors
from jaxkd.contracts import SourcePlugin
from jaxkd.data import mask_values, splits
from jaxkd.data.formats import bitmap, checks, csv_table, image, picture
from jaxkd.data.source import Case, Source
from jaxkd.data.sources.shared import case_files, loading_errors
from jaxkd.data.sources.shared.loading_errors import FileSource
from jaxkd.runtime import log

DEFAULTS = dict(
    root='',  # the folder of the images and masks
    layout='folders',  # folders (one of images, one of masks) or class (one of each class)
    images='images',  # layout='folders': the folder of images below root
    masks='masks',  # layout='folders': the folder of masks below root
    folders=('benign', 'malignant'),  # layout='class': the folders of classes; BUSI has normal, too, images without a
    # lesion
    suffix='',  # of the names of masks; layout='class' takes _mask for ''
    second_masks='',  # folder of the masks of a second reader; '': that of `masks`
    second_suffix='',  # of the names of these masks; without both options there is no second reader
    exclude='',  # regular expression of names, without ending, to leave out, such as masks of another reader; '': none
    labels=('background', 'lesion'),  # names of the classes, background first
    values=(0, 255),  # grey value of each label in the masks
    tolerance=16,  # how far a grey may be from its value in a mask, 0 to 255; 127 for soft edges and JPEG
    table='cases.csv',  # name of the table of patients, which may be absent under this name; '': none
    patient='',  # regular expression whose one group is the patient at the start of a name; '': none
    groups=(),  # columns of the table for subgroup tables
    allow_ids=(),  # patient ids that look like none, such as 'NA', and are ids
    duplicates='drop',  # images of equal pixels: drop all but one, or keep them
    on_error='fail',  # at bad images and masks: fail (stop) or skip (read all once at the start and leave the bad ones
    # out)
    max_pixels=image.MAX_PIXELS,  # most pixels of an image; a larger one is refused
)

_ENDINGS = ('.png', '.jpg', '.jpeg', *bitmap.ENDINGS)
_COLOURED = 8  # by which the channels of a grey mask may differ, in JPEG
_NOISE, _PATCH = 16, 5  # greys by which JPEG changes an even patch; pixels [our choice]


@dataclasses.dataclass
class Masks(FileSource):
    """A source (see jaxkd/data/source.py)."""

    cases: tuple
    files: tuple  # for each case (path of the image, paths of its masks, paths of those of a second reader)
    labels: tuple
    grey_values: tuple
    tolerance: int
    max_pixels: int
    skipped: tuple = ()
    note: str = ''
    name: str = 'masks'
    per_case = ('files',)

    def __getitem__(self, i: int) -> dict[str, Any]:
        path, masks, _ = self.files[i]
        pixels = picture.read(path, self.max_pixels)
        return dict(image=pixels, label=self._joined(masks, pixels.shape[:2]), spacing=np.full(3, np.nan, np.float32),
                    case=self.cases[i].id)

    def second_reader(self, i: int) -> np.ndarray | None:
        """uint8 [H,W], the label of case i by a second reader; None without one."""
        _, masks, second = self.files[i]
        return self._joined(second, self._label(masks[0]).shape) if second else None

    def paths(self, i: int) -> tuple[str, ...]:
        path, masks, second = self.files[i]
        return path, *masks, *second

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), 'values': self.grey_values}

    def _joined(self, masks: Sequence[str], shape: tuple[int, ...]) -> np.ndarray:
        return np.max([self._label(mask, shape) for mask in masks], axis=0)

    def _label(self, path: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
        mask = _greys(path, self.max_pixels, self.grey_values)
        if shape and mask.shape != shape:
            raise checks.bad(path, f'it is {mask.shape[1]} x {mask.shape[0]}, its image {shape[1]} x {shape[0]}',
                             'Restore the mask of this image')
        return indices(mask, self.grey_values, self.tolerance, path)


def build(hp: ConfigDict) -> Source:
    _check(hp)
    pairs, bad = _pairs(hp)
    case_facts = _patients(hp, {**pairs, **bad})
    cases, files = [], []
    for name, (path, masks, second, group) in sorted(pairs.items()):
        try:
            patient, split, groups = case_facts(name)
        except errors.BadData as e:
            bad[name] = e
            continue
        cases.append(Case(name, patient, name, split, {**group, **groups}))
        files.append((path, tuple(masks), tuple(second)))
    if bad and hp.on_error == 'fail':
        raise bad[min(bad)]
    used = [os.path.abspath(path) for image_path, masks, second in files for path in (image_path, *masks, *second)]
    case_files.report_unused('masks', hp.root, [hp.table, *used],
                             f'pictures of the names of images, masks with the suffix "{hp.suffix}"')
    loading_errors.log_second_reader('masks', [second for *_, second in files], hp.second_masks or hp.second_suffix)
    source = Masks(tuple(cases), tuple(files), tuple(hp.labels), tuple(hp['values']), hp.tolerance, hp.max_pixels,
                   tuple((name, str(bad[name])) for name in sorted(bad)))
    if hp.duplicates == 'drop' and (twice := _duplicates(source)):
        source = dataclasses.replace(source.without(twice), note=f'{len(twice)} duplicates of images were left out')
    source = loading_errors.usable(source, hp.on_error, hp.root)
    _report_classes(source)
    return source


def _report_classes(source: Masks) -> None:
    """Reads all masks, so that a value without a class is found before training; names classes that no mask holds."""
    def classes(i: int) -> set[int]:
        source.second_reader(i)
        return {k for mask in source.files[i][1] for k in np.unique(source._label(mask)).tolist()}
    with concurrent.futures.ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        found = log.progress(pool.map(classes, range(len(source))), 'masks: reading masks', len(source))
        mask_values.report_absent('masks', source.labels, set().union(*found))


def read(path: str, max_pixels: int) -> np.ndarray:
    """uint8 or uint16 [H,W], or uint8 [H,W,3]."""
    return (bitmap if path.lower().endswith(bitmap.ENDINGS) else image).read(path, max_pixels)


def indices(mask: np.ndarray, values: Sequence[int], tolerance: int, path: str) -> np.ndarray:
    """uint8 [H,W], for each pixel the index of the nearest of `values`; of two that are as near, the higher value."""
    counts = mask_values.distinct(mask)
    present = np.array([*counts], int)
    order = np.argsort(values)[::-1]
    distance = np.abs(present[:, None] - np.array(values)[order])
    nearest = order[distance.argmin(axis=1)]
    tolerance = min(tolerance, _room(values))
    far = distance.min(axis=1) > tolerance
    if tolerance > _NOISE and (even := _even(mask)).size:
        far |= np.isin(present, even) & (distance.min(axis=1) > _NOISE)
    elif (unlisted := ~np.isin(present, values)).any():  # an even patch beside one of the value itself is no noise
        even = _even(mask)
        far |= unlisted & np.isin(present, even) & np.isin(np.array(values)[nearest], even)
    lossy = path.lower().endswith(('.jpg', '.jpeg'))
    if far.any() or not lossy and 0 < present.max() < len(values) and {*present.tolist()} - {*values}:
        shown = ', '.join(f'{n} ({counts[n]:,})' for n in present[far].tolist()[:8])
        raise checks.bad(path, f'its grey values are {_shorten(present)}, and values are {tuple(values)}' + (
            f' with a tolerance of {tolerance}, of which no class has (pixels): {shown}' if far.any() else
            ': it seems to hold indices of classes'),
            'Correct labels and values of the source' + (
            '; tolerance=127 takes the nearest, for JPEG and soft edges' if _room(values) else
            ', or save the mask without what has no class'))
    if mask.dtype == np.uint8:
        lookup = np.zeros(256, np.uint8)
        lookup[present] = nearest
        return lookup[mask]
    return nearest[np.searchsorted(present, mask)].astype(np.uint8)


def _room(values: Sequence[int]) -> int:
    """The largest tolerance with which no grey could be of another class that lies between two of `values`."""
    gap = int(np.diff(np.sort(values)).min())
    return (gap - 1) // 2 if gap >= _NOISE else 0


def _even(mask: np.ndarray) -> np.ndarray:
    """The values that fill a square of _PATCH pixels somewhere: edges, however soft, do not."""
    low, high = ndimage.minimum_filter(mask, _PATCH), ndimage.maximum_filter(mask, _PATCH)
    return np.unique(mask[low == high])


def _greys(path: str, max_pixels: int, values: Sequence[int]) -> np.ndarray:
    """uint8 or uint16 [H,W]: the numbers of a file of few bits or with a palette if all are in `values`, else greys."""
    stored = (bitmap if path.lower().endswith(bitmap.ENDINGS) else image).stored_numbers(path, max_pixels)
    numbers = [] if stored is None else np.unique(stored).tolist()
    fits = stored is not None and {*numbers} <= {*values}
    mask = read(path, max_pixels)
    if mask.ndim == 2:
        return stored if stored is not None and fits else mask
    coloured = np.ptp(mask, axis=2).max() > _COLOURED
    if stored is not None and fits:
        if not coloured and {*np.unique(mask).tolist()} <= {*values} and (mask[..., 0] != stored).any():
            raise checks.bad(path, 'the numbers of its palette and the greys of these are both values, and differ',
                             'Save the mask in grey, without a palette')
        return stored
    if coloured:
        of_palette = '' if stored is None else f', and the numbers of its palette ({_shorten(numbers)}) are not values'
        raise checks.bad(path, f'it is coloured{of_palette}', 'Save the mask in grey' + (
            '' if stored is None else ', or set values of the source to the numbers'))
    return mask[..., 0]


def _shorten(numbers: Sequence[int] | np.ndarray) -> str:
    return ', '.join(map(str, numbers[:8])) + (', ...' if len(numbers) > 8 else '')


def _stems(folder: str) -> dict[str, str]:
    """{stem: path} of the pictures in a folder. BadData for a stem that comes twice."""
    out: dict[str, str] = {}
    try:
        names = sorted(os.listdir(folder))
    except OSError as e:
        raise errors.MissingInput(f'masks: {folder} is not a folder that can be read. Set root, images, masks or '
                                  'folders to where the pictures are.') from e
    for name in names:
        stem, ending = os.path.splitext(name)
        if ending.lower() in _ENDINGS and not name.startswith('.'):
            if stem in out:
                raise errors.BadData(f'{folder} has both {os.path.basename(out[stem])} and {name}. Keep one of them.')
            out[stem] = os.path.join(folder, name)
    return out


def _pairs(hp: ConfigDict) -> tuple[dict[str, tuple], dict[str, errors.JaxkdError]]:
    """({name: (image, [masks], [masks of a second reader], groups)}, {name: error})."""
    bad: dict[str, errors.JaxkdError] = {}
    pairs: dict[str, tuple] = {}
    for folder in hp.folders if hp.layout == 'class' else ('',):
        places = [os.path.join(hp.root, folder or name) for name in (hp.images, hp.masks, hp.second_masks or hp.masks)]
        images, masks, others = ({stem: path for stem, path in _stems(place).items()
                                  if not (hp.exclude and re.fullmatch(hp.exclude, stem))} for place in places)
        suffix = hp.suffix or '_mask' * (hp.layout == 'class')
        second = _of_suffix(others, hp.second_suffix) if hp.second_masks or hp.second_suffix else {}
        second_paths = {path for paths in second.values() for path in paths}
        masks_by_stem = _of_suffix({stem: path for stem, path in masks.items() if path not in second_paths}, suffix)
        if places[0] in places[1:]:
            mask_paths = {path for paths in masks_by_stem.values() for path in paths} | second_paths
            images = {stem: path for stem, path in images.items() if path not in mask_paths}
        masks_by_stem, second = (_in_letter_case_of(images, by_stem) for by_stem in (masks_by_stem, second))
        for stem in images.keys() | masks_by_stem.keys():
            name = f'{folder}/{stem}' if folder else stem
            if stem not in masks_by_stem:
                bad[name] = errors.MissingInput(f'{images[stem]} has no mask {stem}{suffix} in {places[1]}. Add it, or '
                                                'remove the image.')
            elif stem not in images:
                bad[name] = errors.MissingInput(f'{masks_by_stem[stem][0]} is a mask without an image in {places[0]}. '
                                                'Add it, or remove the mask.')
            else:
                pairs[name] = (images[stem], masks_by_stem[stem], second.get(stem, ()),
                               {'class': folder} if folder else {})
    return pairs, bad


def _of_suffix(pictures: dict[str, str], suffix: str) -> dict[str, list[str]]:
    """{stem of an image: paths of its masks} among {stem: path}."""
    out: dict[str, list[str]] = {}
    for stem, path in pictures.items():
        if match := re.fullmatch(rf'(.*?){re.escape(suffix)}(?:_\d+)?' if suffix else '(.*)', stem, re.DOTALL):
            out.setdefault(match[1], []).append(path)
    return out


def _in_letter_case_of(images: Collection[str], masks: dict[str, list[str]]) -> dict[str, list[str]]:
    """{stem: masks}, where a stem without an image has that of the one image that differs in letter case alone."""
    free: dict[str, list[str]] = {}
    for stem in images:
        if stem not in masks:
            free.setdefault(stem.lower(), []).append(stem)
    counts = collections.Counter(stem.lower() for stem in masks if stem not in images)
    renamed = {stem: free[stem.lower()][0] for stem in masks if stem not in images
               and len(free.get(stem.lower(), ())) == counts[stem.lower()] == 1}
    return {renamed.get(stem, stem): paths for stem, paths in masks.items()}


def _patients(hp: ConfigDict, names: Collection[str]) -> Callable[[str], tuple[str, str, dict[str, str]]]:
    """name -> (patient, split, groups), or BadData."""
    path = csv_table.find_file(hp.root, hp.table)
    if not hp.table or hp.table == DEFAULTS['table'] and not os.path.lexists(path):
        pattern = re.compile(hp.patient)

        def by_name(name: str) -> tuple[str, str, dict[str, str]]:
            if not hp.patient:
                return name, '', {}
            match = pattern.match(os.path.basename(name))
            if not (match and match[1]):
                raise errors.BadData(f'Case {name}: its name does not begin as masks.patient = "{hp.patient}" says. '
                                     'Rename the image, or correct the expression.')
            return match[1], '', {}
        return by_name
    if hp.patient:
        raise errors.ConfigError(f'masks: both {path} and patient = "{hp.patient}" say whose an image is. Unset one, '
                                 'or set table="".')
    columns, rows = csv_table.read(path, ('image', 'patient_id', *hp.groups))
    at = columns.index('patient_id')
    csv_table.check_patients(path, 'patient_id', [(number, cells[at]) for number, cells in rows], hp.allow_ids)
    facts_by_name = {}
    for number, cells in rows:
        row = dict(zip(columns, cells))
        stem, ending = os.path.splitext(row['image'])
        name = stem if ending.lower() in _ENDINGS else row['image']
        if row.get('split', '') not in ('', *splits.NAMES) or name in facts_by_name:
            problem = ('names an image a second time' if name in facts_by_name else
                       f'needs a split that is empty or one of {", ".join(splits.NAMES)}')
            raise errors.BadData(f'{path}, row {number} ({row["image"]}): {problem}. Correct it.')
        facts_by_name[name] = row['patient_id'], row.get('split', ''), {g: row[g] for g in hp.groups}
    if unknown := facts_by_name.keys() - names:
        raise errors.BadData(f'{path} names {min(unknown)}, which is no image.{errors.nearest(min(unknown), names)} '
                             'Write the name of its file.')

    def by_table(name: str) -> tuple[str, str, dict[str, str]]:
        if name not in facts_by_name:
            raise errors.BadData(f'{path} has no row for the image {name}. Add it, or remove the image.')
        return facts_by_name[name]
    return by_table


def _duplicates(source: Masks) -> dict[int, str]:
    """{index: reason} of the images to leave out so that none comes twice. Those that do not load are passed over."""
    def digest(i: int) -> bytes | int:
        try:
            pixels = read(source.files[i][0], source.max_pixels)
        except (errors.BadData, errors.MissingInput):
            return i
        return hashlib.sha256(f'{pixels.shape}{pixels.dtype}'.encode() + pixels.tobytes()).digest()
    with concurrent.futures.ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
        digests = log.progress(pool.map(digest, range(len(source))), 'masks: looking for duplicates', len(source))
        indices_by_digest: dict[bytes | int, list[int]] = {}
        for i, key in enumerate(digests):
            indices_by_digest.setdefault(key, []).append(i)
    out: dict[int, str] = {}
    for first, *others in (group for group in indices_by_digest.values() if len(group) > 1):
        names = [source.cases[i].id for i in (first, *others)]
        if len({source.cases[i].groups.get('class') for i in (first, *others)}) > 1:
            out |= {i: f'{" and ".join(names)} are one image in folders of different classes.'
                    for i in (first, *others)}
        else:
            out |= {i: f'{source.cases[i].id} has the same pixels as {names[0]}.' for i in others}
    return out


def _check(hp: ConfigDict) -> None:
    loading_errors.check_options('masks', hp, layout=('folders', 'class'), duplicates=('drop', 'keep'))
    loading_errors.check_root('masks', hp.root, 'the images')
    labels, grey = tuple(hp.labels), hp['values']  # hp.values is the method
    if (len(labels) < 2 or len({*labels}) < len(labels) or len(grey) != len(labels) or len({*grey}) < len(grey)
            or min(grey) < 0):
        raise errors.ConfigError(f'masks: labels = {labels} and values = {tuple(grey)} must be as many, two or more, '
                                 'and no name or grey value may come twice.')
    if hp.tolerance < 0:
        raise errors.ConfigError(f'masks: tolerance = {hp.tolerance} must not be negative.')
    if hp.layout == 'folders' and hp.images == hp.masks and not hp.suffix:
        raise errors.ConfigError('masks: images and masks are one folder, so suffix must say which files are masks.')
    if hp.second_masks and (hp.layout == 'class' or not hp.second_suffix and hp.second_masks in (hp.masks, hp.images)):
        raise errors.ConfigError(f'masks: second_masks = "{hp.second_masks}" is no folder of its own. Set '
                                 'second_suffix to what the names of its masks end in.')
    try:
        re.compile(hp.exclude)
    except re.error as e:
        raise errors.ConfigError(f'masks: exclude = "{hp.exclude}" is no regular expression ({e}).') from e
    try:
        groups = re.compile(hp.patient).groups
    except re.error as e:
        raise errors.ConfigError(f'masks: patient = "{hp.patient}" is no regular expression ({e}).') from e
    if hp.patient and groups != 1:
        raise errors.ConfigError(f'masks: patient = "{hp.patient}" must have one group, in parentheses; it has '
                                 f'{groups}.')


PLUGIN = SourcePlugin(case_count=lambda hp, most: min(len(_pairs(hp)[0]), most))
