"""Populations: runs that differ in numbers only, trained together. A batch is drawn, augmented and shown to the teachers once;
then every student takes its step, the students side by side on the devices."""

import contextlib
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from kd_jax import evaluate, objectives
from kd_jax.data import batches
from kd_jax.errors import UserError, unknown
from kd_jax.monitor import say, warn
from kd_jax.networks import exactly
from kd_jax.program import Program, Taught
from kd_jax.record import Dispatch, Due
from kd_jax.step import make_eval_step, make_look, make_look_step, make_member_step, make_update, several
from kd_jax.teachers import Trained
from kd_jax.train import Stopped, Trainee, selected, stacked
from kd_jax.workdir import RunDirectory

OPTIM = ('learning_rate', 'weight_decay')
EXAMPLE = "'objective.kl.tau=1,2,4; seed=0,1'"


def fields_of(run: ConfigDict) -> list[str]:
    """In which fields the members of a population may differ, besides their seeds."""
    terms = [(name, field) for name in run.objective for field in objectives.TRACED if field in run.objective[name]]
    return [*(f'objective.{name}.{field}' for name, field in terms), *(f'optim.{field}' for field in OPTIM)]


def parse(name: str, run: ConfigDict) -> dict[str, tuple]:
    """Field -> values of `run.population`.

    Raises:
      UserError: if it cannot be read, or a field or a value makes no sense.
    """
    path, known = f'runs.{name}.population', ['seed', *fields_of(run)]
    found: dict[str, tuple] = {}
    for part in filter(None, (part.strip() for part in run.population.split(';'))):
        field, equals, text = (piece.strip() for piece in part.partition('='))
        if not equals or field in found:
            raise UserError(f'{path} has {part!r}; write it as {EXAMPLE}, each field once, of: {", ".join(known)}')
        if field not in known:
            raise unknown(f'field in {path}', field, known)
        try:
            values = tuple((int if field == 'seed' else float)(value) for value in text.strip('()').rstrip(',').split(','))
        except ValueError:
            raise UserError(f'{path} has {part!r}, where not all values are numbers; write it as {EXAMPLE}') from None
        if len(set(values)) < len(values):
            raise UserError(f'{path} has {part!r}, which names a value twice')
        if field.endswith('.weight') and not all(values):
            raise UserError(f'{path} has {part!r}; a weight of 0 takes the term away: make that a run of its own')
        if not all(math.isfinite(value) for value in values):
            raise UserError(f'{path} has {part!r}; the values must be finite')
        found[field] = values
    return found


def expand(name: str, run: ConfigDict) -> dict[str, ConfigDict]:
    """The runs of a population, one for each combination of values: `student-kl.tau=4` with the seeds of the population."""
    values = parse(name, run)
    if run.patience:
        raise UserError(f'runs.{name}.patience is {run.patience}; the members of a population train equally long: set it to 0')
    if run.optim.teacher_factor and 'optim.learning_rate' in values:
        raise UserError(f'runs.{name}.population names optim.learning_rate, which optim.teacher_factor sets; take one of them')
    base = run.copy_and_resolve_references()
    base.seeds = values.pop('seed', tuple(run.seeds))
    base.population = ''
    if base.order_seed is None:
        base.order_seed = min(base.seeds, default=0)
    members = {}
    for combination in itertools.product(*values.values()):
        member = base.copy_and_resolve_references()
        words = [name]
        for field, value in zip(values, combination, strict=True):
            member.update_from_flattened_dict({field: value})
            words.append(f'{field.partition(".")[2]}={value:g}')
        members['-'.join(words)] = member
    return members


def differing(runs: Sequence[ConfigDict]) -> list[str]:
    """The fields in which runs that differ in numbers only differ."""
    return [field for field in fields_of(runs[0]) if len({value_of(run, field) for run in runs}) > 1]


class Member(NamedTuple):
    """One student of a population: a seed of one of its runs."""

    name: str
    run: ConfigDict
    seed: int
    directory: RunDirectory
    start: Trained | None


class Population:
    """The compiled steps of a population. program: that of any of its runs; fields: in which they differ."""

    def __init__(self, program: Program, fields: Iterable[str]):
        if jax.process_count() > 1:
            raise UserError(f'{program.name} is a population, which trains in one process; make its members runs of their own')
        self.program, self.fields = program, tuple(fields)
        par, precision = program.parallel, program.run.precision
        look = make_look(teachers=program.teachers, views=program.views, mixup=program.mixup)
        features = any(term.needs_features for _, term in program.objective.terms)
        look_steps = several(make_look_step(look, features=features, axis_name=par.axis_name))
        self.look = par.compile(exactly(look_steps, precision), arguments=6, axis=1)
        update = make_update(
            student=program.student,
            objective=self._objective,
            tx=self._tx,
            steps_per_epoch=program.steps_per_epoch,
            **program.settings,
            axis_name=None,
        )
        member_steps = several(make_member_step(update, program.settings['accumulate']))
        self.steps = par.compile_each(exactly(member_steps, precision), own=3, shared=3, donate_first=True)
        eval_step = make_eval_step(student=program.student, teachers=program.judges, teacher_weights=program.weights)
        self.eval_step = par.compile_each(exactly(eval_step, precision), own=1, shared=3)

    def _objective(self, hyper: Mapping[str, jax.Array]) -> objectives.WeightedSum:
        def of(name, term):
            begin = f'objective.{name}.'
            changed = {field[len(begin) :]: value for field, value in hyper.items() if field.startswith(begin)}
            return term.clone(axis_name=None, **changed)

        whole = self.program.objective
        return whole.clone(terms=tuple((name, of(name, term)) for name, term in whole.terms))

    def _tx(self, hyper: Mapping[str, jax.Array]):
        return self.program.optimiser({field: hyper[f'optim.{field}'] for field in OPTIM if f'optim.{field}' in hyper})

    def hyper(self, runs: Sequence[ConfigDict]) -> dict[str, np.ndarray]:
        """Each field's values `[D]` in these runs."""
        return {field: np.array([value_of(run, field) for run in runs], np.float32) for field in self.fields}

    def evaluate(self, variables: Sequence[Any], taught: Taught, split: str) -> list[list[dict[str, jax.Array]]]:
        """What `kd_jax.evaluate.finish` takes, for each group of members with variables `[D, ...]`."""
        data, tables = self.program.data(split), taught.judged(split)
        count = data['label'].shape[0]
        every = list(batches.eval_batches(count, evaluate.batch_size_for(self.program.parallel, count)))
        return [[self.eval_step(group, tables, data, batch) for batch in every] for group in variables]


def value_of(run: ConfigDict, field: str) -> float:
    node = run
    for part in field.split('.'):
        node = node[part]
    return node


Judge = Callable[[int, dict[tuple[str, int], dict[str, Any]]], set[tuple[str, int]]]


def train(
    population: Population,
    members: Sequence[Member],
    *,
    taught: Taught,
    should_stop: Callable[[], bool],
    tensorboard: bool = True,
    judge: Judge | None = None,
    test: bool = True,
) -> list[str]:
    """Trains the members to the end; returns what is to say of those that did not get there.

    Members that were saved at different steps, which a kill can do, are trained in groups of the same step. judge(step,
    {(run, seed): validation}) names the members that are to end there, unfinished. Without `test` the test split is not read.

    Raises:
      Stopped: when `should_stop()`; everything is saved.
    """
    with contextlib.ExitStack() as stack:
        trainees = []
        for m in members:
            rate = population.program.learning_rate_of(m.run)
            one = Trainee(population.program, *m, learning_rate=rate, tensorboard=tensorboard, shown=False)
            trainees.append(stack.enter_context(one))
        failures = []
        for step in sorted({one.step for one in trainees}):
            level = [one for one in trainees if one.step == step]
            failures += _Training(population, level, taught, should_stop, judge).run(test)
    return failures


class _Training:
    """Members at the same step, on their way to the end; as many of them as there are devices are a group."""

    def __init__(
        self,
        population: Population,
        trainees: list[Trainee],
        taught: Taught,
        should_stop: Callable[[], bool],
        judge: Judge | None,
    ):
        self.population, self.taught, self.should_stop, self.judge = population, taught, should_stop, judge
        self.failures: dict[str, str] = {}  # title -> why it goes no further
        self._arrange(trainees, {one.title: one.state for one in trainees})

    def _arrange(self, trainees: list[Trainee], states: Mapping[str, Any]) -> None:
        """From now on these members are trained."""
        wide = len(self.population.program.parallel)
        groups = [trainees[k : k + wide] for k in range(0, len(trainees), wide)]
        self.trainees = trainees
        self.places = {one.title: (k, n) for k, group in enumerate(groups) for n, one in enumerate(group)}
        self.groups = [group + group[:1] * (wide - len(group)) for group in groups]  # the last may repeat its first member
        self.states = [_stack([states[one.title] for one in group]) for group in self.groups]
        self.seeds = [np.array([one.seed for one in group], np.int32) for group in self.groups]
        self.hyper = [self.population.hyper([one.run for one in group]) for group in self.groups]

    def run(self, test: bool) -> list[str]:
        step = self._train()
        if self.trainees:
            self._conclude(step, test)
        return list(self.failures.values())

    def _conclude(self, step: int, test: bool) -> None:
        chosen = {one.title: one.chosen(step) for one in self.trainees}
        last = [jax.device_get(state) for state in self.states]
        saved = {title: found for title, (_, found) in chosen.items() if found is not None}
        whole = [[saved.get(one.title, self._of(last, one)) for one in group] for group in self.groups]
        variables = [selected(_stack(group)) for group in whole]
        splits = ('val', 'test') if test else ('val',)
        sums = {split: jax.device_get(self.population.evaluate(variables, self.taught, split)) for split in splits}
        for one in self.trainees:
            found = {split: evaluate.finish(self._of(groups, one)) for split, groups in sums.items()}
            one.conclude(step, chosen[one.title][0], self._of(variables, one), found['val'], found.get('test'))

    def _of(self, groups: Sequence[Any], one: Trainee) -> Any:
        """A member's part of what the groups have, host arrays `[D, ...]`."""
        k, place = self.places[one.title]
        return jax.tree.map(lambda x: x[place], groups[k])

    def _guard(self, one: Trainee, record: Callable[[], Any]) -> Any:
        """A member whose loss is not finite leaves the others alone."""
        if one.title in self.failures:
            return None
        try:
            return record()
        except UserError as error:
            self.failures[one.title] = str(error)
            warn(f'{error} (the others of its population go on)')
            return None

    def _train(self) -> int:
        program, taught, leader = self.population.program, self.taught, self.trainees[0]
        order = batches.TrainOrder(program.pool, program.train_count, program.run.batch_size, leader.order_seed)
        step, metrics = leader.step, []
        while self.trainees and not leader.has_enough(step):
            count = program.steps_at_once(step)
            batch = program.parallel.divide(stacked(order, step, count, program, taught), axis=1)
            # The devices meet here only: without a wait one could get so far ahead of another that XLA takes it for stuck.
            jax.block_until_ready(metrics)
            given = taught.variables['train'], program.data('train'), np.int32(count), batch
            _, seen = self.population.look(np.int32(step), np.int32(leader.order_seed), *given)
            step += count
            metrics = []
            for k in range(len(self.groups)):
                own = self.states[k], self.seeds[k], self.hyper[k]
                self.states[k], found = self.population.steps(*own, (), np.int32(count), seen)
                metrics.append(found)
            for one in self.trainees:
                k, place = self.places[one.title]
                dispatch = Dispatch(step, count, metrics[k], place)
                waited = self._guard(one, partial(one.recorder.dispatched, dispatch))
                if waited is not None and one is leader:
                    say(f'{one.name} and {len(self.trainees) - 1} more · first step after {waited:.1f} s')
            due, stopping = step in program.eval_steps, self.should_stop()
            if due or stopping:
                self._save(step, due)
            if stopping:
                raise Stopped
        return step

    def _save(self, step: int, validate: bool) -> None:
        """Validates the members, if asked, and saves them; those that diverged or are judged to end leave."""
        for one in self.trainees:
            self._guard(one, one.recorder.collect)
        sums = None
        if validate:
            variables = [selected(state) for state in self.states]
            sums = jax.device_get(self.population.evaluate(variables, self.taught, 'val'))
        states = [jax.device_get(state) for state in self.states]
        for one in self.trainees:
            if one.title not in self.failures:
                one.recorder.due(Due(step, sums and self._of(sums, one), self._of(states, one)))
                self._guard(one, one.recorder.settle)
        staying = [one for one in self.trainees if one.title not in self.failures]
        if validate and staying:
            self._say(step, staying)
        if validate and self.judge is not None and step < self.population.program.total_steps:
            ending = self.judge(step, {(one.name, one.seed): one.recorder.val for one in staying})
            staying = [one for one in staying if (one.name, one.seed) not in ending]
        for one in staying:
            one.recorder.monitor.pause()  # saving the others was no training either
        if len(staying) < len(self.trainees):
            self._arrange(staying, {one.title: self._of(states, one) for one in staying})

    def _say(self, step: int, alive: Sequence[Trainee]) -> None:
        """One line for all members."""
        program = self.population.program
        top1 = {one.title: one.recorder.val['top1'] for one in alive}
        best, middle = max(top1, key=top1.get), statistics.median(top1.values())
        say(
            f'epoch {step / program.steps_per_epoch:.1f}/{program.total_steps / program.steps_per_epoch:.1f} · val top-1 of '
            f'{len(alive)} students: median {100 * middle:.2f} %, best {100 * top1[best]:.2f} % ({best})'
        )


def _stack(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
