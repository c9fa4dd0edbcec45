"""MS-CXR: boxes around what phrases of MIMIC-CXR reports say, drawn by radiologists (Boecking et al., ECCV 2022).

    MS_CXR_Local_Alignment_v1.1.0.csv   dicom_id, category_name, label_text, path, x, y, w, h, image_width,
                                        image_height, split

Boxes are in pixels of the original image. v1.0.0 has no column split. A row is a box; an image may have several.
"""
import dataclasses
import os
from collections.abc import Callable, Sequence

import numpy as np

from jaxkd.data.formats import csv_table

FINDINGS = ('Atelectasis', 'Cardiomegaly', 'Consolidation', 'Edema', 'Lung Opacity', 'Pleural Effusion', 'Pneumonia',
            'Pneumothorax')
TABLES = ('MS_CXR_Local_Alignment_v1.1.0.csv', 'MS_CXR_Local_Alignment_v1.0.0.csv')
_COLUMNS = ('dicom_id', 'category_name', 'x', 'y', 'w', 'h', 'image_width', 'image_height')


@dataclasses.dataclass
class ImageBoxes:
    """Of an image: the part of MS-CXR ('all' without column split), (width, height), and rows of label, x, y, w, h."""

    part: str
    size: tuple
    rows: list

    @property
    def boxes(self) -> np.ndarray:
        return np.array(self.rows, np.float32).reshape(-1, 5)


def read(path: str, labels: Sequence[str], bad: Callable[[str, str], None]) -> tuple[dict[str, ImageBoxes], set[str]]:
    """({dicom_id: ImageBoxes}, all images that rows name); boxes of findings that are not among `labels` are left out.

    bad(dicom_id, reason) is told of rows that cannot be used: their images are named all the same.
    """
    columns, rows = csv_table.read(path, _COLUMNS)
    indices, split = [columns.index(name) for name in _COLUMNS], columns.index('split') if 'split' in columns else None
    named_images: set[str] = set()
    boxes_by_image: dict[str, ImageBoxes] = {}
    for number, cells in rows:
        dicom_id, finding, *numbers = (cells[j] for j in indices)
        named_images.add(dicom_id)
        part, size, problem = cells[split] if split is not None else 'all', (0, 0), ''
        try:
            x, y, w, h, width, height = map(float, numbers)
            if not (x >= 0 and y >= 0 and all(0 < side < 1e6 for side in (w, h, width, height))):  # false for nan
                raise ValueError
            size = int(width), int(height)
        except ValueError:
            problem = 'needs numbers x, y >= 0 and w, h, image_width, image_height > 0'
        if not dicom_id or not part:
            problem = f'column "{"split" if dicom_id else "dicom_id"}" is empty'
        elif finding not in FINDINGS:
            problem = f'column "category_name" is none of {", ".join(FINDINGS)}'
        elif not problem:
            earlier = boxes_by_image.setdefault(dicom_id, ImageBoxes(part, size, []))
            if (earlier.part, earlier.size) != (part, size):
                problem = 'its image has another size or split in an earlier row'
        if problem:
            bad(dicom_id, f'{path}, row {number}: {problem}. Restore the table.')
        elif finding in labels:
            boxes_by_image[dicom_id].rows.append((labels.index(finding), x, y, w, h))
    return boxes_by_image, named_images - {''}


def table_in(folder: str) -> str:
    """The path of the table in a folder, or '' where there is none."""
    return next((path for name in TABLES if os.path.isfile(path := csv_table.in_any_case(folder, name))), '')
