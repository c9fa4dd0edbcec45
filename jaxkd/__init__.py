"""Privileged knowledge distillation for medical imaging: train with everything, deploy with one modality.

For notebooks (jaxkd/notebook), imported when they are called:
    command('train --config jaxkd:mmpkd_cxr --workdir runs/a')    a command of the shell, in this process
    open_run('runs/a')                                            the results of a run, to look at
    show_slices(volume, overlay)                                  volumes side by side, with a slider
"""
from typing import TYPE_CHECKING, Any

__version__ = '0.6.0'

if TYPE_CHECKING:
    from jaxkd.notebook.page import Page
    from jaxkd.notebook.run_view import RunView


def command(line: str) -> None:
    """Run a command line of `jaxkd` in this process, which keeps its devices. Raises RuntimeError unless it ends in 0.

    line: what follows the word jaxkd, quoted as in a shell.
    """
    import shlex

    from jaxkd.__main__ import main
    try:
        code: Any = main(shlex.split(line))
    except SystemExit as e:  # of a wrong command line, and of --help
        code = e.code
    if code:
        raise RuntimeError(f'jaxkd {line}: exit code {code}, for the reason above.')


def open_run(workdir: str) -> 'RunView':
    """The run in a folder. MissingInput where it holds none."""
    from jaxkd.notebook.run_view import RunView
    return RunView(workdir)


def show_slices(volumes: Any, overlay: Any = None, window: tuple[float, float] | None = None) -> 'Page':
    """Volumes side by side with one slider, see jaxkd/notebook/slices.py."""
    from jaxkd.notebook import slices
    return slices.show(volumes, overlay, window)
