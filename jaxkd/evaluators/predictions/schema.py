"""The files of predictions."""
import csv
import io

import numpy as np


def to_csv(rows):
    """CSV text of a list of dicts with equal keys."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]) if rows else ['case'], lineterminator='\n')
    writer.writeheader()
    writer.writerows({k: f'{v:.7g}' if isinstance(v, (float, np.floating)) else v for k, v in r.items()} for r in rows)
    return out.getvalue()
