"""The command `jaxkd`, also `python -m jaxkd`: one command for each thing that is done with a run.

    jaxkd COMMAND --help says what it takes. The modules can be called as well: jaxkd train is python -m jaxkd.main.
"""
import argparse
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence

import jaxkd
from jaxkd.runtime.cli import EXIT_CODES, guarded, leave, show

VALUES = """    jaxkd options vit                                              what a plug-in may be told
    jaxkd options configs/mmpkd_cxr.py:smoke student.optim         what a config tells it, below a key"""
MODULES = {  # command: (module with `main(argv) -> exit code`, imported when it is asked for; what it does)
    'train': ('jaxkd.main', 'train and evaluate what a config describes, or continue it'),
    'predict': ('jaxkd.predict', 'apply a trained network to new cases'),
    'export': ('jaxkd.export.__main__', 'write a trained student as a bundle that runs elsewhere'),
    'evaluate': ('jaxkd.evaluate', 'test a finished run again, also on new data'),
    'report': ('jaxkd.report.__main__', 'write report.html of a run again, or one page over several runs'),
    'multirun': ('jaxkd.multirun.__main__', 'seeds, folds, held-out groups, grids of options: their pooled results'),
    'sweep': ('launch.sweep', 'many runs, here, on SLURM, TPU VMs or Kubernetes; or a search'),
    'status': ('launch.status', 'what runs of a sweep, what failed and why, and when it may be done'),
    'collect': ('launch.collect', 'one table of the runs of a sweep'),
    'check': ('jaxkd.commands.check', 'look at a folder of your own data: counts, parts, sizes, duplicates, pictures'),
    'prepare': ('jaxkd.data.prepare', 'decode and resample every case once'),
    'phantoms': ('jaxkd.phantoms.__main__', 'write phantoms in the layout of an archive, or draw them'),
    'track': ('jaxkd.commands.track', 'hand a run to MLflow: options, curves, test metrics, the report'),
    'doctor': ('jaxkd.commands.doctor', 'versions, devices, memory, extras, and a self-test'),
}


def main(argv: Sequence[str] | None = None) -> int:
    """-> the exit code."""
    commands = {name: about for name, (_, about) in MODULES.items()} | {
        name: (function.__doc__ or '').partition('.')[0] for name, function in FUNCTIONS.items()}
    width = max(map(len, commands))
    listed = '\n'.join(f'  {name:{width}}  {about}' for name, about in commands.items())
    parser = argparse.ArgumentParser('jaxkd', usage='jaxkd COMMAND [options]', description=__doc__, allow_abbrev=False,
                                     epilog=f'commands:\n{listed}\n\n{EXIT_CODES}',
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('command', metavar='COMMAND', help='see below')
    parser.add_argument('--version', action='store_true', help='print the version, and stop')
    parser.add_argument('--print_completion', metavar='SHELL', help='print what bash, zsh, tcsh or fish completes with')
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] == ['--version']:
        print(jaxkd.__version__)
        return 0
    if args[:1] == ['--print_completion']:
        return guarded(_completion, commands, (args[1:] or [''])[0])
    command = parser.parse_args(args[:1] or ['--help']).command
    if command not in commands:
        from jaxkd import errors
        parser.error(f'There is no command "{command}".{errors.nearest(command, commands)}')
    if command in FUNCTIONS:
        return FUNCTIONS[command](args[1:])
    return importlib.import_module(MODULES[command][0]).main(args[1:])


def _completion(commands: Mapping[str, str], shell: str) -> int:
    from jaxkd.commands import completion
    return show(completion.script(MODULES, {name: commands[name] for name in FUNCTIONS}, shell))


def _list(argv: Sequence[str]) -> int:
    """configs, variants, models, methods, sources, transforms and evaluators, one line each."""
    parser = argparse.ArgumentParser('jaxkd list', description=_list.__doc__, allow_abbrev=False, epilog=EXIT_CODES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', nargs='*', metavar='WHAT', help='configs, models, methods, losses, sources, phantoms, '
                        'transforms or evaluators; or files and folders of configs (default: all)')
    what = parser.parse_args(argv).what

    def listed() -> int:
        from jaxkd import errors
        from jaxkd.config import catalogue
        kinds = {kind.rpartition('/')[2]: kind for kind in catalogue.TITLES} | {'losses': 'distillation'}
        paths = [word for word in what if word not in kinds and word != 'configs']
        for word in paths:
            if not ('.' in word or ':' in word or os.path.exists(word)):
                raise errors.ConfigError(f'There is no list of "{word}".{errors.nearest(word, [*kinds, "configs"])}')
        parts = [catalogue.configs(paths)] if paths or 'configs' in what else []
        parts += [catalogue.of_kind(kinds[word]) for word in what if word in kinds]
        return show('\n\n'.join(parts) if what else catalogue.everything())
    return guarded(listed)


def _options(argv: Sequence[str]) -> int:
    """the options of a plug-in, or of a config below a key, with their values and meanings."""
    parser = argparse.ArgumentParser('jaxkd options', allow_abbrev=False, description=f'{_options.__doc__}\n\n{VALUES}',
                                     epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('name', nargs='+', metavar='NAME', help='mmpkd, vit, models/text, my_package.my_model; optim; '
                        'run, stage, network, teacher: keys of a config that belong to no plug-in; '
                        'or a config, and keys of it')
    names = parser.parse_args(argv).name

    def described() -> int:
        from jaxkd import config
        from jaxkd.config import catalogue
        if catalogue.is_config(names[0]):
            loaded = config.load(names[0])
            return show('\n'.join(config.describe_options(loaded, key) for key in names[1:] or ['']))
        return show('\n\n'.join(map(catalogue.options, names)))
    return guarded(described)


FUNCTIONS: dict[str, Callable[[Sequence[str]], int]] = {'list': _list, 'options': _options}


def run() -> None:
    """The console script. It finds modules of one's own in the working directory, as python -m does."""
    if not sys.flags.safe_path:
        sys.path.append(os.getcwd())
    leave(main())
    sys.exit(0)


if __name__ == '__main__':
    run()
