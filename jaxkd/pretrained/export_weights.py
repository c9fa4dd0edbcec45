"""Weights of a trained network under the names and in the axes of other libraries: the way back of import_weights.

The PLUGIN of a model names the libraries (`libraries` of contracts.ModelPlugin) and undoes its `arrange` by `restore`.
Convolutions become out, in, h, w again, linear layers out, in; what the import joined along its first axis is split.
Reading the tensors with import_weights gives the variables back bit for bit.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxkd.config import plugins
from jaxkd.contracts import ModelPlugin
from jaxkd.pretrained import import_weights, safetensors_file
from jaxkd.runtime import trees

ENDINGS = {'params/kernel': '.weight', 'params/scale': '.weight', 'params/bias': '.bias',
           'batch_stats/mean': '.running_mean', 'batch_stats/var': '.running_var'}


def flat(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{'params/head/linear/kernel': array, ...}, contiguous: safetensors scrambles other arrays without a word."""
    return {trees.leaf_name(path): np.ascontiguousarray(a)
            for path, a in jax.tree_util.tree_leaves_with_path(variables)}


def library_tensors(model: ConfigDict, variables: Mapping[str, Any]
                    ) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, str]]:
    """({library: {its name: tensor}}, {library: why it has no such network}) of a resolved model and its variables."""
    plugin, leaves = plugins.contract('models', model.name), flat(variables)
    named: dict[str, dict[str, np.ndarray]] = {}
    reasons: dict[str, str] = {}
    for library, table in (plugin.libraries(model) if plugin.libraries else {}).items():
        tensors, missing = _tensors(plugin, table, leaves)
        reason = f'it has no layer like {missing[0]}' if missing else _misfit(plugin, model, tensors, leaves)
        if reason:
            reasons[library] = reason
        else:
            named[library] = tensors
    return named, reasons


def descriptions(library: str, model: ConfigDict, tensors: Mapping[str, np.ndarray], labels: Sequence[str]
                 ) -> dict[str, dict[str, Any]]:
    """{name: JSON content} of the files beside the tensors from which a library builds its network, and that say how
    the input is normalised.
    """
    describe = plugins.contract('models', model.name).describe_library
    return describe(library, model, tensors, labels) if describe else {}


def _tensors(plugin: ModelPlugin, table: Mapping[str, str], leaves: Mapping[str, np.ndarray]
             ) -> tuple[dict[str, np.ndarray], list[str]]:
    """({name: tensor}, our leaves that have no name)."""
    names: dict[str, list[str]] = {}
    for theirs, ours in table.items():
        names.setdefault(ours, []).append(theirs)
    tensors, missing = {}, []
    for path, value in leaves.items():
        kind, _, ours = path.partition('/')
        layer, _, leaf = ours.rpartition('/')
        found, ending = (names[ours], '') if ours in names else (names.get(layer, []), ENDINGS.get(f'{kind}/{leaf}'))
        if not found or ending is None:
            missing.append(ours)
            continue
        value = np.moveaxis(value, (-2, -1), (1, 0)) if leaf == 'kernel' else value
        value = plugin.restore(path, value) if plugin.restore else value
        for theirs, part in zip(found, np.split(value, len(found))):
            tensors[theirs + ending] = np.ascontiguousarray(part)
    return tensors, missing


def _misfit(plugin: ModelPlugin, model: ConfigDict, tensors: Mapping[str, np.ndarray],
            leaves: Mapping[str, np.ndarray]) -> str:
    """Why these options make no network of that library; '' if they do."""
    assert plugin.tensors is not None
    plain, shapes = plugin.tensors, {k: v.shape for k, v in tensors.items()}
    prefix = import_weights.network_prefix(shapes, lambda s: plain(model, s, {})[1], 'the export')
    names = safetensors_file.strip_prefix(shapes, prefix)
    required, sources, _ = plain(model, {k: shapes[v] for k, v in names.items()}, {})
    differing = [k for k, v in required.items() if not import_weights.same_value(model[k], v)]
    if differing:
        return f'its network has model.{differing[0]} = {required[differing[0]]!r}, not {model[differing[0]]!r}'
    unread: Sequence[str] = sorted(leaves.keys() - sources.keys())
    return f'{unread[0]} would not be read back' if unread else ''
