"""The second image of a case, of the source two_views, made an input as the first one is: record['view'].

What `image` does, and before it what `breast` does where `breast` is set. Its options are those of `image`; give it the
values of data.image. Pictures of 16 bits whose files declare no fewer need `bits` here.
"""
import functools

from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record, Transform
from jaxkd.data.transforms import breast as breast_transform
from jaxkd.data.transforms import image as image_transform

DEFAULTS = dict(
    image_transform.DEFAULTS,
    breast=False,  # the transform `breast` comes first, with its defaults
)


def build(hp: ConfigDict) -> Transform:
    steps = [breast_transform.build(ConfigDict(breast_transform.DEFAULTS)).apply] if hp.breast else []
    steps.append(image_transform.build(hp).apply)
    return Transform(functools.partial(apply, steps=tuple(steps)), reads=('view', 'case'), writes=('view',))


def apply(record: Record, steps: tuple) -> Record:
    """view [H,W] or [H,W,3] -> float32 [S,S,channels] in [0,1]."""
    if 'view' not in record:
        raise errors.ConfigError('view: a record of this source has no second image. Set data.source to '
                                 'dict(name="two_views", of=...).')
    made = {'image': record['view'], 'case': record.get('case', '')}
    for step in steps:
        made = step(made)
    return {**record, 'view': made['image']}
