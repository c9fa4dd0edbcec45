"""Keys of a config, without the options of plug-ins, with defaults and meanings."""
from collections.abc import Collection, Mapping
from typing import Any

from jaxkd import errors

# The whole run. Every other key of a config is a stage, listed in `stages` in the order of training.
RUN: dict[str, Any] = dict(
    seed=0,  # initial weights, data order, augmentation, dropout
    stages=(),
    parallel='mesh',  # 'mesh' (jit over a device mesh) or 'pmap'
    preset='',  # size of networks and inputs: tiny, small, base, large; auto: by the number of cases and the device
    note='',  # one line for the head of the report
    bootstrap=1000,  # patient-level resamples behind every interval; 0 turns intervals off
    tensorboard=True,
    data=dict(
        source=dict(name=''),
        transforms=(),  # what happens once to every case, in order; the options of each stand under its name
        augment=(),  # random, training only; likewise
        labels={},  # of which patients training may use the labels: options of the transform `labels`, listed or not
        split=dict(
            fractions=(0.7, 0.1, 0.2), seed=0, given=True, file='',  # train, val, test, by patient
            stratify=(),  # groups of a case that every part holds in equal shares
            folds=0, fold=0,  # cross-validation: the test part is fold `fold` of `folds`
            leave_out='',  # 'center=A': the test part is every patient of that group
            reserve=(),  # ('clean', 0.1): a part of its own, of that fraction of the training patients
        ),
        train='train', val='val', test='test',  # which part of the split plays which role, 'train+clean': both
        train_filter='',  # 'foreground=yes': of the training part, only cases of that group are trained on
        holdout_fold=(),  # (0, 5): the first of five folds of the training patients is not trained on (see `folds`)
        cache='auto',  # transformed cases: ram, none (anew each epoch), auto (ram up to ram_gib), disk (in `folder`)
        ram_gib=4.0,
        folder='',  # where `python -m jaxkd.data.prepare` put them
        workers=0,  # reader processes; 0 reads in threads of this process
        threads=2,
        timeout=300.0,  # seconds without a batch before the run stops
        boxes=16,  # most boxes that a case may have
        external={},  # name -> differences, such as another source: data that evaluators may test on
    ))
# One stage: a network, what it may read, and how it learns. All stages are this same thing.
STAGE: dict[str, Any] = dict(
    inputs=(),  # the only keys of a batch that the stage's network, its student, is handed
    input_fn='',  # dotted function (inputs, classes): named inputs in, inputs of the model out (on the device)
    model=dict(name=''),
    networks={},  # name -> inputs, input_fn, model: trained together with the student, never deployed
    teachers={},  # name -> a finished network (see TEACHER), frozen
    init=dict(stage='', path='', which='best', only=()),  # start from weights of equal names and shapes; only: patterns
    method=dict(name='supervised'),
    optim=dict(),
    length='1 epoch',  # of training: '10 epochs', '500 steps', '20000 examples'
    eval_every='1 epoch',  # validate and save
    log_every='20 steps',
    batch=64,  # over all devices and hosts
    dtype='float32',  # or bfloat16; parameters, losses and softmax are float32 in any case
    data={},  # what this stage sees differently from the run's data
    seed=0,  # added to the run's: a second network of the same kind
    folds=0,  # 5: besides, five more networks, each trained without another fifth of the training patients
    evals={},  # evaluator -> its options (with `name` if it is called otherwise); all run on the test part at the end
    select='',  # evaluator/metric, computed on the validation part during training, that names the best step
    mode='max')
NETWORK = dict(
    inputs=(), input_fn='', model=dict(name=''),
    task='',  # which of the source's further labels it predicts
    init=dict(stage='', path='', which='best', only=()))
TEACHER = dict(
    stage='',  # an earlier stage of this run
    path='',  # instead: the folder of a stage's checkpoints in another run
    which='best',
    cache='auto',  # its outputs are computed once when its inputs are never augmented: auto, yes, no
    outputs=('logits', 'pooled'),  # what is cached of it
    shuffled=False,  # a control: permute its cached outputs among training cases of equal label, or of hidden ones all
    out_of_fold=False,  # outputs of a case come from the one of its stage's `folds` networks that never saw the patient
)
LOSS = dict(  # one of `<stage>.method.losses`, beside the options of its file
    student='logits',  # tap of the student: the name of an output; several, 'block1,block2', are a term each
    teacher='',  # its counterpart in the only teacher, '' the same name; 'report/pooled' names the teacher, too
    weight=1.0,  # of the term, beside that of the labels
    schedule='',  # of the weight: '' constant, 'linear 5%', 'cosine down 20 epochs', see jaxkd/schedules.py
)
# Ranges of numbers, and the keys whose values are durations, in a config. Those of plug-ins are their own.
SEEDS = '[0, 2147483647]'  # that of a run and of its stage are added, and the loader takes 32 bits
RUN_RANGES = {'bootstrap': '[0, inf)', 'seed': SEEDS}
DATA_RANGES = {'ram_gib': '[0, inf)', 'workers': '[0, inf)', 'threads': '[1, inf)', 'timeout': '(0, inf)',
               'boxes': '[0, inf)', 'split.fractions': '[0, 1]', 'split.folds': '[0, inf)', 'split.fold': '[0, inf)'}
STAGE_RANGES = {'batch': '[1, inf)', 'seed': SEEDS}
STAGE_DURATIONS = ('length', 'eval_every', 'log_every')
# Keys and stages of earlier versions -> their present names.
RENAMED_KEYS = dict(elsewhere='external', hold_out='holdout_fold', train_where='train_filter', chance='prob',
                    every='eval_every', compute='dtype', same='kd_same_modality', other='image_only_seed1000',
                    shuffled='kd_shuffled')
# Plug-ins of earlier versions by kind: their name -> their present name.
RENAMED_PLUGINS = {
    'data/sources': {organ: f'jaxkd.phantoms.{organ}' for organ in (
        'brain', 'breast', 'heart', 'pancreas', 'pulmonary', 'thorax')},
    'evaluators': dict(classify='classification', localise='localisation', segment='segmentation',
                       depth='prediction_depth'),
    'methods': dict(segment='segmentation')}
# Methods of earlier versions: what stands in their place.
REPLACED_METHODS = dict(
    dense_kd="name='segmentation' from labels alone, with a teacher name='distil', losses=dict(kd=..., at=..., ...)",
    kd="name='distil', supervised=1 - alpha, losses=dict(kd=dict(weight=alpha, temperature=temperature))",
    hint="name='distil', losses=dict(hint=dict(student=tap, teacher=teacher_tap, weight=weight)), or at=dict(...) of "
         "kind='attention'")


def remedy(name: str, known: Collection[str], renamed: Mapping[str, str] = RENAMED_KEYS) -> str:
    """A clause for a name that does not exist: its new name, or the nearest of `known`. Starts with a space."""
    return f' It is called "{renamed[name]}" now.' if renamed.get(name) in known else errors.nearest(name, known)
