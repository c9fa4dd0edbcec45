"""Write the report of a working folder again: python -m jaxkd.report WORKDIR"""
import argparse
import sys
from collections.abc import Sequence

from jaxkd import errors
from jaxkd.report import html_page


def main(argv: Sequence[str] | None = None) -> int:
    """-> the exit code."""
    parser = argparse.ArgumentParser('jaxkd.report', description=__doc__)
    parser.add_argument('workdir', help='the folder of a run, with config.json and summary.json')
    try:
        print(html_page.write(parser.parse_args(argv).workdir))
    except errors.JaxkdError as e:
        print(f'error: {e}', file=sys.stderr)
        return e.code
    return 0


if __name__ == '__main__':
    sys.exit(main())
