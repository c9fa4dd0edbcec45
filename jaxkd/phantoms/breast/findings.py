"""Descriptors, assessment and pathology of a lesion of the breast phantom.

Descriptors are drawn first, in the words and about the frequencies of the tables of CBIS-DDSM, then the pathology from
them,

    P(malignant | descriptors) = sigmoid(RISK of the first descriptor + RISK of the second)

where the risk of a hyphen-joined value is that of its worst token. `ceiling` is the AUROC of the best reader of the
descriptors, a sum over all pairs of them. The assessment is the risk plus a term of the truth and noise, cut into
BI-RADS categories: it is more informative than the descriptors. Subtlety is the contrast of the lesion and independent
of its pathology. All numbers are [our choice].
"""
import dataclasses
import functools
from typing import Any

import numpy as np

KINDS = ('mass', 'calcification')
COLUMNS = {'mass': ('mass shape', 'mass margins'), 'calcification': ('calc type', 'calc distribution')}

_SMOOTH = {'CIRCUMSCRIBED': 0.40, 'OBSCURED': 0.25, 'ILL_DEFINED': 0.18, 'MICROLOBULATED': 0.10, 'SPICULATED': 0.04,
           'CIRCUMSCRIBED-OBSCURED': 0.03}
_ROUGH = {'SPICULATED': 0.47, 'ILL_DEFINED': 0.38, 'MICROLOBULATED': 0.08, 'ILL_DEFINED-SPICULATED': 0.07}
_DISTORTED = {'SPICULATED': 0.40, 'ILL_DEFINED': 0.30, 'NA': 0.30}
_VAGUE = {'NA': 0.5, 'ILL_DEFINED': 0.3, 'OBSCURED': 0.2}
_SUSPECT = {'CLUSTERED': 0.66, 'SEGMENTAL': 0.13, 'LINEAR': 0.06, 'REGIONAL': 0.09, 'CLUSTERED-LINEAR': 0.03,
            'DIFFUSELY_SCATTERED': 0.03}
_CAST = {'CLUSTERED': 0.40, 'LINEAR': 0.35, 'SEGMENTAL': 0.25}
_HARMLESS = {'NA': 0.75, 'CLUSTERED': 0.15, 'REGIONAL': 0.05, 'DIFFUSELY_SCATTERED': 0.05}
# First descriptor: (its probability, P(second descriptor | it)).
VALUES = {
    'mass': {
        'ROUND': (0.10, _SMOOTH), 'OVAL': (0.25, _SMOOTH), 'LOBULATED': (0.23, _SMOOTH), 'IRREGULAR': (0.27, _ROUGH),
        'IRREGULAR-ARCHITECTURAL_DISTORTION': (0.04, _ROUGH), 'ARCHITECTURAL_DISTORTION': (0.05, _DISTORTED),
        'LYMPH_NODE': (0.03, {'CIRCUMSCRIBED': 0.85, 'OBSCURED': 0.15}),
        'FOCAL_ASYMMETRIC_DENSITY': (0.015, _VAGUE), 'ASYMMETRIC_BREAST_TISSUE': (0.015, _VAGUE)},
    'calcification': {
        'PLEOMORPHIC': (0.42, _SUSPECT), 'AMORPHOUS': (0.10, _SUSPECT), 'PUNCTATE': (0.09, _SUSPECT),
        'PUNCTATE-PLEOMORPHIC': (0.02, _SUSPECT), 'FINE_LINEAR_BRANCHING': (0.07, _CAST),
        'PLEOMORPHIC-FINE_LINEAR_BRANCHING': (0.03, _CAST), 'VASCULAR': (0.06, {'NA': 0.9, 'LINEAR': 0.1}),
        'LUCENT_CENTER': (0.06, _HARMLESS), 'LUCENT_CENTERED': (0.02, _HARMLESS), 'COARSE': (0.03, _HARMLESS),
        'ROUND_AND_REGULAR': (0.03, _HARMLESS), 'ROUND_AND_REGULAR-LUCENT_CENTER': (0.02, _HARMLESS),
        'EGGSHELL': (0.015, _HARMLESS), 'DYSTROPHIC': (0.01, _HARMLESS), 'LARGE_RODLIKE': (0.01, _HARMLESS),
        'MILK_OF_CALCIUM': (0.0075, _HARMLESS), 'SKIN': (0.0075, _HARMLESS)}}
RISK = {
    'mass': ({'ROUND': -0.1, 'OVAL': -0.4, 'LOBULATED': 0.0, 'IRREGULAR': 0.6, 'ARCHITECTURAL_DISTORTION': 0.5,
              'LYMPH_NODE': -4.0, 'FOCAL_ASYMMETRIC_DENSITY': -0.6, 'ASYMMETRIC_BREAST_TISSUE': -0.5},
             {'CIRCUMSCRIBED': -2.2, 'OBSCURED': -1.8, 'MICROLOBULATED': 0.2, 'ILL_DEFINED': 0.4, 'SPICULATED': 1.7,
              'NA': -0.8}),
    'calcification': ({'PLEOMORPHIC': 0.3, 'AMORPHOUS': -0.9, 'PUNCTATE': -1.6, 'FINE_LINEAR_BRANCHING': 1.3,
                       'VASCULAR': -5.0, 'LUCENT_CENTER': -5.0, 'LUCENT_CENTERED': -5.0, 'COARSE': -4.0,
                       'ROUND_AND_REGULAR': -3.0, 'EGGSHELL': -5.0, 'DYSTROPHIC': -4.0, 'LARGE_RODLIKE': -4.0,
                       'MILK_OF_CALCIUM': -4.0, 'SKIN': -5.0},
                      {'CLUSTERED': 0.0, 'SEGMENTAL': 0.6, 'LINEAR': 0.9, 'REGIONAL': -0.2, 'DIFFUSELY_SCATTERED': -1.2,
                       'NA': -1.0})}
_SUBTLETY = (0.06, 0.15, 0.27, 0.25, 0.27)  # P(1), ..., P(5)
_CUTS = (-3.6, -1.4, 1.9)  # of the reader's suspicion: below, 2; then 3; then 4; above, 5
_HINT, _DOUBT, _NOT_YET = 0.9, 0.7, 0.06  # weight of the truth, spread of opinion, fraction of category 0 (incomplete)


@dataclasses.dataclass(frozen=True)
class Lesion:
    kind: str  # of KINDS
    number: int  # within its kind in its breast, from 1; the tables' "abnormality id"
    first: str  # shape or type
    second: str  # margins or distribution
    malignant: bool
    assessment: int  # 0, 2 ... 5
    subtlety: int  # 1 faint ... 5 plain
    place: tuple  # eight numbers in 0..1 that place and shape it

    def has(self, token: str) -> bool:
        """Whether one of its descriptors has this token."""
        return token in self.first.split('-') + self.second.split('-')

    @property
    def pathology(self) -> str:
        return 'MALIGNANT' if self.malignant else 'BENIGN_WITHOUT_CALLBACK' if self.assessment == 2 else 'BENIGN'


def draw(rng: np.random.Generator, kind: str, number: int) -> Lesion:
    """One Lesion of a kind."""
    u = rng.random(16)
    first = pick({k: p for k, (p, _) in VALUES[kind].items()}, u[0])
    second = pick(VALUES[kind][first][1], u[1])
    risk = logit(kind, first, second)
    malignant = bool(u[2] < sigmoid(risk))
    opinion = risk + _HINT * (1 if malignant else -1) + _DOUBT * rng.normal()
    assessment = 0 if u[3] < _NOT_YET else 2 + int(np.searchsorted(_CUTS, opinion))
    subtlety = 1 + int(np.searchsorted(np.cumsum(_SUBTLETY)[:-1], u[4], 'right'))
    return Lesion(kind, number, first, second, malignant, assessment, subtlety, tuple(u[5:13].tolist()))


def pick(chances, u):
    """The key of {key: probability} that the uniform number u falls on."""
    keys = list(chances)
    edges = np.cumsum(list(chances.values()))
    return keys[min(int(np.searchsorted(edges, u * edges[-1], 'right')), len(keys) - 1)]


def logit(kind: str, first: str, second: str) -> float:
    """The log odds of malignancy of a lesion with these descriptors."""
    return sum(max(risk[token] for token in value.split('-')) for risk, value in zip(RISK[kind], (first, second)))


def sigmoid(x: Any) -> Any:
    """The logistic function of a number or an array."""
    return 1 / (1 + np.exp(-x))


def risk(rows: list[dict[str, str]]) -> float:
    """P(any lesion is malignant) of the rows of one image, from their descriptors alone. Rows: see `renderer.rows`."""
    spared = 1.0
    for row in rows:
        first, second = (row[c] for c in COLUMNS[row['abnormality type']])
        spared *= 1 - sigmoid(logit(row['abnormality type'], first, second))
    return 1 - spared


@functools.cache
def ceiling(kinds: tuple[str, ...] = KINDS) -> float:
    """AUROC of the true risk over lesions of these kinds, equally frequent: the best of any reader of descriptors."""
    table = [(p * q / len(kinds), sigmoid(logit(kind, first, second)))
             for kind in kinds for first, (p, seconds) in VALUES[kind].items() for second, q in seconds.items()]
    p, r = np.array(table).T
    p = p / p.sum()
    sick, well = p * r, p * (1 - r)
    wins = (r[:, None] > r[None]) + 0.5 * (r[:, None] == r[None])
    return float(sick @ wins @ well / (sick.sum() * well.sum()))
