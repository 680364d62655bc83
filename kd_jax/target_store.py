"""Stored soft targets: how logits become rows and rows logits, and the files that hold them.

Rows are written in chunks, so that an extraction resumes, each with its checksum.
"""

import dataclasses
import json
import os
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
from etils import epath

from kd_jax import records
from kd_jax.data.views import Views
from kd_jax.errors import UserError
from kd_jax.workdir import differences, listed, make_directory, to_json, write_json

CHUNK = 4096  # rows with one checksum
# The smallest logarithm that is stored: e^-60 is no probability that counts.
TOP_LOG, LEAST_LOG = 'log', -60.0


def row_type(num_classes: int, dtype: str, top_k: int) -> np.dtype:
    """One example's targets: all logits, or the `top_k` likeliest classes, their
    log-probabilities and that of the rest.
    """
    if not top_k:
        return np.dtype([('logits', dtype, (num_classes,))])
    return np.dtype([('index', 'uint16', (top_k,)), (TOP_LOG, dtype, (top_k,)), ('rest', dtype)])


def rows_of(logits: np.ndarray, kind: np.dtype) -> np.ndarray:
    """Logits `[B, K]` as rows `[B]` of `kind`, see `row_type`."""
    rows = np.empty(len(logits), kind)
    if 'logits' in _names(kind):
        most = np.finfo(kind['logits'].base).max
        # What is larger differs from it in no softmax.
        rows['logits'] = np.clip(logits, -most, most)
        return rows
    logits = logits.astype(np.float64)
    log = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    order = np.argsort(-log, axis=1, kind='stable')
    k = kind['index'].shape[0]
    rest = np.exp(np.take_along_axis(log, order[:, k:], axis=1)).sum(axis=1)
    rows['index'] = order[:, :k]
    rows[TOP_LOG] = np.maximum(np.take_along_axis(log, order[:, :k], axis=1), LEAST_LOG)
    rows['rest'] = np.log(np.maximum(rest, np.exp(LEAST_LOG)))
    return rows


def _names(kind: np.dtype) -> tuple[str, ...]:
    assert kind.names is not None
    return kind.names


def columns(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Rows as arrays, for `decoded`."""
    return {name: np.ascontiguousarray(rows[name]) for name in _names(rows.dtype)}


def decoded(rows: Mapping[str, jax.Array | np.ndarray], num_classes: int) -> jax.Array:
    """Logits `[B, K]` float32 of the columns of rows.

    They are `{'logits' [B, K]}`, or of the k likeliest classes
    `{'index', 'log' [B, k], 'rest' [B]}`: their log-probabilities, and the logarithm of what
    remains, which the other classes share equally.
    """
    if 'logits' in rows:
        return jnp.asarray(rows['logits'], jnp.float32)
    index = jnp.asarray(rows['index'], jnp.int32)
    log, rest = (jnp.asarray(rows[name], jnp.float32) for name in (TOP_LOG, 'rest'))
    others = max(num_classes - index.shape[1], 1)
    logits = jnp.broadcast_to(
        rest[:, None] - jnp.log(jnp.float32(others)), (len(index), num_classes)
    )
    return logits.at[jnp.arange(len(index))[:, None], index].set(log)


class TargetStore:
    """The directory of one teacher's soft targets: `manifest.json`, `<split>.rows`, and
    `chunks.jsonl` with what is done.

    manifest: what the targets depend on; `splits` in it is {split: [images, views, row type]}, and
    `made_from`, where the teacher was, is for readers only.
    """

    def __init__(self, path: epath.Path, manifest: Mapping[str, Any]):
        self.path, self.manifest = epath.Path(path), to_json(dict(manifest))
        self.splits = {
            name: (count, views, np.dtype([_field(f) for f in kind]))
            for name, (count, views, kind) in self.manifest['splits'].items()
        }

    def begin(self) -> None:
        """Makes the directory and its files, unless they are there.

        Raises:
          UserError: if it holds targets for anything else than the manifest says.
        """
        if (self.path / 'manifest.json').exists():
            self.check()
            done = self.path / 'chunks.jsonl'
            if done.exists():  # a kill may have cut its last line short
                content = done.read_bytes()
                if not content.endswith(b'\n'):
                    os.truncate(done, content.rfind(b'\n') + 1)
            return
        make_directory(self.path)
        for name, (count, views, kind) in self.splits.items():
            with open(self.path / f'{name}.rows', 'wb') as file:
                file.truncate(count * views * kind.itemsize)
        write_json(self.path / 'manifest.json', self.manifest)

    def differences(self) -> list[str]:
        """In what the directory's manifest differs from this one; what it does
        not know yet has its default.
        """
        return differences(_completed(self.manifest), _completed(self._recorded()))

    def _recorded(self) -> dict[str, Any]:
        fix = f'delete {self.path} and extract them again'
        return records.read(self.path / 'manifest.json', records.Manifest, fix)

    def check(self) -> None:
        """Raises `UserError` unless the directory's targets are those
        that the manifest describes.
        """
        if not (self.path / 'manifest.json').exists():
            raise UserError(
                f'{self.path} holds no soft targets (no manifest.json); name '
                'the directory of an extraction'
            )
        unlike = self.differences()
        if unlike:
            raise UserError(
                f'the soft targets in {self.path} are not for this run ({listed(unlike)}); '
                f'delete {self.path} and extract them again, or undo the change'
            )

    def done(self) -> dict[tuple[str, int], int]:
        """(split, chunk) -> checksum of what is written."""
        done = {}
        path = self.path / 'chunks.jsonl'
        for line in path.read_bytes().splitlines() if path.exists() else ():
            try:
                split, chunk, checksum = msgspec.json.decode(line, type=records.Chunk)
            except (ValueError, RecursionError):  # such as a line that a kill cut short
                continue
            done[split, chunk] = checksum
        return done

    def complete(self) -> bool:
        """Whether all of these targets are there."""
        if not (self.path / 'manifest.json').exists():
            return False
        self.check()
        return not self.missing()

    def chunks(self) -> list[tuple[str, int]]:
        """All (split, chunk)."""
        sizes = {name: count * views for name, (count, views, _) in self.splits.items()}
        return [(name, chunk) for name, size in sizes.items() for chunk in range(-(-size // CHUNK))]

    def missing(self) -> list[tuple[str, int]]:
        """What is still to be written."""
        done = self.done()
        return [key for key in self.chunks() if key not in done]

    def write(self, split: str, chunk: int, rows: np.ndarray) -> None:
        """Writes a chunk; it counts once all of it is on the disk."""
        data = rows.tobytes()
        with open(self.path / f'{split}.rows', 'r+b') as file:
            file.seek(chunk * CHUNK * rows.dtype.itemsize)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with open(self.path / 'chunks.jsonl', 'a') as file:
            file.write(json.dumps([split, chunk, zlib.crc32(data)]) + '\n')
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> dict[str, np.ndarray]:
        """The splits' rows `[N, V]`, mapped from the disk.

        Raises:
          UserError: if something is missing or does not match its checksum.
        """
        self.check()
        fix = f'delete {self.path} and extract them again'
        rows = {}
        for name, (count, views, kind) in self.splits.items():
            path = self.path / f'{name}.rows'
            if not path.exists() or os.path.getsize(path) != count * views * kind.itemsize:
                raise UserError(
                    f'{path} is missing or has another size than its manifest says; {fix}'
                )
            rows[name] = np.memmap(path, kind, 'r', shape=(count * views,))
        done = self.done()
        for name, chunk in self.chunks():
            if (name, chunk) not in done:
                raise UserError(
                    f'the soft targets in {self.path} are incomplete; run their '
                    'extraction again, it continues'
                )
            if (
                zlib.crc32(rows[name][chunk * CHUNK : (chunk + 1) * CHUNK].tobytes())
                != done[name, chunk]
            ):
                raise UserError(
                    f'the soft targets in {self.path / name}.rows are '
                    f'damaged (chunk {chunk}); {fix}'
                )
        return {name: table.reshape(self.splits[name][:2]) for name, table in rows.items()}


def _completed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest without what is for readers only, and with the
    defaults of what it does not name.
    """
    usual = {
        field.name: field.default for field in dataclasses.fields(Views) if field.name != 'fill'
    }
    usual = {
        'precision': 'float32',
        'top_k': 0,
        **manifest,
        'made_from': None,
        'augment': usual | manifest.get('augment', {}),
    }
    return to_json(usual)


def description(kind: np.dtype) -> list[list[Any]]:
    """`kind` as JSON."""
    return [[name, kind[name].base.name, list(kind[name].shape)] for name in _names(kind)]


def _field(described: list[Any]) -> tuple[str, str, tuple[int, ...]]:
    name, dtype, shape = described
    return name, dtype, tuple(shape)
