"""What a notebook shows: parts of a report in a frame of their own, without any other file; and tables."""
import html
import importlib.util
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxkd.report import html_page
from jaxkd.runtime import files

HEIGHT = 480  # of a frame in pixels until its content is there
FIT = "this.style.height = this.contentDocument.documentElement.scrollHeight + 8 + 'px'"


class Page:
    """HTML that a notebook shows below its cell: a whole document."""

    def __init__(self, document: str) -> None:
        self.html = document

    @classmethod
    def of(cls, title: str, body: Iterable[Any]) -> 'Page':
        """body: jaxkd.report.markup.Html, or text, which is escaped."""
        return cls(html_page.document(title, body))

    def _repr_html_(self) -> str:
        return (f'<iframe srcdoc="{html.escape(self.html)}" onload="{html.escape(FIT)}" '
                f'style="width:100%; height:{HEIGHT}px; border:0"></iframe>')

    def save(self, path: str | pathlib.Path) -> None:
        """Write it as an HTML file. Raises CannotWrite."""
        files.write(path, self.html)


def table(columns: Mapping[str, np.ndarray]) -> Any:
    """A pandas.DataFrame of columns of equal length, where pandas is installed; else a numpy record array."""
    if importlib.util.find_spec('pandas'):
        import pandas
        return pandas.DataFrame(dict(columns))
    if not columns:
        return np.recarray(0, dtype=[])
    arrays: Any = [np.asarray(values) for values in columns.values()]
    names: Any = list(columns)
    return np.rec.fromarrays(arrays, names=names)
