"""Options in a message as they are typed on the command line: a plug-in knows its options, not where they stand."""
import collections
import re
from collections.abc import Mapping
from typing import Any

from jaxkd.config.option_docs import dotted


def typed(message: str, options: Mapping[str, Any], key: str) -> str:
    """`message` of a plug-in whose `options` stand at `key` of the config, 'data.source'.

    An option that is to be set (`set empty_text="ok"`, `Set root to`, `in labels of the source`, `x: root "y"`) gets
    its full name, --config.data.source.empty_text="ok". Names that several of nested options have stay.
    """
    paths = {path: path.rpartition('.')[2] for path in dotted(options)}
    counts = collections.Counter(paths.values())
    full = {name: f'--config.{key}.{path}' for path, name in paths.items() if counts[name] == 1 and name != 'name'}
    if not full:
        return message
    last = re.escape(key.rpartition('.')[2])
    name = f'(?:{"|".join(map(re.escape, sorted(full, key=len, reverse=True)))})'
    several = rf'{name}(?:, {name})*(?:,? (?:or|and) {name})?'

    def whole(found: re.Match) -> str:
        return re.sub(rf'(?<![\w.]){name}(?!\w)', lambda part: full[part[0]], found[1])

    prefix = rf'(?<![\w./-])(?:(?:{re.escape(key)}|{last})\.)?'
    message = re.sub(rf'{prefix}({name})=', lambda found: f'{full[found[1]]}=', message)
    message = re.sub(rf'(?<=: )({name}) (?=")', lambda found: f'{full[found[1]]}=', message)
    message = re.sub(rf'(?<=\bin )({name}) of the source\b', whole, message)
    return re.sub(rf'(?<=\b[Ss]et )({several})(?: of the source\b|(?= to\b))', whole, message)
