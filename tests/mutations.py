"""Valid files with something in them changed, drawn by Hypothesis: bytes, or values of JSON."""

import io
import json
import os
import zipfile

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

FEW = 40  # examples of a kind, where nothing else is asked for
EXAMPLES = int(os.environ.get('KD_JAX_EXAMPLES', FEW))

several = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES == FEW,  # the same ones every day
    database=None,
    phases=(Phase.generate,),  # an example costs too much for smaller ones to be looked for
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

# Instead of a value, as JSON has it; what `json.dumps` would not write, too.
VALUES = (
    'null', 'true', 'false', '0', '-1', '1', '0.5', '-0.0', '1e-320', '1e308', '1e999', '-1e999',
    'NaN', 'Infinity', '-Infinity', str(2**31), str(2**53 + 1), str(2**63), str(10**30),
    str(10**400), '9' * 5000, '""', '" "', '"x"', '"0"', '"nan"', '".."', '"/"', '"~"',
    r'"\u0000"', r'"\n"', r'"\ud800"', r'"\u001b[31m"', r'"\u2028"', '"' + 'a' * 100_000 + '"',
    '[]', '[[]]', '[0]', '["x"]', '[null]', '[1, 2, 3]', '{}', '{"": 0}', '{"a": {"b": [1]}}',
    '[' + '0,' * 100_000 + '0]', '[' * 50 + ']' * 50, '[' * 900 + ']' * 900,
    '[' * 100_000 + ']' * 100_000, '{"a":' * 900 + '0' + '}' * 900,
)  # fmt: skip
KEYS = ('', 'x', '__class__', 'py/object', '\x00', 'a.b', '\x1b', '\ud800', 'k' * 5000)
BYTES = b'\x00\x01\x0a\x20"/0:[\\]{}\x7f\x80\x93\xff'
NUMBERS = (0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
_PLACE = 'here comes a value'


@st.composite
def changed_bytes(draw, content):
    """One to four changes: bits flipped, bytes cut out, repeated, put in, or overwritten."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        count = draw(st.sampled_from([1, 2, 4, 8, 100, 10**9]))
        how = draw(st.sampled_from(['flip', 'cut', 'repeat', 'put in', 'overwrite']))
        if how == 'flip' and at < len(content):
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif how == 'cut':
            del content[at : at + count]
        elif how == 'repeat':
            content[at:at] = content[at : at + count]
        else:
            size = min(count, 8)
            number = draw(st.sampled_from(NUMBERS)) % 2 ** (8 * size)
            order = draw(st.sampled_from(['little', 'big']))
            few = st.lists(st.sampled_from(BYTES), min_size=1, max_size=4)
            new = draw(few.map(bytes) | st.just(number.to_bytes(size, order)))
            content[at : at + (len(new) if how == 'overwrite' else 0)] = new
    return bytes(content)


def _places(node):
    """(container, key) of every value in a document."""
    inside = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in inside:
        yield node, key
        if isinstance(value, (dict, list)) and value:
            yield from _places(value)


@st.composite
def changed_json(draw, text):
    """One to three changes: a value replaced, left out or under another key, a list longer."""
    box = [json.loads(text)]
    new = []
    for _ in range(draw(st.integers(1, 3))):
        node, key = draw(st.sampled_from(list(_places(box))))
        how = draw(st.sampled_from(['replace', 'replace', 'leave out', 'rename', 'add', 'swap']))
        if how == 'replace' or node is box:
            new.append(draw(st.sampled_from(VALUES)))
            node[key] = f'{_PLACE} {len(new) - 1}'
        elif how == 'leave out':
            del node[key]
        elif how == 'swap':
            other = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else [0]))
            node[key], node[other] = node[other], node[key]
        elif isinstance(node, dict):
            name = draw(st.sampled_from(KEYS))
            node[name] = node.pop(key) if how == 'rename' else draw(st.sampled_from([None, 0, {}]))
        else:
            node.insert(key, node[key])
    changed = json.dumps(box[0])
    for number, value in enumerate(new):
        changed = changed.replace(f'"{_PLACE} {number}"', value)
    return changed.encode()


def record(content):
    """Of a file of JSON."""
    return changed_json(content) | changed_bytes(content)


@st.composite
def log(draw, content):
    """Of a file of lines of JSON: a line changed, left out, doubled, moved; or bytes."""
    lines = content.splitlines(keepends=True)
    how = draw(st.sampled_from(['a line', 'a line', 'leave out', 'double', 'move', 'bytes']))
    if how == 'bytes':
        return draw(changed_bytes(content))
    line = lines.pop(draw(st.integers(0, len(lines) - 1)))
    if how != 'leave out':
        at = draw(st.integers(0, len(lines)))
        new = draw(changed_json(line)) + b'\n' if how == 'a line' else line
        lines[at:at] = [new] * (2 if how == 'double' else 1)
    return b''.join(lines)


@st.composite
def archive(draw, content):
    """Of a zip: a member changed, with the right checksum, or bytes of the whole."""
    if draw(st.booleans()):
        return draw(changed_bytes(content))
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, 'w') as new:
        name = draw(st.sampled_from(old.namelist()))
        for entry in old.namelist():
            member = old.read(entry)
            if entry == name:  # nearly all that says something is at the beginning
                head = draw(changed_bytes(member[:1000]))
                member = head + member[1000:]
            new.writestr(entry, member)
    return buffer.getvalue()


@st.composite
def with_head(draw, content, head):
    """Of a file that says in its first `head` bytes what the others are."""
    where = draw(st.sampled_from([head, head, len(content)]))
    return draw(changed_bytes(content[:where])) + content[where:]


@st.composite
def safetensors(draw, content):
    """The description changed, its length right or not; or bytes."""
    size = int.from_bytes(content[:8], 'little')
    head, values = content[8 : 8 + size], content[8 + size :]
    how = draw(st.sampled_from(['description', 'description', 'head', 'bytes']))
    if how == 'description':
        head = draw(record(head))
        return len(head).to_bytes(8, 'little') + head + values
    return draw(with_head(content, 8 + size) if how == 'head' else changed_bytes(content))
