"""What finished runs say of each test image, predicted once and kept beside their checkpoints."""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kd_jax import data, evaluation, extraction, runtime, trained
from kd_jax.data.dataset import Source
from kd_jax.errors import UserError
from kd_jax.monitor import say
from kd_jax.page.runs import Seed, teachers
from kd_jax.parallel import Parallel
from kd_jax.workdir import PathLike, RunDirectory

FILE = 'predictions.npz'
TOP = 20  # classes kept of each image
MOST_PICTURES = 12
MOST_BYTES = 2**30  # of what is kept, as it says
MOST_KNOWN = 4  # models whose probabilities are kept in memory: teachers are asked again
_UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    MemoryError,
    NotImplementedError,
    RuntimeError,  # encrypted
    zipfile.BadZipFile,
    zlib.error,
)
Predictions = Mapping[str, np.ndarray]


def key_of(run: RunDirectory) -> str:
    """Changes when the run is trained again."""
    content = [(run.path / name).read_bytes() for name in ('config.json', 'result.json')]
    return hashlib.sha256(b'\0'.join(content)).hexdigest()


def kept(seed: Seed) -> Predictions | None:
    """What `Predictor.predict` left; None where it is missing, damaged, or of another training."""
    path = seed.directory.path / FILE
    if seed.result is None or not path.exists():
        return None
    try:
        content = io.BytesIO(path.read_bytes())
        with zipfile.ZipFile(content) as file:
            if sum(part.file_size for part in file.infolist()) > MOST_BYTES:
                return None
        content.seek(0)
        with np.load(content, allow_pickle=False) as file:
            of = dict(file)
    except _UNREADABLE:
        return None
    sound = _is_sound(of, seed.recorded['data']['num_classes'])
    return of if sound and str(of['key']) == key_of(seed.directory) else None


INTEGERS = ('label', 'classes', 'picked', 'teacher_classes')
REALS = ('share', 'distance', 'teacher_share')


def _is_sound(of: Predictions, num_classes: int) -> bool:
    """Whether everything is there, and fits."""
    if not {'key', 'picture', *INTEGERS, *REALS} <= of.keys():
        return False
    kinds = [of[name].dtype.kind == 'i' for name in INTEGERS]
    kinds += [of[name].dtype.kind == 'f' for name in REALS] + [of['picture'].dtype == np.uint8]
    count, picked = len(np.atleast_1d(of['label'])), len(np.atleast_1d(of['picked']))
    shapes = (
        of['label'].shape == (count,)
        and of['picked'].shape == of['distance'].shape == (picked,)
        and of['classes'].shape == of['share'].shape == (count, *of['share'].shape[-1:])
        and of['teacher_classes'].shape == of['teacher_share'].shape
        and of['teacher_classes'].shape[:1] == of['picture'].shape[:1] == (picked,)
        and of['picture'].ndim == 4
        and min(of['share'].shape[-1], of['picture'].shape[-1]) > 0
    )
    if not (all(kinds) and shapes and count):
        return False
    of_classes = [of['classes'], of['teacher_classes'], np.maximum(of['label'], 0)]
    ranges = [(part, num_classes) for part in of_classes] + [(of['picked'], count)]
    shares = of['share'], of['teacher_share'], of['distance']
    return all(((part >= 0) & (part < most)).all() for part, most in ranges) and all(
        np.isfinite(part).all() for part in shares
    )


class Predictor:
    """Predicts the test images; a data set and a teacher are read once."""

    def __init__(self, workdir: PathLike):
        runtime.prepare()
        self.workdir, self.parallel = workdir, Parallel('auto')
        self._sources: dict[str, Any] = {}
        self._known: dict[str, np.ndarray] = {}  # path and data -> probabilities

    def predict(self, seed: Seed) -> Predictions:
        """Predicts with a run and its teachers, and keeps it.

        Raises:
          UserError: if data, weights or a teacher are not there.
        """
        say(f'{seed.run} seed {seed.seed} · predicting the test images')
        fields = seed.config['data'] if not seed.imported else None
        if fields is None:
            raise UserError(f'{seed.run} was imported and names no data')
        source = self._source(fields)
        share = self._probabilities(seed.directory, fields)
        assert seed.result is not None
        compared = seed.result.get('teacher') is not None
        taught = teachers(seed, self.workdir) if compared else []
        weights = seed.config['teacher_weights'] or [1.0] * len(taught)
        # one of other classes says nothing of these images
        said = [
            (self._probabilities(one, fields), weight)
            for one, weight in zip(taught, weights, strict=False)
            if _info(one).same_classes(_info(seed.directory))
        ]
        mean = None
        if said:
            shares, weights = map(list, zip(*said, strict=True))
            mean = np.average(shares, axis=0, weights=weights)
        of: dict[str, Any] = _largest(share) | {
            'key': np.array(key_of(seed.directory)),
            'label': np.asarray(source.labels, np.int32),
            **_pictures(share, mean, source),
        }
        file = io.BytesIO()
        np.savez_compressed(file, **of)
        path = seed.directory.path / FILE
        new = path.with_suffix('.tmp')
        new.write_bytes(file.getvalue())
        new.replace(path)
        return of

    def _source(self, fields: Mapping[str, Any]) -> Source:
        name = repr(sorted(fields.items()))
        if name not in self._sources:
            self._sources[name] = data.load({**fields, 'unlabelled': ''}).source('test')
        return self._sources[name]

    def _probabilities(self, run: RunDirectory, fields: Mapping[str, Any]) -> np.ndarray:
        """`[N, K]` float32."""
        images = {k: v for k, v in fields.items() if not k.startswith(('labels', 'unlabelled'))}
        name = f'{run.path} {sorted(images.items())!r}'
        if name not in self._known:
            model, source = trained.load(run), self._source(fields)
            columns = evaluation.on_devices(self.parallel, source)
            (logits,) = extraction.predicted(
                [model.network],
                self.parallel.replicate((model.variables,)),
                columns,
                self.parallel,
                model.precision,
            )
            if len(self._known) >= MOST_KNOWN:
                del self._known[next(iter(self._known))]
            wide = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
            share = np.exp(wide)
            self._known[name] = (share / share.sum(axis=1, keepdims=True)).astype(np.float32)
        return self._known[name]


def _info(run: RunDirectory) -> data.DatasetInfo:
    return data.DatasetInfo.from_json(run.info()['data'])


def _largest(share: np.ndarray) -> dict[str, np.ndarray]:
    """The likeliest classes of each image and their probabilities, as `[N, TOP]` at most; equal
    ones by index.
    """
    classes = np.argsort(-share, axis=1, kind='stable')[:, :TOP].astype(np.int32)
    return {'classes': classes, 'share': np.take_along_axis(share, classes, axis=1)}


def _pictures(
    share: np.ndarray, teacher: np.ndarray | None, source: Source
) -> dict[str, np.ndarray]:
    """The images on which student and teacher differ most, by total variation distance."""
    if teacher is None:
        picked, distance = np.zeros(0, np.int32), np.zeros(0, np.float32)
        teacher = np.zeros_like(share)
    else:
        every = np.abs(share - teacher).sum(axis=1) / 2
        picked = np.argsort(-every, kind='stable')[:MOST_PICTURES].astype(np.int32)
        distance = every[picked].astype(np.float32)
    of = _largest(teacher[picked])
    return {
        'picked': picked,
        'distance': distance,
        'picture': source.images(picked)[0],
        'teacher_classes': of['classes'],
        'teacher_share': of['share'],
    }


def obtain(
    workdir: PathLike, seeds: Sequence[Seed], names: Sequence[str], most: int
) -> tuple[dict[str, tuple[Seed, Predictions]], list[str]]:
    """Run -> predictions of its first finished seed, those that are kept and of up to `most` of
    `names` those that are not; and a sentence for each that could not be.
    """
    predicted: dict[str, tuple[Seed, Predictions]] = {}
    failures: list[str] = []
    predictor: Predictor | None = None
    for name in names:
        seed = next((s for s in seeds if s.run == name and s.result is not None), None)
        if seed is None or seed.imported:
            continue
        of = kept(seed)
        if of is None and len(predicted) + len(failures) < most:
            predictor = predictor or Predictor(workdir)
            try:
                of = predictor.predict(seed)
            except UserError as error:
                failures.append(f'{name} seed {seed.seed}: {error}')
        if of is not None:
            predicted[name] = seed, of
    return predicted, failures
