#!/usr/bin/env bash
# orbax-checkpoint 0.12.8, jax 0.10.2: a save moves the point at which JAX's hosts agree to stop, and a notice is lost.
#
# multihost_utils.reached_preemption_sync_point(n) is to be asked with a number that grows. After a notice (SIGTERM, or
# of a TPU's maintenance) JAX chooses the number after the last one that any host asked with, and answers True there, on
# all hosts. CheckpointManager.save asks the same service itself, with the step of the save, and so does its thread that
# ends the save. A program that counts its places otherwise than its saves, here batches against optimiser steps, then
# has two series in one counter: saved at step 3 after batch 1000, the notice chooses 4, which the program has passed.
# It is never told to stop, and ends at the end of the grace time without a last save. Seen here: asked at the batches
# 1001 to 1005 after the notice it says False five times; without the save it says True at once.
# Expected from the documentation of both: that saving asks nothing in the program's name. A way out is a subclass of
# CheckpointManager whose reached_preemption returns False. The script fails when a save leaves the point alone.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 orbax-checkpoint==0.12.8
cat > "$work/program.py" <<'PY'
import os
import signal
import socket
import sys
import time

import jax
import numpy as np

with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
jax.distributed.initialize(f'127.0.0.1:{port}', 1, 0)

import orbax.checkpoint as ocp  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402

batches = 1000
assert not multihost_utils.reached_preemption_sync_point(batches)
if sys.argv[1] == 'saved':
    manager = ocp.CheckpointManager(sys.argv[2])
    manager.save(3, args=ocp.args.StandardSave({'w': np.zeros(4)}))
    manager.wait_until_finished()
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(5)  # the service hears of it within a second
answers = [bool(multihost_utils.reached_preemption_sync_point(batches + i)) for i in range(1, 6)]
print(sys.argv[1], answers, flush=True)
os._exit(0 if any(answers) == (sys.argv[1] == 'alone') else 1)
PY
for kind in alone saved; do
    JAX_PLATFORMS=cpu "$work/env/bin/python" "$work/program.py" "$kind" "$work/checkpoints" 2>"$work/errors" ||
        { tail -5 "$work/errors"; echo 'this finding is out of date'; exit 1; }
done
