"""What kd_jax writes down and reads again, by schema: JSON in files that may hold anything.

A record may have fields that it does not name here: those of later versions.
"""

import json
import os
import stat
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from etils import epath

from kd_jax.errors import UserError

T = TypeVar('T')
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Side = Annotated[int, msgspec.Meta(ge=1, le=2**16)]
Channels = Annotated[list[float], msgspec.Meta(min_length=1, max_length=2**10)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=1000, pattern=r'^[^\x00-\x1f]+\Z')]
Measured = dict[str, float | dict[str, float | None] | None]  # metric -> value, or of each head
MOST_BYTES = 2**26  # of a record; of a log 2**30


class Data(msgspec.Struct):
    """What a model must know of its data: `kd_jax.data.DatasetInfo`."""

    num_classes: Annotated[int, msgspec.Meta(ge=1, le=10**6)]
    image_shape: tuple[Side, Side, Side]
    mean: Channels
    std: Channels
    name: str = ''
    class_names: list[str] = []
    count: dict[str, Count | None] = {}


class Model(msgspec.Struct):
    """Its name, and overrides."""

    name: Name


class Config(msgspec.Struct):
    """A run's fields, perhaps of another version: those that are read."""

    model: Model
    precision: Literal['float32', 'tf32', 'bfloat16'] = 'float32'
    teachers: list[str] = []
    objective: dict[str, dict[str, Any]] = {}
    optim: dict[str, Any] = {}
    data: dict[str, Any] = {}
    augment: dict[str, Any] = {}


class Info(msgspec.Struct):
    """config.json of a run."""

    run: Name
    seed: Count
    data: Data
    config: Config
    learning_rate: float | None = None


class Result(msgspec.Struct):
    """result.json of a run."""

    run: Name
    seed: Count
    model: Name
    checkpoint: Count
    steps: Count | None = None
    params: Count | None = None
    trainable: Count | None = None
    flops: float | None = None
    latency_ms: float | None = None
    images_per_second: float | None = None
    data_wait: float | None = None  # share of the training
    seconds: float | None = None
    device: str | None = None
    devices: Count | None = None
    val: Measured | None = None
    test: Measured | None = None
    teacher: Measured | None = None
    peer: dict[str, Measured] | None = None
    log: Count | None = None  # CRC-32 of metrics.jsonl


class Spread(msgspec.Struct):
    """A mean over seeds, and the standard deviation of the sample."""

    mean: float
    n: Count
    std: float | None = None


class Gain(msgspec.Struct):
    """A row of `kd_jax.report.gains`."""

    run: Name
    against: Name
    points: Spread = msgspec.field(name='top-1 points')


class Results(msgspec.Struct):
    """results.json of a study. table: the rows of `kd_jax.report.aggregate`."""

    results: list[Result]
    table: list[dict[str, Spread | str | list[int] | None]]
    gains: list[Gain]


class Command(msgspec.Struct):
    """command.json of a study: how it was called last, with which versions."""

    command: str
    version: str = '?'
    jax: str = '?'


class Line(msgspec.Struct):
    """A line of metrics.jsonl."""

    step: Count
    split: str
    epoch: float = 0.0
    top1: float | None = None


class Manifest(msgspec.Struct):
    """manifest.json of stored soft targets."""

    splits: dict[str, tuple[Count, Count, list[tuple[str, str, list[int]]]]]
    augment: dict[str, Any] = {}


class Holder(msgspec.Struct):
    """Who holds a lock."""

    host: Name
    process: Count
    since: Name
    doing: Name


Chunk = tuple[str, Count, Count]  # a line of chunks.jsonl: split, chunk, CRC-32


def text_of(path: epath.Path, fix: str, most: int = MOST_BYTES) -> str:
    """The content of a text file.

    Raises:
      UserError: for what is no regular file, has more bytes than `most`, or cannot be read.
    """
    try:
        found = path.stat()
        if found.mode is not None and not stat.S_ISREG(found.mode):
            raise UserError(f'{path} is no regular file; {fix}')
        if found.length > most:
            raise UserError(f'{path} has {found.length} bytes, at most {most} can be; {fix}')
        return path.read_text()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise UserError(f'{path} cannot be read ({reason}); {fix}') from None
    except ValueError:
        raise UserError(f'{path} is no text; {fix}') from None


def read(path: epath.Path, kind: type[T], fix: str, most: int = MOST_BYTES) -> Any:
    """The JSON in a file, which is as `kind` says.

    Raises:
      UserError: for anything else. fix: what to do about it.
    """
    text = text_of(path, fix, most)
    try:
        content = json.loads(text)
        msgspec.convert(content, kind)
    except RecursionError:
        raise UserError(f'{path} is nested too deeply; {fix}') from None
    except ValueError as error:  # msgspec's are such
        raise UserError(f'{path} is not what it should be ({error}); {fix}') from None
    return content


def lines(path: epath.Path, kind: type[T], fix: str) -> Iterator[tuple[str, Any]]:
    """(text, content) of the lines of a log, each as `kind` says. The half of a line with which a
    kill left it is left out.

    Raises:
      UserError: for any other line.
    """
    text = text_of(path, fix, 2**30)
    whole = text.rpartition('\n')[0]
    for number, line in enumerate(whole.split('\n') if whole else (), 1):
        try:
            content = json.loads(line)
            msgspec.convert(content, kind)
        except (ValueError, RecursionError):
            raise UserError(f'line {number} of {path} is not what it should be; {fix}') from None
        yield line, content
