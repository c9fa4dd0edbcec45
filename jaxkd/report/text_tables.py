"""Tables as text: CSV, Markdown, LaTeX."""
import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Text of a CSV file with all columns of these rows, {column: value}; None is an empty cell."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_markdown(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ['---'] * len(head), *cells]
    return ''.join('| ' + ' | '.join(cell.replace('|', r'\|') for cell in line) + ' |\n' for line in lines)


def as_latex(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A tabular of LaTeX, with the rules of booktabs."""
    def row(line: Sequence[str]) -> str:
        return ' & '.join(map(_escaped, line)) + r' \\' + '\n'
    return (f'\\begin{{tabular}}{{{"l" * len(head)}}}\n\\toprule\n{row(head)}\\midrule\n'
            + ''.join(map(row, cells)) + '\\bottomrule\n\\end{tabular}\n')


def _escaped(text: str) -> str:
    special = {'\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}'}
    return ''.join(special.get(c, f'\\{c}' if c in '&%$#_{}' else c) for c in text)
