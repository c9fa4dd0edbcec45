"""What happens to a case between its source and a network: the transforms of a data config, built.

Contract of a transform: jaxkd/contracts.py. The same list serves training, evaluation and deployment, and `inverse`
brings a prediction back to the grid of the file.
"""
import dataclasses
import functools
import operator
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jaxkd import errors
from jaxkd.config import plugins
from jaxkd.contracts import Record, Transform, TransformPlugin
from jaxkd.data.source import DerivedSource, Source

_SEEN = {  # what a transform that fails on a record is told: whether the record is one of training or of deployment
    False: 'Correct the transform or its options, or let the source or a transform before it make what it reads.',
    True: 'A record of deployment holds the inputs of the network alone: let PLUGIN.restrict narrow the options to '
          "them, declare reads and writes, and takes='volume' where it reads volumes (docs/how_to/own_plugins.md)."}

Trace = tuple[Callable[[np.ndarray], np.ndarray], ...]  # of one case: from each grid back to the one before, in order


@dataclasses.dataclass(frozen=True)
class Transforms:
    """The transforms of a run, complete: nothing is left to learn or to decide."""

    prepare: tuple[Transform, ...]  # deterministic
    augment: tuple[Transform, ...]  # random, of training alone
    fitted: dict[str, Any]  # transform -> what it learned from training cases, e.g. the vocabulary
    assignments: dict[str, Any]  # transform -> what it decided of every case
    shared: int = 0  # how many of `prepare` come before the first that learns or decides: a store holds what they make

    def evaluate(self, record: Record) -> Record:
        """A prepared case as evaluation sees it: `eval_mode` of random transforms, such as a centre crop, applied."""
        for transform in self.augment:
            record = transform.eval_mode(record) if transform.eval_mode else record
        return record

    def remaining(self, stored: bool) -> tuple[Transform, ...]:
        """The deterministic transforms that a record of the source still needs, or one of a store, if `stored`."""
        return self.prepare[self.shared if stored else 0:]

    @property
    def changes_evaluation(self) -> bool:
        """Whether `evaluate` does anything."""
        return any(t.eval_mode for t in self.augment)

    @functools.cached_property
    def study_level_keys(self) -> frozenset[str]:
        """Keys of a batch that all images of a study share: what is made of its report."""
        written = (t.writes or () for t in self.prepare if t.reads == ('text',))
        return frozenset(key for writes in written for key in writes if key != 'present')

    def make_of_reports(self, inputs: Collection[str]) -> bool:
        """Whether these keys of a batch, at least one, are all made of reports."""
        return bool(inputs) and set(inputs) <= self.study_level_keys

    def augments(self, keys: Iterable[str]) -> bool:
        """Whether augmentation draws one of these keys of a batch anew."""
        drawn = [t for t in self.augment if not t.repeats]
        return any(t.writes is None or set(t.writes) & set(keys) for t in drawn)

    def restricted(self, keys: Iterable[str]) -> 'Transforms | None':
        """The transforms that make `keys` of a record, where no other changes them; None where that cannot be said."""
        keys = set(keys)
        if self.assignments or any(t.reads is None or t.writes is None for t in self.prepare):
            return None
        left_out = [t for t in self.prepare if not set(t.reads or ()) <= keys] + list(self.augment)
        if any(t.writes is None or keys & set(t.writes) for t in left_out):
            return None
        prepare, shared = ([t for t in steps if set(t.reads or ()) <= keys]
                           for steps in (self.prepare, self.prepare[:self.shared]))
        return dataclasses.replace(self, prepare=tuple(prepare), augment=(), shared=len(shared))

    def apply(self, record: Record, grid: Record | None = None) -> tuple[Record, Trace]:
        """(the prepared record, how a prediction for it goes back).

        grid: keys that stand beside those of the record where a transform is inverted, such as the place of a label
        that deployment does not have.
        """
        steps = []
        for transform in self.prepare:
            after = transform.apply(record)
            if transform.inverse:
                steps.append(transform.inverse({**(grid or {}), **record}, after))
            record = after
        return record, tuple(steps)

    def trace(self, record: Record, prepared: Record) -> Trace:
        """How predictions for one case go back to its file, for `inverse`.

        record: as the source gives it; prepared: what `prepare` made of it, which spares running the last transform
        that has an inverse, the expensive one, once more.
        """
        last = max((n for n, t in enumerate(self.prepare) if t.inverse), default=None)
        if last is None:
            return ()
        record, steps = dataclasses.replace(self, prepare=self.prepare[:last]).apply(record)
        return *steps, self.prepare[last].inverse(record, prepared)  # type: ignore[misc]

    def to_file_grid(self, values: np.ndarray, trace: Trace, shape: Sequence[int], case: str) -> np.ndarray:
        """`inverse` for a case whose file has this shape. ConfigError where something of another shape comes out."""
        back = self.inverse(values, trace)
        if back.shape == tuple(shape):
            return back
        steps = ', '.join(t.name + ('' if t.inverse else ' (no inverse)') for t in self.prepare)
        raise errors.ConfigError(
            f'Case {case}: a prediction comes back as {list(back.shape)}, its file is {list(shape)}. The transforms '
            f'are {steps}. One that changes the grid needs an `inverse` to the grid before it '
            '(docs/how_to/own_plugins.md).')

    def slices_to_file_grid(self, planes: np.ndarray, traces: Sequence[Trace], shape: Sequence[int], case: str
                            ) -> np.ndarray:
        """`to_file_grid` of slices [D,H,W], each with its trace; shape: of a slice in its file."""
        return np.stack([self.to_file_grid(plane, trace, shape, case)
                         for plane, trace in zip(planes, traces, strict=True)])

    @staticmethod
    def inverse(values: np.ndarray, trace: Trace) -> np.ndarray:
        """Values [*places] on the grid of the network -> that of the file: label maps (int), probabilities (float)."""
        for step in reversed(trace):
            values = step(values)
        return values


class TransformedSource(DerivedSource):
    """The records of a source behind the transforms `names` of a data config, which decide of no case."""

    def __init__(self, source: Source, hp: ConfigDict, names: Sequence[str], fitted: Mapping[str, Any] = {}) -> None:
        super().__init__(source)
        self.steps = []
        for name in names:
            short = short_name(name)
            learned = [fitted[short]] if short in fitted else []
            self.steps.append(make(name, hp[short], *learned).apply)

    def __getitem__(self, i: int) -> Record:
        return functools.reduce(lambda record, step: step(record), self.steps, self.source[i])


def make(name: str, hp: ConfigDict, *decided: Any, deployed: bool = False) -> Transform:
    """The Transform of a resolved config, under its name, whose functions say on which record they fail.

    decided: what it learned from training cases or assigned. deployed: for the records of deployment.
    """
    built = plugins.load('data/transforms', name).build(hp, *decided)
    said = {key: functools.partial(_call, name, deployed, function) for key in ('apply', 'eval_mode', 'inverse')
            if (function := getattr(built, key))}
    return built._replace(name=name, **said)


def _call(name: str, deployed: bool, function: Callable[..., Any], record: Record, *others: Any) -> Any:
    """function(record, ...) of a transform. ConfigError for a record that is not as it expects.

    It quotes the line that fails and not the key, which may be a value of a patient.
    """
    try:
        return function(record, *others)
    except (KeyError, AttributeError) as e:
        frames = traceback.extract_tb(e.__traceback__)
        own = frames[1:] or frames  # below this function, of the transform itself first
        frame = [f for f in own if f.filename == own[0].filename][-1]
        held = ', '.join(f'{key} ({type(value).__name__})' for key, value in record.items())
        case = f'Case {record["case"]}: the' if record.get('case') else 'The'
        raise errors.ConfigError(
            f'{case} transform {name} fails with {type(e).__name__} in {frame.filename}, line {frame.lineno}: '
            f'{frame.line}. Its record holds {held}. {_SEEN[deployed]}') from e


def build(hp: ConfigDict, fitted: dict[str, Any], assignments: dict[str, Any]) -> Transforms:
    """hp: a resolved data config; fitted, assignments: {transform: ...}. ConfigError: a random one outside augment."""
    built = {}
    for name in (*hp.transforms, *hp.augment):
        short = short_name(name)
        extra = [values[short] for values in (fitted, assignments) if short in values]
        built[name] = make(name, hp[short], *extra)
        if built[name].random != (name in hp.augment):
            raise errors.ConfigError(f'data: "{name}" belongs into '
                                     f'{"augment, it is random" if name in hp.transforms else "transforms"}.')
    prepare, augment = (tuple(built[name] for name in names) for names in (hp.transforms, hp.augment))
    return Transforms(prepare, augment, fitted, assignments, shared_prefix(hp))


def assign(hp: ConfigDict, source: Any, split: dict[str, str]) -> dict[str, Any]:
    """{transform: what it decides of every case} of those that decide."""
    return {short: plug.assign(hp[short], source, split) for short, plug in listed(hp).items() if plug.assign}


def included(assignments: dict[str, Any]) -> np.ndarray | None:
    """bool [n]: the cases that no assignment leaves out; None for all."""
    return functools.reduce(operator.and_, [a.keep for a in assignments.values()]) if assignments else None


def listed(hp: ConfigDict) -> dict[str, TransformPlugin]:
    """{transform: its PLUGIN} in the order of a data config."""
    return {short_name(name): plugin(name) for name in (*hp.transforms, *hp.augment)}


def plugin(name: str) -> TransformPlugin:
    """What the file of a transform offers beside `build`."""
    return plugins.contract('data/transforms', name)


def restricted_options(name: str, hp: ConfigDict, inputs: tuple[str, ...]) -> ConfigDict:
    """The options of a transform for records of these inputs alone: what its `restrict` changes, over the others."""
    restrict = plugin(name).restrict
    return ConfigDict({**hp.to_dict(), **dict(restrict(hp, inputs))}) if restrict else hp


def short_name(name: str) -> str:
    """The key of its options: the last part of a dotted name."""
    return name.rpartition('.')[2]


def file_digests(hp: ConfigDict) -> dict[str, str]:
    """{transform: digest of the file that it reads} of those of data.transforms that read one."""
    digests = {short_name(name): plugin(name).file_digest for name in hp.transforms}
    return {short: digest(hp[short]) for short, digest in digests.items() if digest}


def before(hp: ConfigDict, short: str, learning: bool = False, start: int = 0) -> list[str]:
    """The names in data.transforms before that of a transform, from number `start` on, but for those that decide of
    cases and, unless `learning`, those that learn.
    """
    names = [*hp.transforms, *hp.augment]
    names = names[start:[short_name(name) for name in names].index(short)]
    return [name for name in names if name in hp.transforms and not plugin(name).assign and (
        learning or not plugin(name).fit)]


def shared_prefix(hp: ConfigDict) -> int:
    """Number of data.transforms before the first that fits or assigns: what they make, folds and stages share."""
    plugs = [plugin(name) for name in hp.transforms]
    depends_on_run = [bool(plug.fit and not plug.fit_optional or plug.assign) for plug in plugs]
    return depends_on_run.index(True) if True in depends_on_run else len(depends_on_run)
