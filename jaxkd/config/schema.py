"""Keys of a config, without the options of plug-ins, with defaults and meanings."""
from collections.abc import Collection, Mapping
from typing import Any

from jaxkd import errors

# The whole run. Every other key of a config is a stage, listed in `stages` in the order of training.
RUN: dict[str, Any] = dict(
    seed=0,  # decides initial weights, data order, augmentation, dropout
    stages=(),  # names of the stages that run, in the order of training
    parallel='mesh',  # how a step runs on several devices: mesh (jit over a device mesh) or pmap
    fsdp=1,  # how many devices divide parameters and optimiser among them; 1: each holds them whole
    preset='',  # size of networks and inputs: tiny, small, base, large; '': none is chosen;
    # auto: by the number of cases and the device
    note='',  # one line for the head of the report
    bootstrap=1000,  # patient-level resamples behind every interval; 0 turns intervals off
    tensorboard=True,  # also write the log for TensorBoard, into tensorboard/ of the run folder
    data=dict(
        source=dict(name=''),  # what reads the data set: a file of jaxkd/data/sources, or a dotted module
        transforms=(),  # what happens once to every case, in order; the options of each stand under its name
        augment=(),  # random transforms, in training only, in order; their options likewise
        labels={},  # of which patients training may use the labels: options of the transform `labels`, listed or not
        split=dict(
            fractions=(0.7, 0.1, 0.2),  # of the patients that are drawn: train, val, test; their sum is 1
            seed=0,  # of the order in which patients are drawn: another one draws others
            given=True,  # keep the parts that the archive gives and draw the rest; False draws all
            file='',  # JSON file {"split": {case id: part}} to take instead; '' draws
            stratify=(),  # groups of a case that every part holds in equal shares
            folds=0,  # number of folds of a cross-validation; 0: none
            fold=0,  # cross-validation: the fold that is the test part, from 0 to folds - 1
            leave_out='',  # 'center=A': the test part is every patient of that group; '': nobody
            reserve=(),  # ('clean', 0.1): a part of its own, of that fraction of the training patients; (): none
        ),
        train='train',  # the part of the split that is trained on; 'train+clean': both
        val='val',  # the part on which training is validated and its best step selected, likewise
        test='test',  # the part that evaluators report on, likewise
        train_filter='',  # 'foreground=yes': of the training part, only cases of that group are trained on; '': all
        holdout_fold=(),  # (0, 5): the first of five folds of the training patients is not trained on; (): none.
        # A stage's `folds` sets it.
        cache='auto',  # transformed cases: ram, none (anew each epoch), auto (ram up to ram_gib), disk (in `folder`)
        ram_gib=4.0,  # GiB of transformed cases that cache='auto' keeps; more are made anew each epoch
        folder='',  # of cache='disk': where `python -m jaxkd.data.prepare` put the transformed cases
        workers=0,  # reader processes; 0 reads in threads of this process
        threads=2,  # threads that read and transform cases, in each reader process and in evaluation
        timeout=300.0,  # seconds without a batch before the run stops
        boxes=16,  # most boxes that a case may have; more are an error
        external={},  # name -> differences, such as another source: data that evaluators may test on
    ))
# Weights of equal names and shapes that a network, or a part of one, starts from.
WEIGHTS = dict(
    stage='',  # start from the weights of the student of an earlier stage of this run; '': from `path`, or random ones
    path='',  # start from a stage's folder of checkpoints in another run, or from a file of pretrained weights; '': no
    which='best',  # step of the checkpoints: best, last, or a step number
    only=(),  # patterns: only weights whose path matches one are taken; (): all
)
INIT = dict(
    WEIGHTS,
    parts={},  # name of a part of the network, such as image -> stage or path, which, only: of its weights
)
# One stage: a network, what it may read, and how it learns. All stages are this same thing.
STAGE: dict[str, Any] = dict(
    inputs=(),  # the only keys of a batch that the stage's network, its student, is handed
    input_fn='',  # dotted function (inputs, classes): named inputs in, inputs of the model out (on the device);
    # '': the model gets the inputs as they are
    model=dict(name=''),  # the network: a file of jaxkd/models, or a dotted module; its options beside
    networks={},  # name -> inputs, input_fn, model: trained together with the student, never deployed
    teachers={},  # name -> a finished network, frozen; its options: `jaxkd options teacher`
    init=dict(INIT),
    method=dict(name='supervised'),  # how it learns: a file of jaxkd/methods, or a dotted module; its options beside
    optim=dict(),  # the optimiser; its options: `jaxkd options optim`
    trim=dict(
        rate=0.0,  # labels of largest loss left out: at most this share of a batch, see jaxkd/training/trimming.py
        schedule='linear 20 epochs after 5 epochs',  # of the rate, see jaxkd/training/schedules.py
        by='student',  # whose loss ranks the cases: the student, or a network of teachers or networks
        within_class=True),  # rank the cases of a class among themselves, so that no rare class is trimmed away
    length='1 epoch',  # of training: '10 epochs', '500 steps', '20000 examples'
    eval_every='1 epoch',  # from one validation, with a checkpoint, to the next
    log_every='20 steps',  # from one line of the log to the next
    batch=64,  # cases in a step, over all devices and hosts
    dtype='float32',  # of computation: float32 or bfloat16; parameters, losses and softmax are float32 in any case
    data={},  # what this stage sees differently from the run's data
    seed=0,  # added to the run's: a second network of the same kind
    folds=0,  # 5: besides, five more networks, each trained without another fifth of the training patients; 0: none
    evals={},  # evaluator -> its options (with `name` if it is called otherwise); all run on the test part at the end
    select='',  # evaluator/metric, computed on the validation part during training, that names the best step;
    # '': the last step is the best
    mode='max')  # whether the largest (max) or smallest (min) value of `select` is best
NETWORK = dict(
    inputs=(),  # the only keys of a batch that this network is handed
    input_fn='',  # dotted function (inputs, classes), as that of a stage; '': the model gets the inputs as they are
    model=dict(name=''),  # a file of jaxkd/models, or a dotted module; its options beside
    task='',  # which of the source's further labels it predicts; '': the label itself
    init=dict(INIT))
TEACHER = dict(
    stage='',  # an earlier stage of this run
    path='',  # instead: the folder of a stage's checkpoints in another run
    which='best',  # step of its checkpoints: best, last, or a step number
    cache='auto',  # compute its outputs once: yes, no, or auto (where its inputs are never augmented)
    outputs=('logits', 'pooled'),  # what is cached of it
    shuffled=False,  # a control: it tells of other patients of equal label, of all where labels are hidden or of places
    out_of_fold=False,  # outputs of a case come from the one of its stage's `folds` networks that never saw the patient
)
LOSS = dict(  # one of `<stage>.method.losses`, beside the options of its file
    student='logits',  # tap of the student: the name of an output; several, 'block1,block2', are a term each
    teacher='',  # its counterpart in the only teacher; '': the same name; 'report/pooled' names the teacher, too
    weight=1.0,  # of the term, beside that of the labels
    schedule='',  # of the weight: '' constant, 'linear 5%', 'cosine down 20 epochs', see jaxkd/training/schedules.py
)
# Ranges of numbers, and the keys whose values are durations, in a config. Those of plug-ins are their own.
SEEDS = '[0, 2147483647]'  # that of a run and of its stage are added, and the loader takes 32 bits
RUN_RANGES = {'bootstrap': '[0, inf)', 'fsdp': '[1, inf)', 'seed': SEEDS}
DATA_RANGES = {'ram_gib': '[0, inf)', 'workers': '[0, inf)', 'threads': '[1, inf)', 'timeout': '(0, inf)',
               'boxes': '[0, inf)', 'split.fractions': '[0, 1]', 'split.folds': '[0, inf)', 'split.fold': '[0, inf)'}
STAGE_RANGES = {'batch': '[1, inf)', 'seed': SEEDS, 'trim.rate': '[0, 1)'}
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
