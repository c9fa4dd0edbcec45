"""A folder of images and reports: radiographs of the thorax phantom as PNG, cases.csv, boxes.csv, as `folder` reads it.

    cases.csv, boxes.csv, images/p000000_i0.png ...
"""
import csv
import io
import os
from collections.abc import Iterable, Sequence

from jaxkd.data.sources import folder as source
from jaxkd.phantoms import encode
from jaxkd.phantoms.thorax import archive
from jaxkd.runtime import files, log

IMAGES = 'images'


def write(folder: str | os.PathLike, patients: int, size: int = 64, seed: int = 0, difficulty: float = 0.5) -> None:
    """Write all images of the patients, a row for each.

    size: pixels of the square images, 32..1024. difficulty: 0 plain .. 1 faint findings and noise. Raises ConfigError,
    CannotWrite.
    """
    phantom = archive.build(patients, size, seed, difficulty)
    cases: list[Sequence] = [('patient_id', 'study_id', 'image', 'view', 'text', *phantom.labels)]
    boxes: list[Sequence] = [('image', 'label', 'x', 'y', 'w', 'h')]
    for i, case in enumerate(log.progress(phantom.cases, 'writing folder')):
        record, name = phantom[i], f'{IMAGES}/{case.id}.png'
        files.write(os.path.join(folder, name), encode.picture(record['image'], 'png'))
        cells = [archive.CELLS.get(value, '') for value in record['label']]
        cases.append((case.patient, case.study, name, case.groups['view'], record['text'], *cells))
        boxes += [(name, phantom.labels[int(label)], *(f'{v:g}' for v in box)) for label, *box in record['boxes']]
    for file, rows in ((source.DEFAULTS['table'], cases), (source.DEFAULTS['boxes'], boxes)):
        files.write(os.path.join(folder, str(file)), _csv(rows))


def _csv(rows: Iterable[Sequence]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows(rows)
    return text.getvalue()
