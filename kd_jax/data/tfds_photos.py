"""Photos of a prepared TFDS set, decoded when a batch wants them."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from kd_jax import cache
from kd_jax.data import decoding
from kd_jax.data.decoding import Form
from kd_jax.data.photos import StreamSource
from kd_jax.data.stream import each_piece
from kd_jax.errors import UserError

SAMPLE = 256  # records whose headers decide the size
VERSION = 1  # of the labels that are kept


@dataclasses.dataclass(frozen=True)
class Records:
    """The records of a split in a folder of array_record files. image: the feature's name."""

    folder: str
    split: str
    image: str
    count: int

    def content(self, number: int) -> bytes:
        """A photo's file; raises `decoding.Bad`."""
        try:
            return record(self.folder, self.split, self.image, number)[self.image]
        except Exception as error:  # as TFDS may raise anything for damaged files
            raise decoding.Bad(f'cannot be read ({" ".join(str(error).split())[:100]})') from None

    def name(self, number: int) -> str:
        return f'record {number} of {self.split} in {self.folder}'

    def describe(self) -> str:
        sizes = [(file.name, file.stat().st_size) for file in self.files()]
        return f'records {self.count} {hashlib.sha256(repr(sizes).encode()).hexdigest()}'

    def files(self) -> list[Path]:
        """Of this split."""
        return sorted(Path(self.folder).glob(f'*-{self.split}.*'))


@functools.cache
def _source(folder: str, split: str, image: str, process: int) -> Any:
    """Which opens its files in this process."""
    import tensorflow_datasets as tfds

    del process
    decoders = {image: tfds.decode.SkipDecoding()}
    builder = tfds.builder_from_directory(folder)
    return builder.as_data_source(split, decoders=decoders, file_format='array_record')


def record(folder: str, split: str, image: str, number: int) -> dict[str, Any]:
    """A record whose photo is not decoded."""
    return _source(folder, split, image, os.getpid())[number]


def headers(reader: Records) -> list[decoding.Header]:
    """Of some of the photos."""
    found = []
    for number in range(0, reader.count, max(reader.count // SAMPLE, 1)):
        with contextlib.suppress(decoding.Bad):
            found.append(decoding.header(reader.content(number)))
    if not found:
        raise UserError(f'{reader.name(0)} and others cannot be read; prepare the data set again')
    return found


def labels(reader: Records, name: str) -> np.ndarray:
    """Int64 `[N]`; they stand in the records, which are read once: then they are kept."""
    base = cache.folder()
    times = [file.stat().st_mtime_ns for file in reader.files()]
    of = f'{VERSION} {Path(reader.folder).resolve()} {reader.describe()} {times} {name}'
    key = hashlib.sha256(of.encode()).hexdigest()[:32]
    path = None if base is None else base / 'labels' / f'{key}.npy'
    with contextlib.suppress(OSError, ValueError, EOFError):
        if path is not None:
            kept = np.load(path, allow_pickle=False)
            if kept.shape == (reader.count,) and kept.dtype == np.int64:
                return kept
    found = np.empty(reader.count, np.int64)

    def read(numbers: range) -> None:
        for number in numbers:
            found[number] = record(reader.folder, reader.split, reader.image, number)[name]

    each_piece(read, reader.count)
    with contextlib.suppress(OSError):  # it only saves time
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            written = io.BytesIO()
            np.save(written, found)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(written.getvalue())
            os.replace(file.name, path)
    return found


def source(reader: Records, name: str, form: Form, on_bad_image: str) -> StreamSource:
    """The examples of a split. name: of the feature with the labels."""
    label = labels(reader, name).astype(np.int32)
    return StreamSource(reader, label, np.arange(reader.count), form, on_bad_image)
