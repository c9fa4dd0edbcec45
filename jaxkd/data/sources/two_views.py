"""Any source of images, with a second view of the same beside each image: a mammogram's other projection (CC, MLO).

record['view'] is the image of the next case, in the order of the source and around, with the same patient and equal
`same` groups; without one it is the image itself. Everything else is that of the source. For contrast between views
(MSVCL, Li et al., MICCAI 2021 [published idea]): the transform `view` makes the input of it. Patients never part in a
split, so no view of another part is seen.
"""
import collections
from collections.abc import Sequence

from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.contracts import Record, SourcePlugin
from jaxkd.data import source

DEFAULTS = dict(
    of={},  # the source inside: name and options
    same=('side',),  # groups of a case that views of one thing have in common
)
PLUGIN = SourcePlugin(nested=('of',))


def build(hp: ConfigDict) -> 'TwoViews':
    """Raises ConfigError for a group that no case has."""
    inside = source.build(hp.of)
    known = {group for case in inside.cases for group in case.groups}
    for group in hp.same:
        errors.check_choice('two_views.same', group, sorted(known))
    return TwoViews(inside, tuple(hp.same))


class TwoViews(source.WrappedSource):
    """See the module's docstring."""

    def __init__(self, inside: source.Source, same: tuple[str, ...]) -> None:
        super().__init__(inside)
        self.partner = partners(inside.cases, same)

    def __getitem__(self, i: int) -> Record:
        record, other = self.source[i], self.partner[i]
        return {**record, 'view': (record if other == i else self.source[other])['image']}

    def paths(self, i: int) -> Sequence[str] | None:
        own, other = self.source.paths(i), self.source.paths(self.partner[i])
        return own if own is None or other is None or self.partner[i] == i else (*own, *other)


def partners(cases: Sequence[source.Case], same: Sequence[str]) -> list[int]:
    """For each case the number of the next one of the same thing, its own where there is none."""
    things: dict[tuple, list[int]] = collections.defaultdict(list)
    for i, case in enumerate(cases):
        things[case.patient, *(case.groups.get(group, '') for group in same)].append(i)
    following = {i: views[(n + 1) % len(views)] for views in things.values() for n, i in enumerate(views)}
    return [following[i] for i in range(len(cases))]
