"""Tables in Markdown."""

from collections.abc import Sequence


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    align: str = '',
    *,
    padded: bool = False,
    rule: str = ' ',
) -> str:
    """A table of text, without a newline at its end.

    align: a letter a column, `l` or `r`, such as 'llr'; '' = all to the left.
    padded: columns of equal width, to be read as they are.
    rule: what stands around the dashes below the head of a table that is not padded.
    """
    lines, align = [head, *rows], align or 'l' * len(head)
    widths = [max(map(len, column)) if padded else 0 for column in zip(*lines, strict=True)]
    text = [[_fill(*cell) for cell in zip(line, widths, align, strict=True)] for line in lines]
    dashes = []
    for width, side in zip(widths, align, strict=True):
        line = '-' * (width + 2) if padded else '---'
        dashes.append(line if side == 'l' else f'{line[:-1] if padded else line}:')
    edge = '' if padded else rule
    below = '|' + '|'.join(f'{edge}{dash}{edge}' for dash in dashes) + '|'
    first, *others = (f'| {" | ".join(line)} |' for line in text)
    return '\n'.join([first, below, *others])


def _fill(cell: str, width: int, side: str) -> str:
    return cell.ljust(width) if side == 'l' else cell.rjust(width)
