"""Write the report of a working folder again: python -m jaxkd.report WORKDIR

Of a folder of runs, such as `runs`, it writes index.html: one page over all of them, whose tables sort.

With --out FOLDER a copy of the page and of the tables behind it is written there, to hand on. --deidentify puts
pseudonyms in place of the ids of cases, patients and studies in that copy; groups of cases (site, sex) stay as they
are, and so do pictures.
"""
import argparse
import pathlib
from collections.abc import Sequence

from jaxkd.runtime.cli import EXIT_CODES, guarded, leave


def build_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser('jaxkd.report', description=__doc__, epilog=EXIT_CODES, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('workdir', help='the folder of a run, with config.json and summary.json; or of several runs')
    parser.add_argument('--out', metavar='FOLDER', help='a folder for the copy that is handed on')
    parser.add_argument('--deidentify', action='store_true', help='pseudonyms in place of ids, in the copy')
    parser.add_argument('--salt', metavar='FILE', default='',
                        help='what the pseudonyms are made with (default: ~/.config/jaxkd/deidentify.salt)')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """-> the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.deidentify and not args.out:
        parser.error('--deidentify needs --out FOLDER: the folder of the run holds the ids in its own files.')
    return guarded(_run, args)


def _run(args: argparse.Namespace) -> int:
    from jaxkd.report import html_page, several_runs
    if not args.out:
        is_run = any((pathlib.Path(args.workdir) / name).exists() for name in ('config.json', 'summary.json'))
        print((html_page if is_run else several_runs).write(args.workdir))
        return 0
    from jaxkd.runtime import deidentify
    names = deidentify.pseudonyms(args.salt, [args.out, args.workdir]) if args.deidentify else None
    print(html_page.hand_on(args.workdir, args.out, names))
    return 0


if __name__ == '__main__':
    leave(main())
