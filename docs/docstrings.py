"""Makes reStructuredText, which Sphinx reads, of docstrings: plain prose with Markdown's code."""

import re

SECTION = re.compile(r'(Args|Returns|Raises|Yields):$')
ITEM = re.compile(r'([a-z_]\w*(?:, [a-z_]\w*)*): (.*)')  # `logits: [B, K]`, not in a section
# Code, and what may not stand beside a literal in reStructuredText.
CODE = re.compile(r"""([^\s'"(\[{<\-/:`]?)`([^`]+)`([^\s'")\]}>\-/\\:.,;!?`]?)""")


def to_rst(lines: list[str]) -> list[str]:
    """The lines of a docstring; sections such as `Args:` are left to napoleon."""
    done: list[str] = []
    for block in _blocks(lines):
        if all(line.startswith('    ') for line in block):  # code
            done += ['::', '', *block, '']
        else:
            done += [*escaped('\n'.join(_block(block))).split('\n'), '']
    return done


def _blocks(lines: list[str]) -> list[list[str]]:
    """What stands between empty lines."""
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            blocks[-1].append(line.rstrip())
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]


def _block(block: list[str]) -> list[str]:
    if SECTION.match(block[0]):
        return block
    if block[0].startswith('- '):
        return block
    if ITEM.match(block[0]):
        return _items(block)
    return _indented_as_list(block)


def _items(block: list[str]) -> list[str]:
    """`name: text` and what follows it, as a list."""
    done = []
    for line in block:
        found = ITEM.match(line)
        if found:
            names = ', '.join(f'`{name}`' for name in found[1].split(', '))
            done.append(f'- {names}: {found[2]}')
        else:
            done.append(f'  {line.strip()}')
    return done


def _indented_as_list(block: list[str]) -> list[str]:
    """A paragraph, in which lines that are indented become a list."""
    depths = [len(line) - len(line.lstrip()) for line in block if line.startswith(' ')]
    if not depths:
        return block
    done, inside = [], False
    for line in block:
        depth = len(line) - len(line.lstrip())
        if bool(depth) != inside:
            done.append('')
            inside = bool(depth)
        done.append(
            f'- {line.strip()}' if depth == min(depths) else f'  {line.strip()}' if depth else line
        )
    return done


def escaped(text: str) -> str:
    """Code between single backticks as literals; elsewhere nothing that would be interpreted."""
    parts, end = [], 0
    for found in CODE.finditer(text):
        before, code, after = found.groups()
        parts.append(_prose(text[end : found.start()] + before) + ('\\ ' if before else ''))
        parts.append('``' + ' '.join(code.split()) + '``' + ('\\ ' if after else ''))
        end = found.end() - len(after)
    parts.append(_prose(text[end:]))
    return ''.join(parts)


def _prose(text: str) -> str:
    text = re.sub(r'([*|\\])', r'\\\1', text)
    return re.sub(r'(\w)_(?!\w)', r'\1\\_', text)
