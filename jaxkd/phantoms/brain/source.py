"""The brain phantom as a data source: T1-weighted volumes, ill or not, and on demand their twins with bias; no file.

Coefficients of ill and well overlap: no reader exceeds `jaxkd.phantoms.brain.renderer.CEILING` (AUROC 0.921)
except by chance or by a shortcut. The images are clean; a biased image is the twin.
"""
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd.data import source
from jaxkd.phantoms import common
from jaxkd.phantoms.brain import renderer

DEFAULTS = dict(
    cases=1000,  # number of subjects, an image of each; half of them are ill
    size=(28, 32, 24),  # voxels x y z of 173 x 211 x 155 mm, 16 to 256 each; (173, 211, 155) is SimBA's
    region='near',  # of the bias: near (the right putamen, beside the disease) or far (the left postcentral gyrus)
    noise=0.02,  # standard deviation, as a share of the brightest tissue
    twins=False,  # True: the record also has `twin`, the same subject and noise with the bias
    seed=0,  # another one draws other subjects
)


def build(hp: ConfigDict) -> 'Brain':
    """The source of the options DEFAULTS. Raises ConfigError for options outside their range."""
    renderer.check(hp.cases, tuple(hp.size), hp.region, hp.noise, hp.seed)
    return Brain(hp.seed, hp.cases, hp.twins, dict(size=tuple(hp.size), region=hp.region, noise=hp.noise))


class Brain(common.Phantom):
    """All subjects."""

    name = 'brain'
    labels = renderer.LABELS

    def __init__(self, seed: int, count: int, twins: bool, options: dict[str, Any]) -> None:
        self.seed, self.twins, self.options = seed, twins, options
        self.cases = tuple(source.Case(f's{k:06d}', f's{k:06d}') for k in range(count))
        self.targets = {'label': np.array([renderer.facts(seed, k).label for k in range(count)], np.int32)}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The record of one subject: t1, a Volume of int16; label; case; with twins also twin, a Volume."""
        record = dict(t1=renderer.render(self.seed, index, **self.options), label=self.targets['label'][index],
                      case=self.cases[index].id)
        return record | ({'twin': renderer.render(self.seed, index, **self.options, twin=True)} if self.twins else {})
