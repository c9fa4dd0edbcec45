"""Ages as groups, for tables by subgroup and for strata of a split [our choice]."""


def group(years: str | int) -> str:
    """'0-39', '40-59', '60-79' or '80+' of a number of years, '' of an empty cell or 'unknown'; else ValueError."""
    if years in ('', 'unknown'):
        return ''
    number = float(years)
    if not 0 <= number <= 130:
        raise ValueError('no age')
    return '0-39' if number < 40 else '40-59' if number < 60 else '60-79' if number < 80 else '80+'
