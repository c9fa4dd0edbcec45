"""Configs: plain Python in, plain JSON out, and no key that nobody reads.

A config file defines `get_config(arg='')`; `path.py:arg` chooses a variant and `a.b=v` overrides a value, which must
exist and keep its type. What a run resolves is written as JSON, which is data and runs again as it is.
A Python config is a program: only run files that you trust. JSON configs are parsed, never executed.
"""
import ast
import copy
import importlib.util
import json
import pathlib
import re

from ml_collections import ConfigDict

from jaxkd import errors, find

# The whole run. Every other key of a config is a stage, listed in `stages` in the order of training.
RUN = dict(
    seed=0,  # initial weights, data order, augmentation, dropout
    stages=(),
    parallel='mesh',  # 'mesh' (jit over a device mesh) or 'pmap'
    note='',  # one line for the head of the report
    bootstrap=1000,  # patient-level resamples behind every interval; 0 turns intervals off
    tensorboard=True,
    data=dict(
        source=dict(name=''),
        transforms=(),  # what happens once to every case, in order; the options of each stand under its name
        augment=(),  # random, training only; likewise
        split=dict(
            fractions=(0.7, 0.1, 0.2), seed=0, given=True, file='',  # train, val, test, by patient
            stratify=(),  # groups of a case that every part holds in equal shares
            folds=0, fold=0,  # cross-validation: the test part is fold `fold` of `folds`
            leave_out='',  # 'center=A': the test part is every patient of that group
            reserve=(),  # ('clean', 0.1): a part of its own, of that fraction of the training patients
        ),
        train='train', val='val', test='test',  # which part of the split plays which role, 'train+clean': both
        train_where='',  # 'foreground=yes': of the training part, only cases of that group are trained on
        hold_out=(),  # (0, 5): the first of five shares of the training patients is not trained on (see `folds` of a stage)
        cache='auto',  # transformed cases: in memory (ram), made anew each epoch (none), ram up to ram_gib (auto), or
        ram_gib=4.0,  # read from `folder`, where `python -m jaxkd.data.prepare` put them (disk)
        folder='',
        workers=0,  # reader processes; 0 reads in threads of this process
        threads=2,
        timeout=300.0,  # seconds without a batch before the run stops
        boxes=16,  # most boxes that a case may have
        elsewhere={},  # name -> differences, such as another source: data that evaluators may test on
    ),
)

# One stage: a network, what it may read, and how it learns. All stages are this same thing.
STAGE = dict(
    inputs=(),  # the only keys of a batch that the stage's network, its student, is handed
    input_fn='',  # dotted function (inputs, classes): named inputs in, inputs of the model out (on the device)
    model=dict(name=''),
    networks={},  # name -> inputs, input_fn, model: trained together with the student, never deployed
    teachers={},  # name -> a finished network (see TEACHER), frozen
    init=dict(stage='', path='', which='best', only=()),  # start from these weights of the same names and shapes; only: patterns
    method=dict(name='supervised'),
    optim=dict(),
    length='1 epoch',  # of training: '10 epochs', '500 steps', '20000 examples'
    every='1 epoch',  # validate and save
    log_every='20 steps',
    batch=64,  # over all devices and hosts
    compute='float32',  # or bfloat16; parameters, losses and softmax are float32 in any case
    data={},  # what this stage sees differently from the run's data
    seed=0,  # added to the run's: a second network of the same kind
    folds=0,  # 5: besides, five more networks, each trained without another fifth of the training patients
    evals={},  # evaluator -> its options (with `name` if it is called otherwise); all run on the test part at the end
    select='',  # evaluator/metric, computed on the validation part during training, that names the best step
    mode='max',
)
NETWORK = dict(
    inputs=(), input_fn='', model=dict(name=''),
    task='',  # which of the source's further labels it predicts
    init=dict(stage='', path='', which='best', only=()),
)
TEACHER = dict(
    stage='',  # an earlier stage of this run, or
    path='',  # the folder of a stage's checkpoints in another run; goes before stage
    which='best',
    cache='auto',  # compute its outputs once when its inputs are never augmented: auto, yes, no
    outputs=('logits', 'pooled'),  # what is cached of it
    shuffled=False,  # a control: permute its cached outputs among training cases of equal label
    out_of_fold=False,  # each training case is told of by the one of its stage's `folds` networks that never saw the patient
)


def load(spec, overrides=()):
    """Read `configs/x.py`, `configs/x.py:arg` or a saved `config.json`; then apply 'data.batch=8' and the like."""
    path, _, arg = str(spec).partition(':')
    path = pathlib.Path(path)
    if not path.is_file():
        there = [str(p) for p in path.parent.glob('*.py')] if path.parent.is_dir() else []
        raise errors.ConfigError(f'Config file {path} does not exist.{errors.nearest(path, there) if there else ""}')
    if path.suffix == '.json':
        try:
            config = ConfigDict(json.loads(path.read_text()))
        except (ValueError, TypeError) as e:
            raise errors.ConfigError(f'{path} is not a saved config: {e}') from e
    else:
        found = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(found)
        try:
            found.loader.exec_module(module)
        except SyntaxError as e:
            raise errors.ConfigError(f'{path}, line {e.lineno}: {e.msg}.') from e
        if not hasattr(module, 'get_config'):
            raise errors.ConfigError(f"{path} defines no get_config(arg='') that returns a ConfigDict.")
        config = module.get_config(arg)
    config = ConfigDict(tuples(config.to_dict()))
    config = resolve(config)
    for override in overrides:
        key, _, text = override.partition('=')
        _override(config, key, text)
        if key.rpartition('.')[2] in ('name', 'transforms', 'augment'):  # options of the new things, for the overrides that follow
            config = resolve(config)
    return resolve(config)


def resolve(config):
    """Fill in every default and refuse every unknown key, so that the result says all that a run does."""
    given = config.to_dict()
    stages = {k: v for k, v in given.items() if k not in RUN}
    data = given.get('data', {})
    run = merge(RUN, {k: v for k, v in given.items() if k in RUN and k != 'data'}, 'the config')
    run['data'] = _data(RUN['data'], data, 'data')
    for name, stage in stages.items():
        if not isinstance(stage, dict):
            raise errors.ConfigError(f'The config has no key "{name}".{errors.nearest(name, RUN)}')
        if not re.fullmatch(r'[A-Za-z][A-Za-z0-9_]*', name):
            raise errors.ConfigError(f'Stage "{name}" names a folder: use letters, digits and _.')
        run[name] = _stage(stage, name, run['data'])
    for name in run['stages']:
        if name not in stages:
            raise errors.ConfigError(f'stages lists "{name}", which the config does not define.'
                                     f'{errors.nearest(name, stages)}')
        origins = [run[name]['init'], *(n['init'] for n in run[name]['networks'].values()), *run[name]['teachers'].values()]
        for t, teacher in run[name]['teachers'].items():
            if teacher['out_of_fold'] and not teacher['path'] and stages.get(teacher['stage'], {}).get('folds', 0) < 2:
                raise errors.ConfigError(f'{name}.teachers.{t}.out_of_fold: stage "{teacher["stage"]}" has no folds. Set '
                                         f'{teacher["stage"]}.folds = 5.')
        if run[name]['folds'] == 1 or run[name]['folds'] < 0:
            raise errors.ConfigError(f'{name}.folds = {run[name]["folds"]} must be 0 or at least 2.')
        for j in range(run[name]['folds']):
            if f'{name}_fold{j}' in stages:
                raise errors.ConfigError(f'Stage "{name}_fold{j}" is what the folds of "{name}" are called. Rename it.')
        for origin in origins:
            if origin['stage'] and not origin['path'] and origin['stage'] not in stages:
                raise errors.ConfigError(f'{name} starts from stage "{origin["stage"]}", which the config does not define.'
                                         f'{errors.nearest(origin["stage"], stages)}')
    return ConfigDict(run)


def merge(defaults, given, where):
    """`given` over `defaults`: an unknown key or another type is a ConfigError; an empty dict of defaults is open."""
    out = copy.deepcopy(defaults)  # or an override of one stage would reach every stage that shares a default with it
    for key, value in given.items():
        if key not in defaults:
            raise errors.ConfigError(f'{where} has no key "{key}".{errors.nearest(key, defaults)}')
        default = defaults[key]
        if isinstance(default, dict) and isinstance(value, dict):
            out[key] = merge(default, value, f'{where}.{key}') if default else dict(value)
        elif not _fits(default, value):
            raise errors.ConfigError(f'{where}.{key} = {value!r}: expected {type(default).__name__}, as in {default!r}.')
        else:
            out[key] = float(value) if isinstance(default, float) else value
    return out


def options(kind, given, where):
    """(module, hp) of a thing chosen by name: its options over the DEFAULTS of its file."""
    if not given.get('name'):
        raise errors.ConfigError(f'{where}.name is empty. Known: {", ".join(find.names(kind))}.')
    module = find.module(kind, given['name'])
    hp = merge(dict(module.DEFAULTS, name=''), given, where)
    for key in getattr(module, 'NESTED', ()):  # a thing of the same kind inside
        hp[key] = options(kind, hp[key], f'{where}.{key}')[1].to_dict()
    return module, ConfigDict(hp)


def dump(config):
    """The resolved config as JSON text."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True)


def _stage(given, where, data):
    stage = merge({**STAGE, 'model': {}, 'method': {}, 'optim': {}}, given, where)
    stage['method'] = {**STAGE['method'], **stage['method']}
    stage['model'] = options('models', stage['model'], f'{where}.model')[1].to_dict()
    stage['method'] = options('methods', stage['method'], f'{where}.method')[1].to_dict()
    from jaxkd import optim  # imports jax: kept out of the parsing of a command line
    stage['optim'] = merge(optim.DEFAULTS, stage['optim'], f'{where}.optim')
    for name, network in stage['networks'].items():
        here = f'{where}.networks.{name}'
        network = merge({**NETWORK, 'model': {}}, network, here)
        network['model'] = options('models', network['model'], f'{here}.model')[1].to_dict()
        stage['networks'][name] = network
    for name, teacher in stage['teachers'].items():
        here = f'{where}.teachers.{name}'
        stage['teachers'][name] = teacher = merge(TEACHER, teacher, here)
        if not teacher['stage'] and not teacher['path']:
            raise errors.ConfigError(f'{here}: give a stage (of this run) or a path (of another run).')
    for name in (*stage['networks'], *stage['teachers']):
        if name in ('student', 'heads'):
            raise errors.ConfigError(f'{where}: "{name}" is taken, call that network something else.')
    for name, hp in stage['evals'].items():
        stage['evals'][name] = options('eval', {'name': name, **hp}, f'{where}.evals.{name}')[1].to_dict()
    chosen = stage['select'].partition('/')[0]
    if chosen and chosen not in stage['evals']:
        raise errors.ConfigError(f'{where}.select names "{chosen}", which is not among evals.'
                                 f'{errors.nearest(chosen, stage["evals"])}')
    if chosen and not hasattr(find.module('eval', stage['evals'][chosen]['name']), 'scores'):
        raise errors.ConfigError(f'{where}.select: {chosen} has no scores for validation, only a report at the end.')
    if stage['mode'] not in ('max', 'min'):
        raise errors.ConfigError(f'{where}.mode = "{stage["mode"]}". Known: max, min.')
    if stage['data']:
        _data(data, stage['data'], f'{where}.data')
    return stage


def _data(defaults, given, where):
    """The data part: its own keys, and one key of options for each transform that it lists."""
    out = merge({k: v for k, v in defaults.items() if k != 'source'},
                {k: v for k, v in given.items() if k in defaults and k != 'source'}, where)
    source = given.get('source', {})
    if source.get('name', defaults['source']['name']) == defaults['source']['name']:
        source = {**defaults['source'], **source}
    out['source'] = options('data/sources', source, f'{where}.source')[1].to_dict()
    listed = {name.rpartition('.')[2]: name for name in (*out['transforms'], *out['augment'])}
    spare = {name: name for name in find.names('data/transforms') if name in given or name in defaults}
    for short, name in (spare | listed).items():  # what is not listed keeps its options for a variant that lists it
        hp = {**defaults.get(short, {}), **given.get(short, {}), 'name': name}
        out[short] = options('data/transforms', hp, f'{where}.{short}')[1].to_dict()
    for key in given:
        if key not in out:
            raise errors.ConfigError(f'{where} has no key "{key}".{errors.nearest(key, out)} The options of a transform'
                                     ' stand under its name, which transforms or augment must list.')
    return out


def stage_data(config, name):
    """The data that a stage sees: the run's, with the stage's differences."""
    return changed_data(config.data, config[name].data.to_dict(), f'{name}.data')


def fold(config, name, share):
    """(the config with one more stage, that stage's name): network `share` of the `folds` of stage `name`, tested on nothing."""
    config, own = ConfigDict(config.to_dict()), f'{name}_fold{share}'
    stage = config[name].to_dict()
    chosen = stage['select'].partition('/')[0]
    data = {**stage['data'], 'hold_out': (share, stage['folds'])}
    config[own] = {**stage, 'folds': 0, 'data': data, 'evals': {k: v for k, v in stage['evals'].items() if k == chosen}}
    return config, own


def changed_data(data, changes, where):
    """A resolved data config with differences, such as another source."""
    return ConfigDict(_data(data.to_dict(), changes, where))


def _override(config, key, text):
    node, path = config, key.split('.')
    for depth, part in enumerate(path):
        if not isinstance(node, ConfigDict) or part not in node:
            where = '.'.join(path[:depth]) or 'the config'
            known = node.keys() if isinstance(node, ConfigDict) else ()
            raise errors.ConfigError(f'--config.{key}: {where} has no key "{part}".{errors.nearest(part, known)}')
        parent, node = node, node[part]
    try:
        value = ast.literal_eval(text)  # literals only: nothing is executed
    except (ValueError, SyntaxError):
        value = {'true': True, 'false': False}.get(text.lower(), text)
    if isinstance(node, str):
        value = text
    if isinstance(node, tuple):
        value = tuple(filter(None, text.split(','))) if isinstance(value, str) else value if isinstance(value, tuple) else (value,)
    if isinstance(node, ConfigDict) or not _fits(node, value):
        raise errors.ConfigError(f'--config.{key}={text}: expected {type(node).__name__}, as in {node!r}.')
    if path[-1] == 'name' and len(path) > 1 and value != node:  # another thing: the options of the last one are not its
        for option in set(parent) - {'name'}:
            del parent[option]
    parent[path[-1]] = float(value) if isinstance(node, float) else value


def _fits(default, value):
    if isinstance(default, (tuple, list)):
        return isinstance(value, (tuple, list))
    return type(value) is type(default) or (isinstance(default, float) and type(value) is int)


def tuples(tree):
    """Lists become tuples (JSON has no tuples), also inside dicts."""
    if isinstance(tree, dict):
        return {k: tuples(v) for k, v in tree.items()}
    return tuple(map(tuples, tree)) if isinstance(tree, (list, tuple)) else tree
