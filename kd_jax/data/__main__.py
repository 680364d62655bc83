"""Looks at a folder of images before anything trains: `kd_jax data /path/to/images`."""

import hashlib
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from kd_jax import markdown
from kd_jax.data import Settings, decoding, folder, listing, load
from kd_jax.data.listing import Item
from kd_jax.errors import Parser, UserError, told_to_the_user
from kd_jax.fields import defaults

SHOWN = 20  # files or pairs that are named
TILE, COLUMNS, ROWS = 72, 12, 24  # of the contact sheet, in pixels and images


class Looked(NamedTuple):
    """What one file is: its header and hash, or what is wrong with it."""

    item: Item
    header: decoding.Header | None
    digest: str
    wrong: str


def look(root: Path, items: Sequence[Item]) -> list[Looked]:
    """Every file, decoded to see whether it can be."""

    def one(item: Item) -> Looked:
        try:
            content = folder.read(root, item)
            header = decoding.header(content)
            decoding.decode(content, 8, 3)
        except decoding.Bad as error:
            return Looked(item, None, '', str(error))
        return Looked(item, header, hashlib.blake2b(content, digest_size=16).hexdigest(), '')

    with ThreadPoolExecutor() as pool:
        return list(pool.map(one, items, chunksize=64))


def leaks(found: Sequence[Looked]) -> list[tuple[str, str]]:
    """(path in train, path in another split) of files with the same content."""
    by_content: dict[str, list[Item]] = defaultdict(list)
    for one in found:
        if one.digest:
            by_content[one.digest].append(one.item)
    pairs = []
    for items in by_content.values():
        train = [item for item in items if item.split == 'train']
        others = [item for item in items if item.split != 'train']
        pairs += [(train[0].path, item.path) for item in others if train]
    return pairs


def report(root: Path, found: Sequence[Looked], notes: Sequence[str]) -> str:
    """What there is, in Markdown."""
    splits = [
        split for split in ('train', 'val', 'test') if any(f.item.split == split for f in found)
    ]
    counts = Counter((f.item.label, f.item.split) for f in found if not f.wrong)
    names = listing.class_names([f.item for f in found])
    rows = [[name, *(f'{counts[name, split]:,}' for split in splits)] for name in names]
    rows.append(['all', *(f'{sum(counts[n, split] for n in names):,}' for split in splits)])
    parts = [markdown.table(['class', *splits], rows, 'l' + 'r' * len(splits))]
    good = [f.header for f in found if f.header is not None]
    if good:
        parts.append(_sizes(good))
    wrong = [f for f in found if f.wrong]
    if wrong:
        lines = [f'- {root / f.item.path} {f.wrong}' for f in wrong[:SHOWN]]
        parts.append('\n'.join([f'{len(wrong)} files cannot be used:', *lines, *_more(wrong)]))
    same = leaks(found)
    if same:
        lines = [f'- {root / a} = {root / b}' for a, b in same[:SHOWN]]
        head = f'{len(same)} test or validation images are training images, too (the same file):'
        parts.append('\n'.join([head, *lines, *_more(same)]))
    parts += [f'{note}.' for note in notes]
    return '\n\n'.join(parts)


def _more(all_: Sequence[Any]) -> list[str]:
    return [f'- and {len(all_) - SHOWN} more'] if len(all_) > SHOWN else []


def _sizes(good: Sequence[decoding.Header]) -> str:
    def range_of(values: Sequence[int]) -> str:
        return f'{min(values)} to {max(values)} (median {statistics.median(values):g})'

    formats = Counter(header.format for header in good)
    grey = sum(header.grey for header in good)
    told = ', '.join(f'{count:,} {name}' for name, count in formats.most_common())
    return (
        f'{told}; {grey:,} grey, {len(good) - grey:,} in colour; width '
        f'{range_of([h.width for h in good])}, height {range_of([h.height for h in good])} pixels.'
    )


def contact_sheet(root: Path, found: Sequence[Looked], path: Path) -> None:
    """A picture of some images of each class, a class a row."""
    names = listing.class_names([f.item for f in found])
    names = tuple(
        names[k] for k in np.linspace(0, len(names) - 1, min(len(names), ROWS)).astype(int)
    )
    width = COLUMNS * TILE
    sheet = Image.new('RGB', (width, len(names) * (TILE + 16)), 'white')
    draw = ImageDraw.Draw(sheet)
    by_class: Mapping[str, list[Item]] = {name: [] for name in names}
    for f in found:
        if not f.wrong and f.item.label in by_class:
            by_class[f.item.label].append(f.item)
    for row, name in enumerate(names):
        top, items = row * (TILE + 16), by_class[name]
        draw.text((2, top), ascii(name)[1:-1], fill='black')
        chosen = np.linspace(0, len(items) - 1, min(len(items), COLUMNS)).astype(int)
        for column, k in enumerate(chosen):
            image = decoding.decode(folder.read(root, items[k]), TILE, 3)
            sheet.paste(Image.fromarray(image), (column * TILE, top + 14))
    sheet.save(path, format='PNG')


def main() -> None:
    parser = Parser(
        prog='python -m kd_jax.data',
        description='Look at a folder of images: classes, sizes, damaged files, duplicates.',
    )
    parser.add_argument('path', type=Path, help='root/class/* or root/{train,val,test}/class/*')
    parser.add_argument('--labels', default='', help='a .csv or .jsonl table: path, label, split')
    parser.add_argument(
        '--sheet', type=Path, help='write a contact sheet, some images of each class, to this PNG'
    )
    arguments = parser.parse_args()
    with told_to_the_user(arguments.sheet or 'the contact sheet'):
        root = arguments.path.expanduser()
        given = listing.listed(root, arguments.labels)
        fields = defaults(Settings) | {'source': 'folder', 'path': str(root), 'cache': 'off'}
        settings = Settings(**fields | {'labels': arguments.labels})
        items, notes = folder.splits_of(given.items, settings.test_share, settings.val_seed, root)
        found = look(root, items)
        others = [f'{given.others:,} other files are left out'] if given.others else []
        unreadable = [f'{what} cannot be read' for what in given.unreadable[:SHOWN]]
        print(report(root, found, [*notes, *others, *unreadable]), flush=True)
        if arguments.sheet:
            contact_sheet(root, found, arguments.sheet)
            print(f'\n{arguments.sheet}', flush=True)
        try:
            info = load(settings).info
        except UserError as error:
            raise UserError(f'a training would be refused: {error}') from error
        height, width, channels = info.image_shape
        print(
            f'\nA training sees {info.count["train"]:,} training, {info.count["val"]:,} validation '
            f'and {info.count["test"]:,} test images of {height} x {width} x {channels}.'
        )


if __name__ == '__main__':
    main()
