"""The overview that a run prints at its start."""
from collections.abc import Sequence

from ml_collections import ConfigDict

from jaxkd.runtime.cli import columns

COLUMNS = ('stage', 'method', 'network', 'reads', 'teachers', 'length', 'batch')


def overview(config: ConfigDict, spec: str, overrides: Sequence[str] = ()) -> str:
    """The config file, the overrides of the command line, the data, and the stages in the order of training."""
    data = config.data
    source = data.source.name if 'of' not in data.source else f'{data.source.of.name}, {data.source.name}'
    lines = [f'config: {spec}', *(f'  --config.{override}' for override in overrides),
             f'data: {source}; {", ".join(data.transforms)}; augmented by {", ".join(data.augment) or "nothing"}']
    rows = [COLUMNS, *(_row(name, config[name]) for name in config.stages)]
    return '\n'.join([*lines, *(f'  {line}' for line in columns(rows))])


def _row(name: str, stage: ConfigDict) -> tuple[str, ...]:
    network = stage.model.name if 'of' not in stage.model else f'{stage.model.name} {stage.model.of.name}'
    along = [f'{", ".join(n.inputs)} ({key})' for key, n in stage.networks.items()]
    reads = ' + '.join([', '.join(stage.inputs), *along])
    teachers = ', '.join(teacher.path or teacher.stage for teacher in stage.teachers.values())
    return name, stage.method.name, network, reads, teachers, stage.length, str(stage.batch)
