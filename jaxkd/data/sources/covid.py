"""covid-chestxray-dataset: chest radiographs with clinical notes, findings, lung boxes and lung masks.

Cohen et al.: COVID-19 image data collection: prospective predictions are the future. arXiv 2006.11988 (2020).
Layout: metadata.csv, images/, annotations/annotations.json (COCO boxes of both lungs),
annotations/semantic_masks_v7labs_lungs/<stem>.png, annotations/lungVAE-masks/<stem>_mask.png; the annotations
are optional.

Targets [our choice]: covid19, bacterial, fungal, read from the column `finding_clean` if there is one, else
`finding`, in both of upstream's spellings ('COVID-19, ARDS', 'Pneumonia/Viral/COVID-19'). Where no cause is
stated ('Pneumonia', 'ARDS') bacterial and fungal are uncertain (-1) and covid19 is absent (0), because this
archive states it where present; 'todo' and 'Unknown' make all three uncertain. `viral` (except covid19),
`other` (any further cause) and `no_finding` are available, but have too few or too mixed patients for training.
Notes may state the diagnosis ('PCR positive'): see `mask_terms` of the text transform.
Boxes: the lungs, without a label (-1). With `masks`, the record has the lung mask and its bounding box instead.
"""
import dataclasses
import hashlib
import json
import os

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.data import mask_values
from jaxkd.data.formats import csv_table, image
from jaxkd.data.source import NOBODY, Case, Source
from jaxkd.data.sources.shared import image_archive, loading_errors
from jaxkd.data.sources.shared.image_archive import Archive

DEFAULTS = dict(
    root='',  # the folder that holds metadata.csv
    views=('PA', 'AP', 'AP Supine'),  # views that are read; (): all
    labels=('covid19', 'bacterial', 'fungal'),  # findings that are labels; also viral, other, no_finding
    require_text=True,  # True: cases without clinical notes are left out
    boxes='annotations/annotations.json',  # boxes of the lungs; the file may be absent under this name; '': none
    masks='',  # of the lungs, in place of boxes: v7labs (with the heart shadow) or lungvae; '': none
    on_error='fail',  # at bad images: fail (stop) or skip (read all once at the start and leave the bad ones out)
    max_pixels=image.MAX_PIXELS,  # most pixels of an image; a larger one is refused
)

_MASKS = {'v7labs': 'annotations/semantic_masks_v7labs_lungs/{}.png',
          'lungvae': 'annotations/lungVAE-masks/{}_mask.png'}
_CAUSES = {  # words in lower case that state a cause
    'covid19': ('covid',),
    'viral': ('viral', 'varicella', 'influenza', 'sars', 'mers', 'herpes', 'h1n1'),
    'bacterial': ('bacterial', 'streptococcus', 'klebsiella', 'e.coli', 'legionella', 'mycoplasma',
                  'chlamydophila', 'nocardia', 'staphylococcus', 'mrsa', 'tuberculosis'),
    'fungal': ('fungal', 'pneumocystis', 'aspergillosis'),
    'other': ('lipoid', 'aspiration', 'organizing', 'organising', 'eosinophilic', 'interstitial'),
}
LABELS = (*_CAUSES, 'no_finding')
_COLUMNS = ('patientid', 'finding', 'view', 'modality', 'filename', 'clinical_notes')


@dataclasses.dataclass
class Lungs:
    """The lungs of a case as a region that is tied to no label, see Archive.regions."""

    root: str
    kind: str
    max_pixels: int

    def __call__(self, case_id: str, shape: tuple[int, ...]) -> tuple[list[int], np.ndarray]:
        """[-1] and uint8 [1,H,W] of 0 and 1; none without a mask or with an empty one, as laterals have."""
        name = _MASKS[self.kind].format(os.path.splitext(case_id)[0])
        if not os.path.lexists(os.path.join(self.root, name)):
            return [], np.zeros((0, *shape), np.uint8)
        mask = image.read(csv_table.resolve(self.root, name), self.max_pixels)
        if mask.shape != shape:
            raise errors.BadData(f'{name} is not grey of the size {shape[1]} x {shape[0]}, that of its '
                                 'image. Remove it or restore it.')
        mask = mask_values.binary(mask, name).astype(np.uint8)[None]
        return ([-1], mask) if mask.any() else ([], mask[:0])


def build(hp: ConfigDict) -> Source:
    loading_errors.check_options('covid', hp, masks=('', *_MASKS))
    image_archive.check_labels('covid', hp.labels, LABELS)
    loading_errors.check_root('covid', hp.root, 'metadata.csv')
    path = csv_table.find_file(hp.root, 'metadata.csv')
    columns, rows = csv_table.read(path, _COLUMNS)
    finding = 'finding_clean' if 'finding_clean' in columns else 'finding'
    problems = loading_errors.Problems(hp.on_error)
    cases, values, texts, files = [], [], [], {}  # files: case id -> path below root
    for number, cells in rows:
        row = dict(zip(columns, cells))
        note = ' '.join(row['clinical_notes'].split())
        included = row['modality'] == 'X-ray' and (not hp.views or row['view'] in hp.views)
        if not included or (hp.require_text and not note):
            continue
        name = row['filename']
        if not name or row['patientid'].lower() in NOBODY:
            problems(name, f'{path}, row {number}: filename or patientid is empty or none. Fill it in or remove the '
                           'row.')
            continue
        if name in files:
            problems(name, f'{path}, row {number}: {name} stands there a second time. Remove one of the rows.')
            continue
        files[name] = os.path.join(row.get('folder') or 'images', name)
        csv_table.check_inside(hp.root, files[name])
        # Images of a patient that carry the same note are one study.
        study = f'{row["patientid"]}/{hashlib.sha256(note.encode()).hexdigest()[:8]}' if note else ''
        cases.append(Case(name, row['patientid'], study, groups={'view': row['view']}))
        values.append([_value(label, row[finding]) for label in hp.labels])
        texts.append(note)
    array = np.array(values, np.float32).reshape(-1, len(hp.labels))
    boxes, sizes = _boxes(hp)
    source = Archive('covid', 'images from publications and web sites; view and hospital go along with the diagnosis',
                     tuple(hp.labels), tuple(cases), array, tuple((hp.root, files[case.id]) for case in cases),
                     tuple(texts), boxes, sizes, regions=Lungs(hp.root, hp.masks, hp.max_pixels) if hp.masks else None,
                     max_pixels=hp.max_pixels, skipped=tuple(problems.skipped))
    return loading_errors.usable(source, hp.on_error, path, f'It needs modality "X-ray", view in {tuple(hp.views)}'
                                 f'{" and clinical_notes" if hp.require_text else ""}.')


def _value(label: str, finding: str) -> int:
    """1 present, 0 absent, -1 uncertain."""
    finding = finding.lower()
    if finding in ('', 'todo', 'unknown'):
        return -1
    if finding == 'no finding':
        return int(label == 'no_finding')
    causes = {cause for cause, words in _CAUSES.items() if any(word in finding for word in words)}
    if 'covid19' in causes:
        causes.discard('viral')  # upstream writes Pneumonia/Viral/COVID-19
    if causes or label in ('covid19', 'no_finding'):
        return int(label in causes)
    return -1


def _boxes(hp: ConfigDict) -> tuple[dict[str, np.ndarray], dict[str, tuple[int, int]]]:
    """({file name: float32 [n,5]}, {file name: (width, height)}) from the COCO file."""
    path = os.path.join(hp.root, hp.boxes)
    if not hp.boxes or hp.boxes == DEFAULTS['boxes'] and not os.path.lexists(path):
        return {}, {}
    try:
        coco = json.loads(image.read_bytes(path, 2**28))
        images = {entry['id']: (entry['file_name'], int(entry['width']), int(entry['height']))
                 for entry in coco['images']}
        sizes: dict[str, tuple[int, int]] = {}
        boxes: dict[str, list[tuple]] = {}
        for entry in coco['annotations']:
            name, width, height = images[entry['image_id']]
            x, y, w, h = map(float, entry['bbox'])
            if not (x >= 0 and y >= 0 and w > 0 and h > 0):
                raise ValueError(f'the box of {name} has no area or starts outside its image')
            boxes.setdefault(name, []).append((-1, x, y, w, h))
            sizes[name] = width, height
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as e:
        raise errors.BadData(f'{path} is not a COCO file of boxes ({type(e).__name__}: {e}). Restore it or set '
                             'boxes="".') from e
    return {name: np.array(rows, np.float32) for name, rows in boxes.items()}, sizes
