#!/usr/bin/env bash
# torchdistill 1.1.5, torch 2.13.0: similarity-preserving distillation is computed with rows of L1 norm 1.
#
# Tung and Mori (ICCV 2019) divide each row of the batch's similarity matrix by its L2 norm, and so do other code bases.
# SPKDLoss of torchdistill, which names that article, divides by the sum of absolute values. Of the three cases below
# the article's loss is 0.025974; SPKDLoss says 0.014048. Rows of L1 norm 1 shrink with the batch, rows of L2
# norm 1 do not, so a weight that was tuned elsewhere (3000 is usual) means something else here, and differently so for
# each batch size: for 64 random cases of 32 features the loss is 3 % of that of the article.
# Expected from the name and the reference: the article's value. The script fails when that comes true.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet torch==2.13.0 torchdistill==1.1.5
"$work/env/bin/python" - <<'PY'
import torch
from torchdistill.losses.mid_level import SPKDLoss


def article(a, b, order):
    rows = [torch.nn.functional.normalize(x.flatten(1) @ x.flatten(1).T, p=order, dim=1) for x in (a, b)]
    return float(((rows[0] - rows[1]) ** 2).sum() / len(a) ** 2)


def library(a, b):
    loss = SPKDLoss(student_output_path='m', teacher_output_path='m', reduction='batchmean')
    return float(loss({'m': {'output': a}}, {'m': {'output': b}}))


torch.manual_seed(0)
small = (torch.tensor([[1., 0.], [.6, .8], [0., 2.]]), torch.tensor([[1., 1.], [0., 1.], [-1., 2.]]))
large = (torch.randn(64, 32), torch.randn(64, 32))
for name, pair in (('3 cases', small), ('64 cases', large)):
    print(f'{name}: article {article(*pair, 2):.6f}, with L1 rows {article(*pair, 1):.6f}, SPKDLoss {library(*pair):.6f}')
    assert abs(library(*pair) - article(*pair, 2)) > 0.3 * article(*pair, 2), 'this finding is out of date'
PY
