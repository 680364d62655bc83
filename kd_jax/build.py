"""From a run's config, its data and its teachers to its `RunSpec`, with every
check that needs no training.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from kd_jax import extraction, objectives, optim, placement, teacher_outputs, trained
from kd_jax.data import Dataset, DatasetInfo
from kd_jax.data.batches import check_repeats, parts_of
from kd_jax.data.joined import without_unlabelled
from kd_jax.data.mixing import Mixing
from kd_jax.data.views import Views
from kd_jax.errors import UserError
from kd_jax.initialization import (
    check_foreign,
    check_memory,
    example,
    objective_plans,
    student_plans,
)
from kd_jax.models import initial
from kd_jax.monitor import warn
from kd_jax.networks import Network
from kd_jax.parallel import Parallel
from kd_jax.spec import Hparams, Images, Job, RunSpec, StepSpec, TeacherSpec, Timing
from kd_jax.teacher_outputs import EMA, PEER, SNAPSHOT, check_teachers
from kd_jax.timing import timing_of
from kd_jax.trained import Trained


def run_spec(
    name: str,
    run: ConfigDict,
    dataset: Dataset,
    teachers: Mapping[str, Trained],
    parallel: Parallel,
    steps_per_dispatch: int = 0,
    start: Trained | None = None,
) -> RunSpec:
    """What the seeds of a run share.

    teachers: name -> the teachers that are other runs, trained or still to be trained.
    steps_per_dispatch: the most steps of one call; 0: the usual number. start: what the run starts
    from.

    Raises:
      UserError: for anything in the config that makes no sense with this data,
        these teachers or these devices.
    """
    check_teachers(name, run)
    objective = _objective(run, dataset.info, teachers, parallel)
    if not any(loss.uses_unlabelled() for _, loss in objective.losses):
        dataset = without_unlabelled(dataset)
    info, settings = dataset.info, _settings(run, teachers)
    parallel.check_batch_size(run.batch_size, f'runs.{name}.batch_size', settings.accumulate)
    lie = placement.choose(dataset, run.data.placement, parallel)
    timing = timing_of(run, dataset, parallel, steps_per_dispatch, lie)
    sees = trained.sees(name, run, start, info)
    students = _students(run, sees, info, parallel.fast)
    given = objective, teachers, settings, timing, parallel, students
    step, targets = _step(name, run, dataset, *given)
    batch = example(info.image_shape, train_label=dataset.train.labels)
    plans = student_plans(step, batch)
    _check_heads(name, run, step.objective, plans)
    check_memory(name, plans['student'].shapes)
    plans |= objective_plans(step, batch, plans)
    shapes = {role: plan.shapes.get('params', {}) for role, plan in plans.items()}
    optimizer, _ = optim.build(
        shapes, settings, total_steps=timing.total_steps, steps_per_epoch=timing.steps_per_epoch
    )
    freeze = optim.frozen_patterns(shapes['student'], settings)
    check_foreign(step, plans, freeze, parallel.axis_name)
    frozen = optim.frozen_mask(shapes['student'], freeze)
    optim.check_trains(frozen, settings)
    trainable = jax.tree.map(lambda f, x: 0 if f else math.prod(x.shape), frozen, shapes['student'])
    return RunSpec(
        name=name,
        config=run,
        step=dataclasses.replace(step, optimizer=optimizer, freeze=freeze),
        timing=timing,
        dataset=dataset,
        sees=sees,
        plans=plans,
        pool=_pool(dataset, step.objective),
        images=Images(lie, run.data.workers),
        peak=settings.learning_rate,
        init_optimizer=jax.jit(optimizer({}).init),
        targets=targets,
        trainable=sum(jax.tree.leaves(trainable)),
    )


def _step(
    name: str,
    run: ConfigDict,
    dataset: Dataset,
    objective: objectives.Objective,
    teachers: Mapping[str, Trained],
    settings: optim.Settings,
    timing: Timing,
    parallel: Parallel,
    students: Mapping[str, Network],
) -> tuple[StepSpec, extraction.Kind | None]:
    """The step, but for its optimiser, for which the shapes must be known; and
    what is kept of the teachers.
    """
    info = dataset.info
    photos, mixing = run.data.decode == 'photo', Mixing.of(run.augment)
    views = Views.of(run.augment, info.mean_pixel, photos=photos)
    views.check(info.image_shape, f'runs.{name}.augment')
    _check_batches(name, run, dataset)
    targets = _targets(name, run, views, mixing, info, teachers)
    specs = _teachers(
        run, teachers, students['student'], parallel.fast, timing, stored=targets is not None
    )
    _check_features(name, run, objective, targets)
    return StepSpec(
        students=students,
        teachers=specs,
        objective=objective,
        views=views if targets is None else targets.views,
        precision=run.precision,
        steps_per_epoch=timing.steps_per_epoch,
        mixing=mixing,
        accumulate=settings.accumulate,
        ema_decay=settings.ema_decay,
        snapshot_steps=_snapshot_steps(run, timing),
    ), targets


def _objective(
    run: ConfigDict, info: DatasetInfo, teachers: Mapping[str, Trained], parallel: Parallel
) -> objectives.Objective:
    """What the run minimises, if it can learn from these teachers."""
    objective = objectives.build(
        run.objective,
        teacher_weights=_weights(run),
        num_classes=info.num_classes,
        fast=parallel.fast and parallel.on_cpu,
    )
    for teacher in teachers.values():
        trained.check_teacher(teacher, info, objective.losses)
    return objective


def _weights(run: ConfigDict) -> tuple[float, ...]:
    """One for each of the run's teachers."""
    return tuple(run.teacher_weights) or (1.0,) * len(run.teachers)


def _check_batches(name: str, run: ConfigDict, dataset: Dataset) -> None:
    path, repeats = f'runs.{name}.augment.repeats', run.augment.repeats
    check_repeats(repeats, run.batch_size, path)
    if dataset.unlabelled:
        least = min(parts_of(run.batch_size, run.data.unlabelled_share))
        check_repeats(repeats, least, path, 'parts of a batch (data.unlabelled_share)')


def _settings(run: ConfigDict, teachers: Mapping[str, Trained]) -> optim.Settings:
    """Of the optimiser, with the learning rate that follows the teacher's, if it does."""
    settings = optim.read(run.optim)
    factor = settings.teacher_factor
    if not factor:
        return settings
    if not teachers:
        raise UserError(
            f'optim.teacher_factor={factor} needs a teacher whose learning rate it multiplies'
        )
    first = next(iter(teachers.values()))
    if first.learning_rate is None:
        raise UserError(
            f'optim.teacher_factor={factor} needs the learning rate of the teacher '
            f'{first.source}, which is imported and has none; set '
            'optim.learning_rate and optim.teacher_factor=0.'
        )
    return dataclasses.replace(settings, learning_rate=factor * first.learning_rate)


def _students(
    run: ConfigDict, sees: DatasetInfo, data: DatasetInfo, fast: bool
) -> dict[str, Network]:
    models = {'student': run.model}
    if PEER in run.teachers:
        models['peer'] = dict(run.model, name=run.peer) if run.peer else run.model
    resize = sees.image_shape != data.image_shape
    return {
        role: trained.build_network(model, sees, run.precision, fast=fast, resize=resize)
        for role, model in models.items()
    }


def _targets(
    name: str,
    run: ConfigDict,
    views: Views,
    mixing: Mixing,
    info: DatasetInfo,
    teachers: Mapping[str, Trained],
) -> extraction.Kind | None:
    """What is kept of the teachers; None: they run in every step."""
    if run.soft_targets == 'live':
        return None
    path = f'runs.{name}.soft_targets'
    if not teachers:
        why = (
            f'its teachers {tuple(run.teachers)} learn with it'
            if run.teachers
            else 'the run has no teacher'
        )
        raise UserError(
            f'{path} is {run.soft_targets!r}, but {why}: name a trained '
            "run in teachers, or set 'live'"
        )
    for teacher in teachers.values():
        if not teacher.info.same_classes(info):
            raise UserError(
                f'{path} is {run.soft_targets!r}, which keeps logits, but the teacher '
                f"{teacher.source} has other classes than the student's data; set it to 'live'"
            )
    wanted = run.soft_targets, run.soft_targets_dtype, run.soft_targets_top_k
    return extraction.kind(path, *wanted, views, mixing, info.num_classes)


def _teachers(
    run: ConfigDict,
    teachers: Mapping[str, Trained],
    student: Network,
    fast: bool,
    timing: Timing,
    *,
    stored: bool,
) -> tuple[TeacherSpec, ...]:
    """One for each of the config's names, in its order."""

    def spec(name: str, weight: float) -> TeacherSpec:
        if name == EMA:
            return teacher_outputs.ema(weight, student)
        if name == SNAPSHOT:
            return teacher_outputs.snapshot(weight, student, _snapshot_steps(run, timing))
        if name == PEER:
            return teacher_outputs.peer(weight)
        teacher = teachers[name]
        if stored:
            return teacher_outputs.stored(name, weight, teacher.info.num_classes)
        return teacher_outputs.live(name, weight, teacher.network.computing(run.precision, fast))

    return tuple(
        spec(name, weight) for name, weight in zip(run.teachers, _weights(run), strict=True)
    )


def _snapshot_steps(run: ConfigDict, timing: Timing) -> int:
    return (
        max(round(run.snapshot_epochs * timing.steps_per_epoch), 1)
        if SNAPSHOT in run.teachers
        else 0
    )


def _pool(dataset: Dataset, objective: objectives.Objective) -> np.ndarray:
    """Images of the data set without a label are drawn where a loss can learn from them."""
    uses_unlabelled = any(not loss.needs_label for _, loss in objective.losses)
    return (
        np.arange(len(dataset.train) - dataset.unlabelled)
        if uses_unlabelled
        else np.flatnonzero(dataset.train.labels >= 0)
    )


def _check_features(
    name: str, run: ConfigDict, objective: objectives.Objective, targets: extraction.Kind | None
) -> None:
    """Kept logits are all there is of a teacher that does not run."""
    labels = [label for label, loss in objective.losses if loss.needs_features]
    if labels and targets is not None:
        raise UserError(
            f'objective {labels[0]!r} learns from the features of the teacher, but with '
            f'runs.{name}.soft_targets={run.soft_targets!r} only its logits are kept; '
            "set soft_targets='live', or take the term out"
        )


def _check_heads(
    name: str, run: ConfigDict, objective: objectives.Objective, plans: Mapping[str, initial.Plan]
) -> None:
    """Auxiliary heads and the losses that train them belong together."""
    labels = [label for label, loss in objective.losses if loss.needs_heads]
    for role in ('student', 'peer'):
        if role not in plans:
            continue
        heads = plans[role].output.heads
        if labels and not heads:
            raise UserError(
                f'objective {labels[0]!r} needs auxiliary heads, which the model {run.model.name} '
                f'does not have; set runs.{name}.model.heads, such as (1, 2)'
            )
        if heads and not labels:
            warn(
                f'no term of runs.{name}.objective trains the auxiliary heads of {run.model.name}; '
                'add deep_supervision or self_distillation'
            )


def learning_rate_of(spec: RunSpec, run: ConfigDict) -> float:
    """At its peak, of a run that differs from the spec's in numbers only."""
    settings = optim.read(run.optim)
    return spec.peak if settings.teacher_factor else settings.learning_rate


def hparams_of(spec: RunSpec, run: ConfigDict) -> dict[str, np.float32]:
    """The numbers of a run that the step takes as arguments. run: that of the spec, or
    one that differs in them only.
    """
    values = dict(spec.step.objective.hparams())
    for path in values:
        _, label, field = path.split('.')
        given = run.objective[label].get(field)
        values[path] = values[path] if given is None else given
    values['optim.learning_rate'] = learning_rate_of(spec, run)
    values['optim.weight_decay'] = optim.read(run.optim).weight_decay
    return {path: np.float32(value) for path, value in values.items()}


def check_member(spec: RunSpec, run: ConfigDict) -> None:
    """Raises `UserError` for a number of `run`, which differs from the spec's in
    nothing else, that makes no sense.
    """
    weights = tuple(teacher.weight for teacher in spec.step.teachers)
    objective = objectives.build(
        run.objective, teacher_weights=weights, num_classes=spec.dataset.info.num_classes
    )
    here, there = ([label for label, _ in of.losses] for of in (objective, spec.step.objective))
    if here != there:
        raise UserError(
            f'the members of {spec.name} learn from different losses, {", ".join(here)} and '
            f'{", ".join(there)}: a weight of 0 takes a term away; make that a run of its own'
        )


def planned(spec: RunSpec, run: ConfigDict) -> Trained:
    """A run as a teacher, before it is trained; it differs from the spec's in numbers only."""
    info = spec.sees
    network = spec.step.students['student']._replace(image_shape=info.image_shape)
    return Trained(
        spec.name, network, info, spec.config.precision, learning_rate_of(spec, run), None
    )


def job_of(
    spec: RunSpec,
    name: str,
    run: ConfigDict,
    seed: int,
    directory: epath.Path,
    start: Trained | None = None,
) -> Job:
    """One training of a run, or of a member of its sweep."""
    hparams: Hparams = hparams_of(spec, run)
    return Job(spec, name, run, seed, directory, hparams, learning_rate_of(spec, run), start)
