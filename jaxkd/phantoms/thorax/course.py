"""Which findings a patient of the thorax phantom has, study by study.

Four hidden conditions (heart failure, infection, trauma, bed rest) draw the findings, so that they occur
together as they do in a hospital: a large heart with edema and effusion, pneumonia with consolidation. About
30 % of the studies are normal, each finding occurs in 15 to 30 %. All numbers are [our choice].
"""
import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxkd.phantoms.thorax.labeller import LABELS

# P(finding | condition); conditions act independently (noisy or). Rows: anyone, heart failure, infection, trauma, bed
# rest. Columns as LABELS.
P_CONDITION = np.array([1, 0.27, 0.26, 0.15, 0.25])
P_FINDING = np.array([
    [0.02, 0.07, 0.01, 0.00, 0.10, 0.01, 0.01, 0.01],
    [0.05, 0.85, 0.00, 0.62, 0.02, 0.50, 0.00, 0.00],
    [0.05, 0.00, 0.50, 0.00, 0.05, 0.25, 0.60, 0.00],
    [0.20, 0.00, 0.08, 0.00, 0.10, 0.15, 0.00, 0.85],
    [0.60, 0.00, 0.08, 0.03, 0.08, 0.35, 0.08, 0.02]])
# P(right alone, left alone), otherwise bilateral. Zones: P(upper, mid), otherwise lower.
SIDES = {'Atelectasis': (0.38, 0.42), 'Consolidation': (0.52, 0.46), 'Lung Opacity': (0.52, 0.46),
         'Pneumonia': (0.45, 0.35), 'Pleural Effusion': (0.30, 0.30), 'Pneumothorax': (0.52, 0.48)}
ZONES = {'Consolidation': (0.35, 0.25), 'Lung Opacity': (0.36, 0.34), 'Pneumonia': (0.10, 0.22)}


@dataclasses.dataclass(frozen=True)
class Finding:
    name: str
    sides: tuple  # of 'right', 'left'; the patient's
    zone: str  # upper, mid, lower
    severity: float  # 0 barely visible .. 1 gross
    place: tuple  # four numbers in 0..1 that place and shape it

    @property
    def label(self) -> int:
        return LABELS.index(self.name)

    @property
    def kind(self) -> str:
        """Two findings come in two shapes: a band or the collapse of a lobe; a nodule or a haze."""
        if self.name == 'Atelectasis':
            return 'lobar' if self.severity > 0.55 and len(self.sides) == 1 else 'band'
        return 'nodule' if self.name == 'Lung Opacity' and self.place[3] < 0.45 else 'haze'


def course(first: np.ndarray, study: np.ndarray) -> tuple[tuple[Finding, ...], bool]:
    """Findings of one study from two tables of uniforms [13,8]: the patient's, and those of this study.

    Rows: the five conditions, then LABELS. A row stays the patient's with probability 0.7, so that findings
    persist between studies, grow and shrink, come and go. Returns (findings, ill); ill: a condition is
    present.
    """
    stays = study[:, 7] < 0.7
    u = np.where(stays[:, None], first, study)
    u[:, 1] = np.where(stays, np.clip(first[:, 1] + 0.4 * (study[:, 1] - 0.5), 0, 1), study[:, 1])
    present = u[:5, 0] < P_CONDITION
    p = 1 - np.prod(1 - P_FINDING[present], axis=0)
    findings = []
    for k, name in enumerate(LABELS):
        row = u[5 + k]
        if row[0] < p[k]:
            right, left = SIDES.get(name, (0, 0))
            sides = (('right',) if row[2] < right else ('left',) if row[2] < right + left else ('right', 'left'))
            upper, mid = ZONES.get(name, (0, 0))
            zone = 'upper' if row[3] < upper else 'mid' if row[3] < upper + mid else 'lower'
            findings.append(Finding(name, sides, zone, float(row[1]), tuple(map(float, row[3:7]))))
    return tuple(findings), bool(present[1:].any())


def truth(findings: Sequence[Finding]) -> np.ndarray:
    """The true labels, float32 [8]. Pneumonia is a lung opacity too: the visible sign of it."""
    y = np.zeros(len(LABELS), np.float32)
    for f in findings:
        y[f.label] = 1
        if f.name == 'Pneumonia':
            y[LABELS.index('Lung Opacity')] = 1
    return y
