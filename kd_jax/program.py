"""What the seeds of a run share: the networks, the objective, the durations, the compiled steps, the data on the devices."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from kd_jax import evaluate, objectives, optim, parallel, soft_targets, teachers
from kd_jax.data import Splits
from kd_jax.data.views import Views
from kd_jax.errors import UserError, unknown
from kd_jax.models import Output, initial
from kd_jax.monitor import warn
from kd_jax.networks import PRECISIONS, Stored, exactly, variables_of
from kd_jax.step import AVERAGE, COMPANIONS, OBJECTIVE_OF, PAST, PEER, TrainState, make_eval_step, make_train_step, several
from kd_jax.teachers import Trained

# What the fields of a run allow that no later check names.
LIMITS = {
    'batch_size': (lambda v: v >= 1, 'at least 1'),
    'epochs': (lambda v: 0 < v < math.inf, 'greater than 0'),
    'eval_every': (lambda v: 0 < v < math.inf, 'greater than 0'),
    'patience': (lambda v: v >= 0, '0 (never stop early) or more'),
    'model.width': (lambda v: v is None or 0 < v < math.inf, 'greater than 0'),
    'model.depth': (lambda v: v is None or 0 < v < math.inf, 'greater than 0'),
    'model.dropout': (lambda v: v is None or 0 <= v < 1, 'at least 0 and less than 1'),
    'optim.accumulate': (lambda v: v >= 1, 'at least 1'),
    'optim.teacher_factor': (lambda v: 0 <= v < math.inf, '0 (off) or more'),
    'past_epochs': (lambda v: 0 < v < math.inf, 'greater than 0'),
    'augment.crop': (lambda v: v >= 0, '0 (off) or more'),
    'augment.rotate': (lambda v: 0 <= v <= 180, 'from 0 (off) to 180 degrees'),
    'augment.cutout': (lambda v: v >= 0, '0 (off) or more'),
    'augment.mixup': (lambda v: 0 <= v < math.inf, '0 (off) or more'),
}

CPU_STEPS, STEPS = 4, 32  # in one dispatch


def check(name: str, run: ConfigDict) -> None:
    """Raises `UserError` for a value of the run that makes no sense whatever the data."""
    for field, (allowed, words) in LIMITS.items():
        value = functools.reduce(lambda node, key: node[key], field.split('.'), run)
        if not allowed(value):
            raise UserError(f'runs.{name}.{field} is {value}; it must be {words}')
    if run.precision not in PRECISIONS:
        raise unknown(f'precision of runs.{name}', run.precision, PRECISIONS)
    if run.select not in ('best', 'last'):
        raise unknown(f'value of runs.{name}.select', run.select, ('best', 'last'))
    if not run.seeds:
        raise UserError(f'runs.{name} has no seeds; give at least one, such as --config.seeds="(0,)"')
    if min(run.seeds) < 0:
        raise UserError(f'runs.{name}.seeds {tuple(run.seeds)} has a negative one; seeds are 0 or more')
    if len(set(run.seeds)) < len(run.seeds):
        raise UserError(f'runs.{name}.seeds {tuple(run.seeds)} names a seed twice; each seed is one training')
    optim.check_ema_decay(run.optim.ema_decay)
    check_companions(name, run)


def named_teachers(run: ConfigDict) -> tuple[str, ...]:
    """The teachers that are other runs, imported or workdirs; not those that the run makes for itself."""
    return tuple(name for name in run.teachers if name not in COMPANIONS)


def check_companions(name: str, run: ConfigDict) -> tuple[str, ...]:
    """The teachers that a run makes for itself.

    Raises:
      UserError: for one that is unknown, named twice, or does not go with the rest of the run.
    """
    for teacher in run.teachers:
        if teacher.startswith('self:') and teacher not in COMPANIONS:
            raise unknown(f'teacher of runs.{name}', teacher, COMPANIONS)
    found = tuple(teacher for teacher in run.teachers if teacher in COMPANIONS)
    if len(set(found)) < len(found):
        raise UserError(f'runs.{name}.teachers {tuple(run.teachers)} names {found[0]} twice; once is enough')
    if AVERAGE in found and not run.optim.ema_decay:
        raise UserError(f'runs.{name} learns from {AVERAGE}, but keeps no average; set optim.ema_decay, such as 0.999')
    if PEER in found and len(found) > 1:
        raise UserError(f'runs.{name}.teachers {tuple(run.teachers)}: {PEER} does not go with the others; take one of them')
    if PEER in found and run.init:
        raise UserError(f'runs.{name} starts from {run.init}, but its peer would start at random; take one of the two away')
    if run.peer and PEER not in found:
        raise UserError(f'runs.{name}.peer is {run.peer!r}, but {PEER} is not among its teachers; name it there')
    return found


@dataclasses.dataclass
class Taught:
    """What the teachers give to the steps."""

    variables: dict[str, Any]  # 'train' -> the argument `teacher_variables` of the train step
    streamed: tuple[np.ndarray, ...] = ()  # rows `[N, V]` of the training images, one a teacher, that come with each batch
    judge: Callable[[str], tuple] = lambda split: ()

    def judged(self, split: str) -> tuple:
        """Tables `{'logits' [N, 1, K]}` of the teachers' logits for a split's images, for the evaluation; each is made once."""
        if split not in self._judged:
            self._judged[split] = self.judge(split)
        return self._judged[split]

    def __post_init__(self):
        self._judged: dict[str, tuple] = {}


class Program:
    """What the seeds of a run share: its data on the devices and its compiled steps.

    `steps_per_dispatch` is the most steps that one call of `train_steps` does; 0: the usual number.
    """

    def __init__(
        self,
        name: str,
        run: ConfigDict,
        splits: Splits,
        trained: Sequence[Trained],
        par: parallel.Parallel,
        steps_per_dispatch: int = 0,
    ):
        self.name, self.run, self.splits, self.parallel = name, run, splits, par
        self.on_cpu = par.devices[0].platform == 'cpu'
        self.overlap = not self.on_cpu  # whether the devices go on training while the host writes a validation down
        for teacher in trained:
            teachers.check_teacher(teacher, splits)
        facts = {'num_classes': splits.num_classes, 'image_shape': splits.train.image.shape[1:]}
        facts |= {'mean': splits.mean, 'std': splits.std}
        self.student = teachers.build_network(run.model, facts).computing(run.precision, par.fast)
        self.networks = tuple(t.network.computing(run.precision, par.fast) for t in trained)
        augment = dict(run.augment)
        self.mixup = augment.pop('mixup')
        self.views = Views(**augment, fill=splits.mean_pixel)
        self.stored = self._stored(len(trained))  # what is kept of the teachers, instead of running them
        self.judges = (Stored(splits.num_classes),) * len(trained)  # in evaluations: they run once over each split
        self.teachers = self.networks
        if self.stored is not None:
            self.views, self.teachers = self.stored.views, self.judges
        companions, self.peer = check_companions(name, run), None
        if PEER in companions:
            model = dict(run.model, name=run.peer) if run.peer else run.model
            self.peer = teachers.build_network(model, facts).computing(run.precision, par.fast)
        weights = tuple(run.teacher_weights) or (1.0,) * len(run.teachers)
        if len(weights) != len(run.teachers):
            raise UserError(
                f'teacher_weights {weights} has {len(weights)} entries for {len(run.teachers)} teachers; give one each'
            )
        of = dict(zip(run.teachers, weights, strict=True))
        judging = tuple(weight for teacher, weight in zip(run.teachers, weights, strict=True) if teacher not in COMPANIONS)
        self.weights = judging + tuple(of[teacher] for teacher in companions)
        judging = judging if any(judging) else (1.0,) * len(judging)
        self.objective = objectives.build(
            run.objective,
            teacher_weights=self.weights,
            num_classes=splits.num_classes,
            axis_name=par.axis_name,
            fast=par.fast and self.on_cpu,
        )
        self._check_features()

        count = self.train_count = len(splits.train.label)
        labelled = np.flatnonzero(splits.train.label >= 0)
        uses_unlabelled = any(not term.needs_label for _, term in self.objective.terms)
        self.pool = np.arange(count) if uses_unlabelled else labelled
        self.labelled = len(labelled)
        self.steps_per_epoch = count / run.batch_size
        self.total_steps = max(round(run.epochs * self.steps_per_epoch), 1)
        self.eval_steps = {
            min(max(round(k * run.eval_every * self.steps_per_epoch), 1), self.total_steps)
            for k in range(1, math.ceil(run.epochs / run.eval_every) + 1)
        } | {self.total_steps}

        settings = dict(run.optim)
        factor, self.ema_decay = settings.pop('teacher_factor'), settings.pop('ema_decay')
        accumulate = settings.pop('accumulate')
        if factor:
            if not trained:
                raise UserError(f'optim.teacher_factor={factor} needs a teacher whose learning rate it multiplies')
            if trained[0].learning_rate is None:
                raise UserError(
                    f'optim.teacher_factor={factor} needs the learning rate of the teacher {trained[0].source}, which is '
                    'imported and has none; set optim.learning_rate and optim.teacher_factor=0.'
                )
            settings['learning_rate'] = factor * trained[0].learning_rate
        self.learning_rate = settings['learning_rate']
        par.check_batch_size(run.batch_size, f'runs.{name}.batch_size', accumulate)

        self._plans = self._plan(companions)
        self.shapes = self._plans['student'].shapes
        shapes = {role: plan.shapes.get('params', {}) for role, plan in self._plans.items()}
        settings['freeze'] = tuple(run.optim.freeze) + optim.all_but(shapes['student'], tuple(settings.pop('train')))
        built = {'total_steps': self.total_steps, 'steps_per_epoch': self.steps_per_epoch, **settings}
        self.tx, self.schedule = optim.build(shapes, **built)
        self.optimiser = lambda traced=None, **changed: optim.build(shapes, **built | changed, traced=traced)[0]
        self.settings = {
            'accumulate': accumulate,
            'ema_decay': self.ema_decay,
            'freeze': settings['freeze'],
            'companions': companions,
            'peer': self.peer,
            'past_steps': max(round(run.past_epochs * self.steps_per_epoch), 1) if PAST in companions else 0,
        }
        self.params = teachers.param_count(self.shapes)
        frozen = optim.frozen_mask(shapes['student'], settings['freeze'])
        kept = jax.tree.map(lambda f, x: 0 if f else math.prod(x.shape), frozen, shapes['student'])
        self.trainable = sum(jax.tree.leaves(kept))
        train_step = make_train_step(
            student=self.student,
            teachers=self.teachers,
            objective=self.objective,
            tx=self.tx,
            views=self.views,
            steps_per_epoch=self.steps_per_epoch,
            mixup=self.mixup,
            **self.settings,
            axis_name=par.axis_name,
        )
        judged = {'teachers': self.judges, 'teacher_weights': judging, 'axis_name': par.axis_name}
        eval_step = make_eval_step(student=self.student, **judged)
        usual = STEPS if not self.on_cpu else CPU_STEPS if par.fast else 1  # plain gradients are very slow in a loop on a CPU
        self.steps_per_dispatch = min(steps_per_dispatch or usual, self.total_steps)
        self.train_steps = par.compile(exactly(several(train_step), run.precision), arguments=6, donate_first=True, axis=1)
        self.eval_step = par.compile(exactly(eval_step, run.precision), arguments=4)
        if self.peer is not None:
            self.peer_eval_step = par.compile(exactly(make_eval_step(student=self.peer, **judged), run.precision), arguments=4)
        self._data: dict[str, Any] = {}
        self._cost: dict[str, float] | None = None
        self._slots: Callable | None = None

    def _stored(self, count_teachers: int) -> soft_targets.Kind | None:
        run, field = self.run, f'runs.{self.name}.soft_targets'
        if run.soft_targets == 'live':
            return None
        if not count_teachers:
            mine = f'its teachers {tuple(run.teachers)} learn with it' if run.teachers else 'the run has no teacher'
            raise UserError(f"{field} is {run.soft_targets!r}, but {mine}: name a trained run in teachers, or set 'live'")
        wanted = run.soft_targets, run.soft_targets_dtype, run.soft_targets_top_k
        return soft_targets.kind(field, *wanted, self.views, self.mixup, self.splits.num_classes)

    def _plan(self, companions: Sequence[str]) -> dict[str, initial.Plan]:
        """How the variables of the students and of their objectives start: role -> plan, as in `TrainState.params`."""
        image = jnp.zeros((2, *self.splits.train.image.shape[1:]), jnp.float32)  # for shapes only

        def plan(network):
            return initial.Plan(lambda key: network.model.init_with_output(key, image, train=False))

        def teacher_output(net):
            return jax.eval_shape(lambda: net.model.init_with_output(jax.random.key(0), net.normalize(image), train=False)[0])

        plans = {'student': plan(self.student)} | ({} if self.peer is None else {'peer': plan(self.peer)})
        for network in plans.values():
            self._check_heads(network.output)
        if self.stored is None:
            taught = [teacher_output(net) for net in self.networks]
        else:
            taught = [Output(jnp.zeros((2, self.splits.num_classes)), {})] * len(self.teachers)
        zeros = jnp.zeros(2, jnp.int32)
        batch = {'image': image, 'label': zeros, 'index': zeros, 'mask': jnp.ones(2), 'train_label': self.splits.train.label}
        module = self.objective.clone(terms=tuple((name, term.clone(axis_name=None)) for name, term in self.objective.terms))

        def objective(role):
            other = plans['student' if role == 'peer' or self.peer is None else 'peer'].output
            outputs = [plans[role].output, *taught, *(other for _ in companions)]
            outputs = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), outputs)
            return initial.Plan(lambda key: module.init(key, outputs[0], tuple(outputs[1:]), batch))

        return plans | {OBJECTIVE_OF[role]: objective(role) for role in plans}

    def _check_features(self) -> None:
        """Kept logits are all there is of a teacher that does not run."""
        terms = [name for name, term in self.objective.terms if term.needs_features]
        if terms and self.stored is not None:
            raise UserError(
                f'objective {terms[0]!r} learns from the features of the teacher, but with runs.{self.name}.soft_targets='
                f"{self.run.soft_targets!r} only its logits are kept; set soft_targets='live', or take the term out"
            )

    def _check_heads(self, output: Output) -> None:
        """Auxiliary heads and the terms that train them belong together."""
        heads = output.heads
        terms = [name for name, term in self.objective.terms if term.needs_heads]
        if terms and not heads:
            raise UserError(
                f'objective {terms[0]!r} needs auxiliary heads, which the model {self.run.model.name} does not have; '
                f'set runs.{self.name}.model.heads, such as (1, 2)'
            )
        if heads and not terms:
            warn(
                f'no term of runs.{self.name}.objective trains the auxiliary heads of {self.run.model.name}; '
                'add deep_supervision or self_distillation'
            )

    def check_numbers(self, run: ConfigDict) -> None:
        """Raises `UserError` for a number of `run`, which differs in nothing else, that makes no sense."""
        objectives.build(run.objective, teacher_weights=self.weights, num_classes=self.splits.num_classes)
        self.optimiser(learning_rate=self.learning_rate_of(run), weight_decay=run.optim.weight_decay)

    def learning_rate_of(self, run: ConfigDict) -> float:
        """The peak learning rate of a run that may differ from this program's in that number."""
        return self.learning_rate if run.optim.teacher_factor else run.optim.learning_rate

    def steps_at_once(self, step: int) -> int:
        """How many steps are dispatched after `step`: never past a validation."""
        return min(self.steps_per_dispatch, min(s for s in self.eval_steps if s > step) - step)

    def promise(self) -> Trained:
        """This run as a teacher, before it is trained."""
        network = self.student._replace(image_shape=tuple(self.splits.train.image.shape[1:]))
        return Trained(self.name, network, self.facts(), self.learning_rate, None)

    def data(self, split: str) -> dict[str, jax.Array]:
        if split not in self._data:
            self._data[split] = evaluate.on_device(self.parallel, getattr(self.splits, split))
        return self._data[split]

    def taught(self, trained: Sequence[Trained], rows: Sequence[dict[str, np.ndarray]] | None = None) -> Taught:
        """What the steps need of the teachers: their variables, or the soft targets that `soft_targets.obtain` gave."""
        put = self.parallel.replicate
        if self.stored is None:
            variables = tuple(put(t.variables) for t in trained)

            def judge(split):
                asked = self.data(split), self.parallel, self.run.precision
                logits = soft_targets.judged(self.networks, variables, *asked) if self.networks else ()
                return put(tuple({'logits': x[:, None]} for x in logits))

            return Taught({'train': variables}, (), judge)
        kept = lambda split: tuple(soft_targets.columns(r[split]) for r in rows)  # noqa: E731
        if soft_targets.fits(self.stored, len(rows) * self.train_count, self.splits.num_classes, self.parallel):
            return Taught({'train': put(kept('train'))}, (), lambda split: put(kept(split)))
        return Taught({'train': ()}, tuple(r['train'] for r in rows), lambda split: put(kept(split)))

    def slots(self, seed: int, index: np.ndarray, view: np.ndarray) -> np.ndarray:
        """`views.slot` on the host, of arrays of any shape."""
        if self._slots is None:
            self._slots = jax.jit(lambda s, i, v: self.views.slot(jax.random.key(s), i, v))
        with jax.default_device(jax.local_devices(backend='cpu')[0]):
            return np.asarray(self._slots(seed, index.ravel(), view.ravel())).reshape(index.shape)

    def cost(self, variables) -> dict[str, float]:
        if self._cost is None:
            self._cost = evaluate.forward_cost(self.student, jax.device_get(variables), self.splits.train.image.shape[1:])
        return self._cost

    def fresh_state(self, seed: int, start: Trained | None) -> TrainState:
        """The state before the first step, as host arrays."""
        numbers = {'student': 1, 'objective': 2, 'peer': 3, 'peer_objective': 4}
        drawn = {role: plan.draw((seed, numbers[role])) for role, plan in self._plans.items()}
        params = {role: variables.pop('params', {}) for role, variables in drawn.items()}
        if start is not None:
            variables = teachers.start_from(start, variables_of(params['student'], drawn['student']), warn)
            params['student'], drawn['student'] = variables.pop('params'), variables
        now = {'params': params['student'], 'model_state': drawn['student']}
        opt_state = jax.device_get(jax.jit(self.tx.init)(params))
        ema, past = (now if wanted else None for wanted in (self.ema_decay, self.settings['past_steps']))
        return TrainState(np.zeros((), np.int32), params, drawn, opt_state, ema, past)

    def facts(self) -> dict[str, Any]:
        """What config.json records of the data."""
        return {
            'name': self.splits.name,
            'num_classes': self.splits.num_classes,
            'class_names': self.splits.class_names,
            'image_shape': self.splits.train.image.shape[1:],
            'mean': self.splits.mean,
            'std': self.splits.std,
            'count': {'train': len(self.splits.train.label), 'labelled': self.labelled, 'val': len(self.splits.val.label),
                      'test': len(self.splits.test.label)},
        }  # fmt: skip
