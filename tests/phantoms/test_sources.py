"""Properties of the sources of all phantoms."""
import importlib

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxkd import errors

REFUSED = dict(
    brain=[dict(cases=0), dict(size=(28, 32)), dict(size=(8, 32, 24)), dict(size=(28.5, 32, 24)),
           dict(region='nearby'), dict(noise=-0.1), dict(seed=-1)],
    breast=[dict(size=32), dict(size=2048), dict(difficulty=1.5), dict(patients=0), dict(seed=-1),
            dict(kind='masses')],
    heart=[dict(size=16), dict(size=1024), dict(slices=(8,)), dict(slices=(9, 8)), dict(slices=(2, 4)), dict(seed=-1),
           dict(difficulty=1.5), dict(patients=0), dict(domain='C'), dict(domain='BA'), dict(dims=4)],
    pancreas=[dict(size=16), dict(size=512), dict(depth=4), dict(difficulty=1.5), dict(patients=0), dict(seed=-1),
              dict(missing_mri=1.1), dict(missing_t2=-0.1), dict(unknown=2.0), dict(field=(96.0, 80.0, 72.0)),
              dict(field=(20.0, 20.0, 20.0)), dict(field=(96.0, 96.0))],
    pulmonary=[dict(size=16), dict(size=512), dict(depth=8), dict(difficulty=1.5), dict(patients=0), dict(seed=-1),
               dict(warp=9.0), dict(missing_ctpa=1.1), dict(pe=-0.1), dict(spacing=(2.5, 2.5)),
               dict(spacing=(0.5, 2.0, 2.0)), dict(size=40)],
    thorax=[dict(size=16), dict(size=2048), dict(difficulty=1.5), dict(patients=0), dict(seed=-1),
            dict(images_per_patient=(2, 1))])


def _source(organ, **changes):
    module = importlib.import_module(f'jaxkd.phantoms.{organ}')
    return module.build(ConfigDict({**module.DEFAULTS, **changes}))


@pytest.mark.parametrize('organ, changes', [(organ, changes) for organ, options in REFUSED.items()
                                            for changes in options])
def test_impossible_settings_are_refused(organ, changes):
    with pytest.raises(errors.ConfigError, match=f'{organ}: .*{next(iter(changes))}='):
        _source(organ, **changes)


@pytest.mark.parametrize('organ, key, options', [
    ('thorax', 'image', {}), ('heart', 'image', {}), ('pancreas', 'ct', dict(size=32, depth=8, field=(72, 72, 60)))])
def test_sources_do_not_depend_on_order_or_number(organ, key, options):
    few, many = (_source(organ, patients=patients, **options) for patients in (5, 20))
    assert many.cases[:len(few)] == few.cases
    for index in reversed(range(0, len(few), 3)):
        image, other = (getattr(source[index][key], 'voxels', source[index][key]) for source in (few, many))
        np.testing.assert_array_equal(image, other)
