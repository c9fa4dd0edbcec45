"""MS-CXR: boxes around what phrases of MIMIC-CXR reports say, drawn by radiologists (Boecking et al., ECCV 2022).

    MS_CXR_Local_Alignment_v1.1.0.csv   dicom_id, category_name, label_text, path, x, y, w, h, image_width, image_height, split

Boxes are in pixels of the original image. v1.0.0 has no column split. A row is a box; an image may have several.
"""
import dataclasses
import os

import numpy as np

from jaxkd.data.formats import csv_table

FINDINGS = ('Atelectasis', 'Cardiomegaly', 'Consolidation', 'Edema', 'Lung Opacity', 'Pleural Effusion', 'Pneumonia',
            'Pneumothorax')
TABLES = ('MS_CXR_Local_Alignment_v1.1.0.csv', 'MS_CXR_Local_Alignment_v1.0.0.csv')
_COLUMNS = ('dicom_id', 'category_name', 'x', 'y', 'w', 'h', 'image_width', 'image_height')


@dataclasses.dataclass
class Drawn:
    """Of an image: the part of MS-CXR ('all' without column split), (width, height), and rows of label, x, y, w, h."""

    part: str
    size: tuple
    rows: list

    @property
    def boxes(self):
        return np.array(self.rows, np.float32).reshape(-1, 5)


def read(path, labels, bad):
    """({dicom_id: Drawn}, all images that rows name); boxes of findings that are not among `labels` are left out.

    bad(dicom_id, reason) is told of rows that cannot be used: their images are named all the same.
    """
    columns, rows = csv_table.read(path, _COLUMNS)
    at, split = [columns.index(name) for name in _COLUMNS], columns.index('split') if 'split' in columns else None
    found, named = {}, set()
    for number, cells in rows:
        dicom, finding, *numbers = (cells[j] for j in at)
        named.add(dicom)
        part, size, wrong = cells[split] if split is not None else 'all', (0, 0), ''
        try:
            x, y, w, h, width, height = map(float, numbers)
            if not (x >= 0 and y >= 0 and all(0 < side < 1e6 for side in (w, h, width, height))):  # false for nan
                raise ValueError
            size = int(width), int(height)
        except ValueError:
            wrong = 'needs numbers x, y >= 0 and w, h, image_width, image_height > 0'
        if not dicom or not part:
            wrong = f'column "{"split" if dicom else "dicom_id"}" is empty'
        elif finding not in FINDINGS:
            wrong = f'column "category_name" is none of {", ".join(FINDINGS)}'
        elif not wrong and found.setdefault(dicom, Drawn(part, size, [])) != Drawn(part, size, found[dicom].rows):
            wrong = 'its image has another size or split in an earlier row'
        if wrong:
            bad(dicom, f'{path}, row {number}: {wrong}. Restore the table.')
        elif finding in labels:
            found[dicom].rows.append((labels.index(finding), x, y, w, h))
    return found, named - {''}


def table_in(folder):
    """The path of the table in a folder, or '' where there is none."""
    return next((path for name in TABLES if os.path.isfile(path := os.path.join(folder, name))), '')
