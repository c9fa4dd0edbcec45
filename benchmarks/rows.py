"""The rows of the table: which two things are compared, and what is aimed at."""
import dataclasses
from collections.abc import Iterable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Side:
    """One thing that is measured.

    kind: 'training', 'torch', 'metrics', 'inputs', 'sliding' are resident workers of benchmarks/<kind>.py, 'monai' is
    sliding.py with MONAI, 'command' a command line that is run anew each time (benchmarks/commands.py). tree: 'here',
    or 'against' for the jaxkd of --against.
    """

    kind: str
    case: str
    tree: str = 'here'
    mode: str = 'step'

    @property
    def label(self) -> str:
        mode = '' if self.mode == 'step' else f' ({self.mode})'
        tree = '' if self.tree == 'here' else ' of the other tree'
        return f'{dict(torch="torch", monai="MONAI").get(self.kind, "jaxkd")} {self.case}{mode}{tree}'


@dataclasses.dataclass(frozen=True)
class Row:
    """ratio = `over` / `under` of the clock, or of `quantity`. at_least or at_most is the target, None: there is none.

    of: names of other rows, for a row that is derived: the largest ratio of peak memory, under / over, of their sides.
    """

    name: str
    title: str
    over: Side | None = None
    under: Side | None = None
    quantity: str = 'seconds'
    at_least: float | None = None
    at_most: float | None = None
    of: tuple[str, ...] = ()

    @property
    def sides(self) -> list[Side]:
        return [side for side in (self.over, self.under) if side]

    def reached(self, ratio: float) -> bool | None:
        """Whether the target is; None without one."""
        if self.at_least is None and self.at_most is None:
            return None
        return ratio >= (self.at_least or 0) and ratio <= (self.at_most or float('inf'))


def torch_row(name: str, title: str, at_least: float | None, case: str = '', mode: str = 'step', **more: Any) -> Row:
    """How many times faster than the twin in PyTorch."""
    case = case or name
    return Row(name, title, Side('torch', case, mode=mode), Side('training', case, mode=mode), at_least=at_least,
               **more)


def other_tree(name: str, title: str, at_most: float | None, kind: str = 'command', quantity: str = 'seconds') -> Row:
    """The share of the other tree's time that is left: of metrics, which have one thread, processor time."""
    case, quantity = name.removesuffix('_cpu'), 'cpu' if kind == 'metrics' else quantity
    return Row(name, title, Side(kind, case), Side(kind, case, 'against'), quantity, at_most=at_most)


STEPS = (
    torch_row('student_loop', "student's training loop of the main job, input included", 1.1, 'mmpkd', 'loop'),
    torch_row('student_step', 'its step alone', 1.05, 'mmpkd'),
    torch_row('student_input', 'its input alone', None, 'mmpkd', 'input'),
    torch_row('vit_ti', 'ViT-Ti/16, 224 x 224, batch 8', 0.9),
    torch_row('vit_s', 'ViT-S/16, 224 x 224, batch 8', 0.9),
    torch_row('matmul', "the products of ViT-Ti's wide layer, nothing else", None),
    torch_row('resnet18_2d', 'ResNet-18, 224 x 224, batch 8', 0.9),
    torch_row('resnet18_3d', 'ResNet-18, 64 x 64 x 64, batch 2', 1.3),
    torch_row('cpkd', 'CPKD: a CT and two MRI networks', 1.5),
    torch_row('ct_only', 'its CT network alone', None),
    torch_row('nct', "CPMN's pathway on NCT", 1.4),
    torch_row('unet_2d', '2D U-Net of SIKD', 1.2),
    torch_row('sikd', 'SIKD: with its frozen teacher', None),
    torch_row('vit_b', 'ViT-B/16 in bfloat16 with a cached teacher, batch 64, against torch.compile', 1.15))
DISTILLATION = (
    Row('mmpkd_overhead', 'MMPKD with a cached teacher, against the image alone', Side('training', 'mmpkd'),
        Side('training', 'image_only'), at_most=1.05),
    Row('sikd_overhead', 'SIKD with its frozen teacher, against the U-Net', Side('training', 'sikd'),
        Side('training', 'unet_2d')),
    Row('cpmn_overhead', 'CPMN against one pathway', Side('training', 'cpmn'), Side('training', 'nct'), at_most=2.2),
    Row('cpkd_overhead', 'CPKD against CT alone (three networks)', Side('training', 'cpkd'),
        Side('training', 'ct_only'), at_most=2.1))
MEMORY = (Row('memory', "peak memory of a training process against the twin's, the largest of the rows above",
              of=tuple(row.name for row in STEPS if row.name not in ('matmul', 'student_input')), at_most=1.5),)
PREDICTION = tuple(  # on one thread, so processor time
    Row(name, title, over, Side('sliding', under), 'cpu', at_least) for name, title, over, under, at_least in (
        ('windows', 'a volume by 27 overlapping windows, against the network alone on as many',
         Side('sliding', 'network'), 'volume', 0.9),
        ('windows_monai', "the same, against MONAI's SlidingWindowInferer and its DynUNet of these channels",
         Side('monai', 'volume'), 'volume', 3),
        ('windows_monai_network', 'the networks alone', Side('monai', 'network'), 'network', None),
        ('windows_monai_mean', 'windows and weighted mean alone', Side('monai', 'identity'), 'identity', None)))
METRICS = (
    other_tree('bootstrap', 'bootstrap of patients: 20,000 cases, 8 labels, 1,000 resamples', 0.15, 'metrics'),
    other_tree('bootstrap_missing', 'the same, 2 images a patient, 20 % of the labels missing', 0.15, 'metrics'),
    other_tree('bootstrap_450', 'the same, 450 cases', None, 'metrics'),
    other_tree('localisation', 'localisation, 64 x 64, 100 images', 0.3, 'metrics'),
    other_tree('localisation_224', 'localisation, 224 x 224, 20 images', 0.3, 'metrics'))
INPUTS = tuple(other_tree(name, title, 1.05, 'inputs', 'cpu') for name, title in (
    ('start_up_chexpert', 'start-up on 400,000 rows of CheXpert, processor time'),
    ('start_up_folder', 'start-up on 400,000 rows of a folder with reports'),
    ('image_png8', 'a PNG of 1024 x 1024 pixels to 224 x 224'),
    ('image_png16', 'the same, 16 bits'),
    ('image_stream', 'a batch of 32 such images from the training stream, augmented')))
COMMANDS = (
    other_tree('smoke_cold', '`:smoke` of the main job, nothing compiled', 0.5),
    other_tree('smoke_warm', '`:smoke` with kept programs', 0.4),
    other_tree('dry_run', '`--dry_run` of `:smoke`, with what the tree keeps', 0.2),
    other_tree('dry_run_cold', '`--dry_run` of `:smoke`, nothing compiled', None),
    other_tree('main_job', 'main job, `configs/mmpkd_cxr.py`', 0.5),
    other_tree('main_job_cpu', 'the same, processor time', 0.5, quantity='cpu'))
ROWS = {row.name: row for row in (*STEPS, *DISTILLATION, *MEMORY, *PREDICTION, *METRICS, *INPUTS, *COMMANDS)}


def chosen(names: Iterable[str]) -> list[Row]:
    """The rows of these names in the order of the table; without a name all. SystemExit for an unknown one."""
    names = list(names)
    if unknown := [name for name in names if name not in ROWS]:
        raise SystemExit(f'--only {unknown[0]}: no such row. Rows: {", ".join(ROWS)}')
    return [row for name, row in ROWS.items() if name in names or not names]
