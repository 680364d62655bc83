"""The commands that are disturbed: tiny studies, of few programs."""

import dataclasses
from pathlib import Path

from helpers import random_splits, save_npz
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Subject:
    """A command in a workdir. before: one that it needs, done undisturbed."""

    name: str
    module: str
    flags: tuple[str, ...]
    before: tuple[str, ...] = ()

    def command(self, workdir):
        """(module, flags)."""
        return self.module, tuple(flag.format(workdir=workdir) for flag in self.flags)

    def preparation(self, workdir):
        """(module, flags) of what is to be done before; None: nothing."""
        if not self.before:
            return None
        return 'kd_jax.main', tuple(flag.format(workdir=workdir) for flag in self.before)


def streamed(folder):
    """Flags: the data as files, which another process decodes for every batch."""
    root, splits = Path(folder, 'files'), random_splits(seed=1, train=320, val=60, test=60)
    for split in ('train', 'val', 'test'):
        source = splits.source(split)
        for number, (image, label) in enumerate(zip(source.image, source.label, strict=True)):
            place = root / split / f'class {label}'
            place.mkdir(parents=True, exist_ok=True)
            if not (place / f'{number}.png').exists():
                Image.fromarray(image.squeeze()).save(place / f'{number}.png')
    return (
        '--config.data.source=folder',
        f'--config.data.path={root}',
        '--config.data.placement=stream',
        '--config.data.workers=1',
    )


def subjects(folder):
    """Name -> subject. folder: where their data is written."""
    data = Path(folder, 'data.npz')
    if not data.exists():
        save_npz(data, random_splits(seed=1, train=320, val=60, test=60))
    config = '--config=configs/digits.py:all'
    study = (
        '--workdir={workdir}',
        config,
        '--config.data.source=npz',
        f'--config.data.path={data}',
        '--config.seeds=(0,)',
        '--config.tensorboard=False',
        '--config.log_every=5',
        '--config.runs.teacher.model.name=cnn',
        '--config.runs.teacher.model.width=0.25',
        '--config.runs.teacher.epochs=2.',
        '--config.runs.teacher.eval_every=1.',
        '--config.runs.student.batch_size=40',
        '--config.runs.student.eval_every=1.',
    )
    both = (*study, '--only=teacher,student')
    # all that must survive: averages, momentum, random augmentation, dropout, early-stopping
    # counts, a ramp
    run = (
        *both,
        '--config.augment.rotate=10.',
        '--config.augment.mixup=0.5',
        '--config.runs.student.model.dropout=0.2',
        '--config.runs.student.optim.ema_decay=0.9',
        '--config.runs.student.objective.kl.ramp_epochs=1.5',
        '--config.runs.student.eval_every=0.5',
        '--config.runs.student.epochs=5.',
        '--config.runs.student.patience=8',
    )
    population = (
        *both,
        '--config.runs.student.sweep=objective.kl.tau=1,4; seed=0,1',
        '--config.runs.student.optim.ema_decay=0.9',
        '--config.runs.student.epochs=4.',
    )
    extraction = (
        '--teacher={workdir}/teacher',
        '--data=configs/digits.py:all',
        '--data.data.source=npz',
        f'--data.data.path={data}',
        '--data.augment.rotate=10.',
        '--views=64',
    )
    search = (
        *study,
        '--space=objective.kl.tau=1..16 log; optim.learning_rate=0.00001..0.1 log',
        '--trials=6',
        '--together=4',  # the second batch may be pruned
        '--config.runs.student.seeds=(0,1)',
        '--config.runs.student.epochs=3.',
    )
    found = (
        Subject('run', 'kd_jax.main', run),
        Subject('stream', 'kd_jax.main', (*run, *streamed(folder))),
        Subject('population', 'kd_jax.main', population),
        Subject('extraction', 'kd_jax.soft_targets', extraction, before=(*study, '--only=teacher')),
        Subject('search', 'kd_jax.search', search),
    )
    return {subject.name: subject for subject in found}
