"""Which image files there are under a folder, with their classes and splits."""

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from kd_jax.data.decoding import ENDINGS
from kd_jax.errors import UserError

# Names of folders that hold a split.
SPLITS = {
    'train': 'train', 'training': 'train',
    'val': 'val', 'valid': 'val', 'validation': 'val',
    'test': 'test', 'testing': 'test',
}  # fmt: skip
MOST_FILES = 20_000_000


class Item(NamedTuple):
    """A file: its path under the root, its class, its split ('' = none is named)."""

    path: str
    label: str
    split: str


class Listing(NamedTuple):
    """What stands under a folder: files that end as images do, how many others, and what cannot be
    looked at.
    """

    items: tuple[Item, ...]
    others: int
    unreadable: tuple[str, ...]


def listed(root: Path, labels: str = '') -> Listing:
    """Of `root/class/*`, `root/{train,val,test}/class/*`, or as the table `labels` says.

    labels: a .csv or .jsonl file, under the root or elsewhere, with `path`, `label` and perhaps
    `split`. Files in folders below a class belong to it.

    Raises:
      UserError: for a root or a table that is not there, cannot be read, or holds no image.
    """
    if not root.is_dir():
        raise UserError(f'there is no directory {root}; correct data.path')
    found = _of_table(root, labels) if labels else _of_folders(root)
    if not found.items:
        told = f', and {found.others} other files' if found.others else ''
        cannot = f'; {found.unreadable[0]} cannot be read' if found.unreadable else ''
        raise UserError(
            f'{root} holds no images in folders of classes{told}{cannot}: put them into '
            'root/class/ or root/train/class/, or name a table in data.labels'
        )
    return found


def _of_folders(root: Path) -> Listing:
    items: list[Item] = []
    others, unreadable, empty = 0, list[str](), list[str]()
    tops = sorted(name for name, is_dir in _entries(root, unreadable) if is_dir)
    named = [name for name in tops if name.lower() in SPLITS]
    # a class may be called 'test', if there are others that are no splits
    as_splits = 'train' in {SPLITS[name.lower()] for name in named} and len(named) == len(tops)
    for top in tops:
        split = SPLITS[top.lower()] if as_splits else ''
        classes = (
            sorted(name for name, is_dir in _entries(root / top, unreadable) if is_dir)
            if as_splits
            else [top]
        )
        for label in classes:
            before = len(items)
            start = os.path.join(top, label) if as_splits else top
            for path in files(root, start, unreadable):
                if path.lower().endswith(ENDINGS):
                    items.append(Item(path, label, split))
                else:
                    others += 1
                if len(items) > MOST_FILES:
                    raise UserError(f'{root} holds more than {MOST_FILES} files; take fewer')
            if len(items) == before:
                empty.append(start)
    if empty and items:
        raise UserError(
            f'class {empty[0]!r} of {root} holds no image; add some, or take the folder away'
        )
    return Listing(tuple(sorted(items)), others, tuple(unreadable))


def _entries(folder: Path, unreadable: list[str]) -> Iterator[tuple[str, bool]]:
    """(name, whether it is a folder) of what is not hidden."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith('.'):
                    yield entry.name, entry.is_dir()
    except OSError as error:
        unreadable.append(f'{folder} ({error.strerror})')


def files(root: Path, start: str, unreadable: list[str]) -> Iterator[str]:
    """All files below a folder, links to folders followed once."""
    waiting, seen = [start], set()
    while waiting:
        here = waiting.pop()
        try:
            place = os.stat(root / here)
        except OSError as error:
            unreadable.append(f'{root / here} ({error.strerror})')
            continue
        if (place.st_dev, place.st_ino) in seen:
            continue
        seen.add((place.st_dev, place.st_ino))
        for name, is_dir in _entries(root / here, unreadable):
            path = os.path.join(here, name)
            if is_dir:
                waiting.append(path)
            else:
                yield path


def _of_table(root: Path, labels: str) -> Listing:
    path = Path(labels).expanduser()
    path = path if path.is_absolute() or path.exists() else root / path
    fix = f'; write {path.name} with the columns path, label and, if you like, split'
    try:
        text = path.read_text(encoding='utf-8-sig')
    except (OSError, UnicodeError, ValueError) as error:
        why = getattr(error, 'strerror', None) or 'it is no text in UTF-8'
        raise UserError(f'data.labels {path} cannot be read ({why}); correct it') from None
    items = []
    for number, row in enumerate(_rows(path, text, fix), 1):
        values = {key: row.get(key) for key in ('path', 'label', 'split')}
        if values['path'] in (None, '') or values['label'] in (None, ''):
            raise UserError(f'row {number} of {path} lacks its path or its label{fix}')
        split = str(values['split'] or '').lower()
        if split and split not in SPLITS:
            raise UserError(
                f'row {number} of {path} has the split {split!r}; it must be train, val or test'
            )
        items.append(Item(str(values['path']), str(values['label']), SPLITS.get(split, '')))
    return Listing(tuple(items), 0, ())


def _rows(path: Path, text: str, fix: str) -> Iterator[Mapping[str, object]]:
    if path.suffix.lower() in ('.jsonl', '.ndjson'):
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise UserError(f'line {number} of {path} is no JSON object{fix}')
            yield row
        return
    delimiter = '\t' if path.suffix.lower() == '.tsv' else ','
    try:
        reader = csv.DictReader(text.splitlines(), delimiter=delimiter, strict=True)
        if not {'path', 'label'} <= {*(reader.fieldnames or ())}:
            raise UserError(f'{path} has the columns {reader.fieldnames}{fix}')
        yield from reader
    except csv.Error as error:
        raise UserError(f'{path} is no table of commas ({error}){fix}') from None


def class_names(items: Sequence[Item]) -> tuple[str, ...]:
    """In the order of their numbers: sorted, as numbers where all are."""
    names = {item.label for item in items}
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))
