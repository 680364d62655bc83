"""Distillation from Python: `distill` does what the command does, with what a notebook has:

    import kd_jax as kd

    result = kd.distill('resnet20', 'cnn', 'digits', epochs=10)
    pandas.DataFrame(result.table)

`run_study` trains a whole study.
"""

import dataclasses
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from kd_jax import config as common
from kd_jax import display, given, jobs, methods, own, report, runtime, trained
from kd_jax.errors import UserError, unknown
from kd_jax.fields import is_number
from kd_jax.fields import own as fields_of
from kd_jax.given import Teacher
from kd_jax.study import Study
from kd_jax.train import Stopped
from kd_jax.workdir import find_run, make_directory

__all__ = ['Predictor', 'Result', 'Teacher', 'distill', 'run_study']


class Predictor:
    """A trained model of a study.

    module: of Flax; variables: numpy arrays; info: what it knows of its data.
    """

    def __init__(self, model: trained.Trained):
        assert model.variables is not None
        self.module, self.variables, self.info = model.network.model, model.variables, model.info
        self._predict = jax.jit(model.network.predict)

    def logits(self, images: Any, batch_size: int = 256) -> np.ndarray:
        """`[N, K]` float32 of images `[N, H, W, C]` in 0..255 of any size."""
        images = np.asarray(images)
        if images.ndim == 3:
            images = images[..., None]
        if images.ndim != 4:
            raise UserError(f'the images have shape {images.shape}; they must be [N, H, W, C]')
        batches = (images[k : k + batch_size] for k in range(0, len(images), batch_size))
        found = [self._predict(self.variables, x.astype(np.float32)).logits for x in batches]
        return np.concatenate([np.zeros((0, self.info.num_classes), np.float32), *found])

    def probabilities(self, images: Any, batch_size: int = 256) -> np.ndarray:
        """Softmax of `logits`."""
        return np.asarray(jax.nn.softmax(self.logits(images, batch_size)))


@dataclasses.dataclass(frozen=True)
class Result:
    """What a study found; as a text, its closing table.

    table: a row for each run, the mean over its seeds of every column, such as {'run', 'model',
      'seeds', 'top-1 %', 'top-1 % std', ...}. runs: a row for each run and seed. gains: {'run',
      'against', 'top-1 points', 'top-1 points std', 'n'}. workdir: where everything is, and where
      the same call goes on. summary: the table and the gains as Markdown.
    """

    table: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    gains: list[dict[str, Any]]
    workdir: Path
    summary: str

    def model(self, run: str = 'student', seed: int | None = None) -> Predictor:
        """A trained model of a run; None: of its first seed.

        Raises:
          UserError: if there is none.
        """
        seeds = [row['seed'] for row in self.runs if row['run'] == run]
        if not seeds:
            raise unknown('run', run, [row['run'] for row in self.table])
        chosen = seeds[0] if seed is None else seed
        return Predictor(trained.load(find_run(self.workdir / run, chosen)))

    def __str__(self) -> str:
        return self.summary

    def _repr_markdown_(self) -> str:
        return self.summary


def distill(
    teacher: Any,
    student: Any,
    data: Any,
    objective: Any = None,
    *,
    epochs: float = 30.0,
    seeds: Sequence[int] = (0,),
    alone: bool = True,
    workdir: str | Path | None = None,
    trust: bool = False,
    of_teacher: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Result:
    """Trains the student with its teacher and, to compare, alone; returns both on the test split.

    Args:
      teacher: a name in `kd_jax.models.MODELS`, which is trained first; the workdir of a trained
        run; a `Teacher`; a function of images `[B, H, W, C]` in 0..255 that returns logits.
      student: a name in the zoo or 'mynets:TinyNet'; a mapping of `name` and its fields; a Flax
        module, or its class.
      data: {'train': (image, label), 'test': (image, label)}, perhaps with 'val' and 'class_names';
        a `kd_jax.data.Dataset`; the name of a source ('digits'); an .npz file; the fields `data` of
        a config. Arrays are kept in the workdir.
      objective: None: cross entropy and KL (Hinton et al. 2015); the name of a method, such as
        'dkd'; {label: weight, fields of the loss, or a function (student_logits, teacher_logits,
        labels) -> [B]}; such a function alone, beside cross entropy.
      epochs, seeds: of every run.
      alone: whether the student is also trained on the labels alone.
      workdir: where results go, and where the same call goes on after an interruption; None: a
        new temporary directory.
      trust: import what workdirs name of the user's own.
      of_teacher: fields of a teacher that is trained here where they are others than the students',
        such as {'epochs': 60, 'data': {'labels_per_class': 0}}.
      fields: other fields of every run, such as batch_size=128, optim={'learning_rate': 0.1},
        augment={'flip': True} (see `kd_jax.config`).

    Raises:
      UserError: for what makes no sense; nothing is lost.
    """
    if trust:
        own.trust_workdirs()
    if not is_number(epochs):
        raise UserError(f'epochs is {epochs!r}; it must be a number, such as 30')
    place = Path(workdir or tempfile.mkdtemp(prefix='kd_jax_')).expanduser()
    make_directory(place)
    names = given.Names()
    c = common.study()
    c.seeds, c.tensorboard = tuple(seeds), False
    c.data.update(given.data(data, place, names))

    def make(of: Mapping[str, Any], objective: ConfigDict | None = None) -> ConfigDict:
        run = common.run(c, of, objective)
        run.epochs = float(epochs)
        run.eval_every = min(run.eval_every, run.epochs)
        _set(run, fields)
        return run

    model = given.model(student, 'student', names)
    _add_runs(c, make, given.teacher(teacher, names), model, objective, names)
    if of_teacher and 'teacher' not in c.runs:
        raise UserError(f'of_teacher is {dict(of_teacher)}, but the teacher is not trained here')
    if of_teacher:
        _set(c.runs.teacher, of_teacher)
    if not alone and 'alone' not in jobs.needed('student', c.runs):  # some methods start there
        del c.runs.alone
    return run_study(c, place)


def _add_runs(
    c: ConfigDict,
    make: Callable[..., ConfigDict],
    taught_by: given.Taught,
    model: Mapping[str, Any],
    objective: Any,
    names: given.Names,
) -> None:
    """The runs `teacher`, if it is trained here, `alone` and `student`."""
    if taught_by.trains is not None:
        c.runs.teacher = make(taught_by.trains)
    if taught_by.imported is not None:
        c.teachers.teacher = taught_by.imported
    c.runs.alone = make(model)
    if isinstance(objective, str):

        def run_of(of: ConfigDict | None = None, *, teacher: bool = False) -> ConfigDict:
            if not teacher:
                return make(model, of)
            if taught_by.trains is None:
                raise UserError(
                    f'the method {objective} trains models of the teacher, which is not a model '
                    'that is trained here; name one of the zoo'
                )
            return make(taught_by.trains, of)

        methods.add(c, objective, run_of)
    else:
        c.runs.student = make(model, given.objective(objective, names))
        c.runs.student.teachers = ('teacher',)
    if taught_by.workdir:
        for run in c.runs.values():
            run.teachers = tuple(taught_by.workdir if t == 'teacher' else t for t in run.teachers)


def run_study(
    config: ConfigDict, workdir: str | Path, only: Sequence[str] = (), *, trust: bool = False
) -> Result:
    """Trains what is not finished of a study, as `python -m kd_jax.main` does.

    config: as a config's `get_config()` returns it. only: these runs. trust: as `distill`.
    Ctrl-C (in the main thread) saves first; the same call goes on.

    Raises:
      UserError: for what makes no sense; nothing is lost.
      KeyboardInterrupt: after Ctrl-C.
    """
    if trust:
        own.trust_workdirs()
    runtime.prepare(fast=config.fast)
    study = Study(config, Path(workdir).expanduser(), only)
    with _interrupts() as stop, display.showing(display.choose(stopping=lambda: bool(stop))):
        try:
            results = study.run(lambda: bool(stop))
        except Stopped:
            raise KeyboardInterrupt from None
    rows = report.aggregate(results)
    gained = report.gains(results, study.plan.runs)
    return Result(
        [_flat(row) for row in rows],
        [_flat_run(result) for result in results],
        [{**_flat(gain), 'n': gain['top-1 points']['n']} for gain in gained],
        Path(workdir).expanduser(),
        report.markdown(rows, gained),
    )


def _set(run: ConfigDict, fields: Mapping[str, Any]) -> None:
    """Sets fields of a run, those of a group by a mapping."""
    groups = ('optim', 'augment', 'model', 'data')
    known = [*fields_of(common.Run), 'precision', *groups]
    for name, value in fields.items():
        if name not in known or name == 'teachers':
            for group in ('optim', 'augment'):
                if name in fields_of(common.GROUPS[group]):
                    raise UserError(
                        f'{name} is a field of {group}; write {group}={{{name!r}: ...}}'
                    )
            own_ones = ('objective', 'seeds', 'alone', 'workdir', 'trust', 'of_teacher')
            raise unknown('argument', name, [*own_ones, *known])
        if name not in groups:
            run[name] = value
            continue
        if not hasattr(value, 'keys'):
            raise UserError(f'{name} is {value!r}; it must be a mapping of its fields')
        for key in value:
            if key not in run[name]:
                raise unknown(f'field of {name}', key, run[name])
            run[name][key] = value[key]


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """A list that gets a number at Ctrl-C, in the main thread."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table, each mean as a number and its spread beside it."""
    found: dict[str, Any] = {}
    for key, value in row.items():
        if not isinstance(value, Mapping):
            found[key] = len(value) if isinstance(value, list) else value
            continue
        found[key] = value['mean']
        if value.get('std') is not None:
            found[f'{key} std'] = value['std']
    return found


def _flat_run(result: Mapping[str, Any]) -> dict[str, Any]:
    """A run's result.json, what is nested in it as 'test top1'."""
    found: dict[str, Any] = {}
    for key, value in result.items():
        for inner, number in value.items() if isinstance(value, Mapping) else [('', value)]:
            found[f'{key} {inner}'.strip()] = number
    return found
