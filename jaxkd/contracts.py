"""The contracts of plug-ins: transforms, models, evaluators and methods (that of sources: data/source.py).

A plug-in is a file of its kind's folder, or a module of the user's own package, named with dots. Every plug-in has

    DEFAULTS    dict: its options with their defaults; a config may set these and no others
    build(...)  makes the thing from the resolved options `hp`, a ConfigDict; not of evaluators

and may have `PLUGIN`, the NamedTuple below of its kind, which says what else it offers. Nothing else of a file is
looked at. A file without PLUGIN offers the defaults of that tuple; evaluators must have one. An option that is called
like a method of ConfigDict (keys, values, items, get, update) is read as hp['keys'].
"""
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

Record = dict[str, Any]  # one case: numpy arrays, Volumes, strings, and dicts of them


class Transform(NamedTuple):
    """What `build(hp)` of a file of data/transforms returns; `build(hp, fitted)` or `build(hp, assignment)` with those
    of its PLUGIN.

    The same object serves training, evaluation and deployment. It must pickle: worker processes get a copy.
    """

    apply: Callable[..., Record]  # (record) -> record; of a random one (record, np.random.Generator) -> record
    random: bool = False  # then it belongs into data.augment, and changes training cases only
    eval_mode: Callable[[Record], Record] | None = None  # of a random one that decides shapes or keys: what stands for
    # it in evaluation
    inverse: Callable[[Record, Record], Callable[[np.ndarray], np.ndarray]] | None = None  # of one that changes the
    # grid of places: (record before, record after) -> the function that brings values [*places] from the grid after to
    # that before, 0 where there are none: a label map (integers) by the nearest place, probabilities (floats) linearly.
    # It holds on to no pixels or voxels
    reads: tuple[str, ...] | None = None  # every key of a record that `writes` are made of; None: unknown
    writes: tuple[str, ...] | None = None  # every key that it adds or changes; None: unknown, so it may be any
    repeats: bool = False  # a random one that makes the same of a case each time: outputs of a teacher may be cached
    # behind it
    takes: str = 'picture'  # what its `reads` are in a record of a source: 'picture' [H,W(,3)], 'volume' (a Volume),
    # 'text' (str) or 'table' (list of dicts): how deployment reads a file for it
    name: str = ''  # for messages; jaxkd fills it in


class TransformPlugin(NamedTuple):
    """PLUGIN of a file of data/transforms."""

    fit: Callable[..., Any] | None = None  # (hp, source, indices of training cases, progress) -> what it learned,
    # JSON-able
    fit_decides_shapes: bool = False  # `fit` runs in checks and for external data, too: it decides shapes of a batch
    # or how the values of these files are read
    fit_optional: bool = False  # a store may hold what it makes without having learned; `fit` sees records behind the
    # transforms before it that neither learn nor decide, and may return None, which is not kept
    fit_prepared: bool = False  # `fit` sees records behind all transforms before it but those that decide of cases
    assign: Callable[..., Any] | None = None  # (hp, source, split) -> what is decided of every case from ids, labels
    # and parts alone: an object with `keep`, bool [n], which cases remain
    file_digest: Callable[[Any], str] | None = None  # (hp) -> digest of the file that `hp.file` names, which may move
    vocabulary_size: Callable[[Any], int] | None = None  # (hp) -> number of token ids, of one that writes tokens
    restrict: Callable[[Any, tuple[str, ...]], Any] | None = None  # (hp, inputs of a network) -> the options that
    # change, a dict or ConfigDict, for records that hold these inputs alone: in deployment there is no label, box or
    # privileged key; the others stay
    describe: Callable[..., str] | None = None  # (hp, source, indices of training cases) -> for the log: what of the
    # cases it reads; '' is not logged
    table_columns: Callable[..., Sequence[str]] | None = None  # (hp, fitted) -> the columns of a table that it reads
    nested: tuple[str, ...] = ()  # options that hold a transform
    split_options: tuple[str, ...] = ()  # options that choose cases, as data.split does, and change no record by
    # themselves: a store of prepared cases serves all values of them


class SourcePlugin(NamedTuple):
    """PLUGIN of a file of data/sources."""

    nested: tuple[str, ...] = ()  # options that hold a source
    paths: tuple[str, ...] = ('root',)  # options that say where files lie: they may change while the cases stay, for a
    # store of prepared cases and for a finished run, and have to for other data
    scale: Callable[[np.ndarray], np.ndarray] | None = None  # (voxels of a file) -> the values that a record holds:
    # what deployment does to a file before the transforms, where the source does it in training
    read_picture: Callable[[str, int], np.ndarray] | None = None  # (path, most pixels) -> the `image` of a record;
    # without it as jaxkd/data/formats/picture.py reads it
    case_count: Callable[[Any, int], int] | None = None  # (hp, most) -> the number of cases, counted up to `most`, by a
    # table or by names of files alone, see config/presets.py


class ModelPlugin(NamedTuple):
    """PLUGIN of a file of models, whose `build(hp, outputs, dtype)` returns a flax.linen module:

    module(inputs, train=False) -> {'logits': float [B, outputs] (or [B, *places, outputs]), and named intermediates},
    where inputs is {key: array [B, ...]}, with inputs['present'] {key: float32 [B]} where cases may lack an input.
    Behind the transforms `scan` and `volume` an input is int16 [B, Z, Y, X, 1] in fixed point: v stands for v / 4096
    (jaxkd.data.volume.FIXED), and the model divides. A teacher hands on 'logits' and 'pooled' [B, width]; without
    'pooled' it is used with outputs=('logits',).
    Fields of the module are hashable (tuples, strings, numbers, FrozenConfigDict), as equal networks share programs.
    """

    check: Callable[[Any, Any], None] | None = None  # (hp, resolved data config): ConfigError where they do not go
    # together
    nested: tuple[str, ...] = ()  # options that hold a model
    parts: Mapping[str, str] = {}  # option that holds plug-ins by a name of the user's, such as an input -> their kind
    tensors: Callable[..., tuple[dict, dict, Sequence[str]]] | None = None  # weights of other libraries
    # (pretrained/import_weights.py): (hp, {name in the file: shape}, config.json) -> (required, sources, unused), where
    # required is {option: value} with which our network is that of the file, sources {our path, such as
    # 'params/patch/kernel': names of the tensors that are joined along their first axis to make it}, and unused the
    # names of tensors that are known and not needed
    arrange: Callable[[str, np.ndarray], np.ndarray] | None = None  # (our path, tensor) -> tensor, its axes in our
    # order
    libraries: Callable[[Any], Mapping[str, Mapping[str, str]]] | None = None  # (hp) -> {library: {its name of a layer,
    # or of a tensor: our path below params}}: the names under which pretrained/export_weights.py writes weights
    describe_library: Callable[..., dict[str, dict[str, Any]]] | None = None  # (library, hp, {its name: tensor},
    # labels) -> {name: JSON content} of the files beside these tensors
    restore: Callable[[str, np.ndarray], np.ndarray] | None = None  # (our path, tensor) -> tensor: the way back of
    # `arrange`
    adapt: Callable[..., np.ndarray] | None = None  # (path below params, value, shape, names of all tensors
    # of the file, () for a checkpoint of a stage) -> value in that shape, or unchanged


@runtime_checkable
class ShowsAttention(Protocol):
    """A module whose outputs, with capture=('attention',), hold 'attention' [B, depth, heads, N, N] over an image.

    The first of the N tokens is CLS, the last g * g are the patches, row by row.
    """

    registers: int  # tokens between CLS and the patches


class EvaluatorPlugin(NamedTuple):
    """PLUGIN of a file of evaluators.

    Metrics are written as <name in evals>/<metric>. predictor(role) holds outputs and labels on the network's grid.
    """

    # (predictor, hp, resamples, seed) -> ({metric: entry with value, low, high ...}, {part: schema.Predictions or
    # RegionScores}, {name: arrays for pictures}); files of these: evaluators/predictions/schema.py
    report: Callable[..., tuple[dict, dict, dict]]
    scores: Callable[..., Mapping[str, float]] | None = None  # (predictor, role, hp) -> {metric: value}, during
    # training; without it the evaluator cannot select
    check: Callable[..., None] | None = None  # (network, batch of ShapeDtypeStructs, hp): ConfigError before training
    check_data: Callable[..., None] | None = None  # (Dataset of the stage, hp): ConfigError or BadData before training
    ranges: Mapping[str, str] = {}  # option that is a number, or several -> the interval in which it lies, '[1, inf)'
    metrics: Callable[..., Sequence[str]] | None = None  # (labels of the data, hp) -> the names that `scores` gives;
    # with it a wrong name in `select` is refused before training, without it at the first validation
    nested: tuple[str, ...] = ()  # options that hold an evaluator
    report_options: tuple[str, ...] = ()  # options that `scores` does not read: they may change after training, too
    requests: Callable[..., Sequence[tuple]] | None = None  # (predictor, hp) -> [(Dataset, indices of cases, names of
    # outputs)] that `report` asks for beside logits: a case then passes the network once for all evaluators


class MethodPlugin(NamedTuple):
    """PLUGIN of a file of methods; what else a method offers stands in the Method that its `build` returns."""

    nested: tuple[str, ...] = ()  # options that hold a method
    parts: Mapping[str, str] = {}  # option that holds plug-ins by a name of the user's -> their kind


class Method(NamedTuple):
    """What `build(hp, context)` of a file of methods returns: what the loop runs.

    Made by `steps.make_method`, or by hand.
    """

    init: Callable[[Any], Any]  # (key) -> TrainState; it compiles what takes long
    train_step: Callable[..., tuple[Any, dict]]  # (state, frozen, batch) -> (state, {name: Mean}); on each device's
    # share of a batch
    after_validation: Callable[[Any, Any], Any] = lambda state, score: state  # (state, selection score, larger is
    # better) -> state
    solve: Callable[..., Any] | None = None  # (state, dataset, predict) -> state before the first step: a fit in closed
    # form. predict: the Predictor of the student (jaxkd/inference/predictor.py), with the variables of that state
    diagnose: Callable[..., tuple[dict, str]] | None = None  # (dataset, teacher_outputs) -> (for summary.json, one line
    # for the log); teacher_outputs(name, outputs, indices of cases) -> {output: array in their order}
    # What summary.json says of the loss, see jaxkd/evaluation.py:
    loss_weights: Callable[[Any], Mapping[str, Any]] | None = None  # (Progress) -> {term: weight}
    teacher_terms: Callable[[], Sequence[str]] | None = None  # () -> the terms through which another network teaches
    # the student. None: unknown, and every term counts as one
    provenance: str = ''  # which parts are published, inferred or chosen
    plain: bool = False  # the loss of the labels alone: the baseline of other methods


class Sides(NamedTuple):
    """What `build(hp, sides)` of a file of jaxkd/distillation is told of the two sides. The taps are ShapeDtypeStructs
    of one case, [1, ...]; with `levels` tuples of them.
    """

    student: Any  # the tap of the student
    teacher: Any  # the tap of the teacher
    label: Any  # batch['label'], of one case
    classes: int  # of the student's logits
    cases: int  # of the source: an index is below it
    training: int  # cases of the training part
    epoch: float  # calls of the loss in an epoch
    hidden: int  # inputs of the student that modality dropout may hide, 0: none
    seed: int
    key: str  # where its options stand in the config, for messages: student.method.losses.kd


class Cases(NamedTuple):
    """The cases that a loss of jaxkd/distillation sees beside the two taps."""

    label: Any  # batch['label'] [B, ...]
    valid: Any  # float32 [B]: 0 for a case that is padding, or that lacks all of the teacher's inputs
    index: Any  # int32 [B]: of the case in the source
    heads: Mapping[str, Callable[..., Any]]  # the trained modules that the loss declares, as functions of their inputs
    memory: Any = None  # what the loss remembered
    kept: Any = None  # [B, M]: 1 for each input that modality dropout left to the student, in its order of inputs
    label_weight: Any = None  # [B, C] of labels that may be present together: 1 where it is known


class Loss(NamedTuple):
    """What `build(hp, sides)` of a file of jaxkd/distillation returns: a loss between a tap of the student and one of a
    teacher. The teacher's comes as it is: the loss stops its gradient.
    """

    values: Callable[..., Any]  # (student's tap, teacher's tap, Cases) -> [B], counted by `valid`, or a Mean; of a
    # pairwise loss one number; with `memory` (that, the new memory)
    heads: Mapping[str, Any] = {}  # flax modules that train beside the student and are not deployed
    memory: Callable[[], Any] | None = None  # () -> tree of arrays before the first step; part of a checkpoint
    pairwise: bool = False  # it relates cases with each other, or enters them into a memory: it gets the cases of all
    # devices at once, those that are not valid as zeros


class LossPlugin(NamedTuple):
    """PLUGIN of a file of jaxkd/distillation."""

    nested: tuple[str, ...] = ()  # options that hold a loss
    levels: bool = False  # it gets all its taps at once, as tuples; else each pair of taps is a term of its own
