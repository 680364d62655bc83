"""Searches numbers and choices of a run on the validation split, with Optuna, many
trials at once as one sweep:

    python -m kd_jax.search --config=configs/digits.py \
        --space='objective.kl.tau=1..16 log; objective.kl.weight=0.1..1'

Interrupted, the same command continues. Machines may share a search: the same --workdir on a shared
disk, or --storage. The test split is read for the winner only.
"""

import ast
import logging
import pprint
import re
import signal
import socket
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
from absl import app, flags
from etils import epath
from ml_collections import ConfigDict

from kd_jax import config as config_lib
from kd_jax import evaluate, jobs, markdown, runtime
from kd_jax.command import load_config, parse
from kd_jax.errors import UserError, fail, told_to_the_user, unknown
from kd_jax.main import default_workdir
from kd_jax.monitor import say
from kd_jax.spread import mean_std, percent
from kd_jax.study import Study
from kd_jax.train import Stopped
from kd_jax.workdir import RunDirectory, make_directory, to_json, write_json

_RUN = flags.DEFINE_string('run', 'student', 'The run of the study that is searched')
_SPACE = flags.DEFINE_string(
    'space',
    '',
    "Such as 'objective.kl.tau=1..16 log; optim.learning_rate=0.02,0.05; model.name=cnn,resnet8'",
)
_TRIALS = flags.DEFINE_integer('trials', 24, 'How many there are to be in the end')
_TOGETHER = flags.DEFINE_integer('together', 8, 'How many train at once')
_PRUNE = flags.DEFINE_boolean(
    'prune',
    True,
    'End trials early whose validation is below the median of the others at the same step',
)
_STORAGE = flags.DEFINE_string(
    'storage',
    '',
    "A database that Optuna knows, such as 'sqlite:///search.db'; '' = a file in the workdir",
)
_WORKER = flags.DEFINE_string(
    'worker', '', "A name for this process, if several share a search; '' = the machine's"
)

_NUMBER = r'[-+]?[0-9.]+(?:e[-+]?[0-9]+)?'
_RANGE = re.compile(rf'({_NUMBER})\.\.({_NUMBER})(\s+log)?')
SHOWN = 12  # trials in the table


def optuna() -> Any:
    """The module; `UserError` where it is not installed."""
    try:
        import optuna as module
    except ImportError as error:
        raise UserError('a search needs Optuna; pip install -r requirements-extras.txt') from error
    module.logging.set_verbosity(module.logging.WARNING)
    return module


def read_space(text: str, name: str, run: ConfigDict) -> dict[str, Any]:
    """Field -> Optuna distribution: `LOW..HIGH [log]`, or values to choose from.

    Raises:
      UserError: for a field that the run does not have, or what cannot be read.
    """
    distributions = optuna().distributions
    example = "'objective.kl.tau=1..16 log; model.name=cnn,resnet8'"
    space: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(';'))):
        field, equals, values = (piece.strip() for piece in part.partition('='))
        if not equals or not values or field in space:
            raise UserError(f'--space has {part!r}; write each field once, as {example}')
        try:
            default = jobs.value_of(run, field)
        except (AttributeError, KeyError, TypeError):
            known = flax.traverse_util.flatten_dict(run.to_dict(), sep='.')
            raise unknown(f'field of runs.{name} in --space', field, known) from None
        if isinstance(default, ConfigDict):
            raise UserError(
                f'--space names {field!r}, which is a group; name one of '
                f'its fields: {", ".join(default)}'
            )
        between = _RANGE.fullmatch(values)
        try:
            if between:
                low, high = float(between[1]), float(between[2])
                positive = between[3] or field.endswith('.weight')
                if not (low < high and (low > 0 or not positive)) or isinstance(
                    default, (str, bool, int, tuple)
                ):
                    raise ValueError
                space[field] = distributions.FloatDistribution(low, high, log=bool(between[3]))
            else:
                choices = [_typed(value.strip(), default) for value in values.split(',')]
                if len(set(choices)) < len(choices):
                    raise ValueError
                space[field] = distributions.CategoricalDistribution(choices)
        except ValueError:
            raise UserError(
                f'--space has {part!r}; write it as {example}: for numbers LOW..HIGH with LOW < '
                'HIGH, above 0 for weights and with log, or different values'
            ) from None
    if not space:
        raise UserError(f'--space is empty; name what is searched, such as {example}')
    return space


def _typed(text: str, default: Any) -> Any:
    """A value in the type of the field's; where that has none (None), a number if it is one."""
    if isinstance(default, bool):
        return (
            {'True': True, 'False': False}[text]
            if text in ('True', 'False')
            else float('not a truth')
        )
    if isinstance(default, (int, float, str)):
        return type(default)(text)
    try:
        return int(text) if text.lstrip('-').isdigit() else float(text)
    except ValueError:
        return text


class Search:
    """A search in `workdir`: trained teachers, the runs `trial<number>`,
    and what was learnt of them.

    config: the study; name: its run that is searched.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: epath.Path,
        name: str,
        space: str,
        *,
        together: int,
        storage: str = '',
        worker: str = '',
        prune: bool = True,
    ):
        if name not in config.runs:
            raise UserError(f'--run={name} is no run of the study; it has {", ".join(config.runs)}')
        if together < 1:
            raise UserError(f'--together is {together}; it must be 1 or more')
        self.config = config.copy_and_resolve_references()
        self.workdir, self.name, self.together = workdir, name, together
        self.config.unlock()
        self.run = self.config.runs[name]
        if self.run.sweep or self.run.patience:
            raise UserError(f'runs.{name} has a sweep or patience; a search goes without them')
        self.space = read_space(space, name, self.run)
        if self.run.optim.teacher_factor and 'optim.learning_rate' in self.space:
            raise UserError(
                '--space names optim.learning_rate, which optim.teacher_factor sets; '
                'take one of them'
            )
        self.worker = worker or socket.gethostname()
        make_directory(workdir)
        module = self.optuna = optuna()
        where = storage or module.storages.JournalStorage(
            module.storages.journal.JournalFileBackend(str(workdir / 'search.journal'))
        )
        try:
            self.study = module.create_study(
                study_name=f'{name} of {workdir.name}',
                storage=where,
                direction='maximize',
                load_if_exists=True,
            )
        except Exception as error:
            raise UserError(
                f'--storage={storage} cannot be used ({error}); leave it empty, or name a database'
            ) from error
        self._check_same()
        done = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = module.samplers.TPESampler(
            seed=done, n_startup_trials=max(together, 10), constant_liar=True
        )
        self.study.pruner = (
            module.pruners.MedianPruner(n_startup_trials=4) if prune else module.pruners.NopPruner()
        )

    def _check_same(self) -> None:
        """A search goes on with the space and the run that it began with."""
        space = {
            field: self.optuna.distributions.distribution_to_json(of)
            for field, of in self.space.items()
        }
        run = to_json(config_lib.upgraded(self.run.to_dict()))
        begun = self.study.user_attrs
        if 'space' not in begun:
            self.study.set_user_attr('space', space)
            self.study.set_user_attr('config', run)
            return
        # as earlier versions wrote it
        recorded = begun['config'] if 'config' in begun else ast.literal_eval(begun['run'])
        for key, same in (
            ('space', begun['space'] == space),
            ('run', to_json(config_lib.upgraded(recorded)) == run),
        ):
            if not same:
                raise UserError(
                    f'{self.workdir} holds a search with another {key}; choose '
                    'another --workdir, or undo the change'
                )

    def others(self) -> list[str]:
        """The runs that the searched one names, with what those name."""
        return jobs.needed(self.name, self.config.runs)

    def go(self, trials: int, should_stop: Callable[[], bool]) -> dict[str, Any]:
        """Runs until there are so many trials; returns what `finish` found.

        Raises:
          Stopped: when `should_stop()`.
        """
        others = self.others()
        if others:
            Study(self.config, self.workdir, others).run(should_stop)
        while batch := self._ask(trials):
            groups: dict[tuple, list[Any]] = {}
            numbers = set(jobs.swept_fields(self.run))
            for trial in batch:
                chosen = trial.params.items()  # a weight of 0 takes its loss away
                fixed = tuple(
                    (f, v)
                    for f, v in chosen
                    if f not in numbers or (f.endswith('.weight') and not v)
                )
                groups.setdefault(fixed, []).append(trial)
            for group in groups.values():
                self._train(group, should_stop)
        return self.finish()

    def _ask(self, trials: int) -> list[Any]:
        """The next trials: those this worker left unfinished, then new ones."""
        module = self.optuna
        there = self.study.get_trials(deepcopy=False)
        mine = [
            t
            for t in there
            if t.state == module.trial.TrialState.RUNNING
            and t.user_attrs.get('worker') == self.worker
        ]
        batch = [module.trial.Trial(self.study, t._trial_id) for t in mine[: self.together]]
        while len(batch) < self.together and len(there) < trials:
            trial = self.study.ask(self.space)
            trial.set_user_attr('worker', self.worker)
            batch.append(trial)
            there = self.study.get_trials(deepcopy=False)
        return batch

    def config_of(self, params: Mapping[str, Any]) -> ConfigDict:
        run = self.run.copy_and_resolve_references()
        run.update_from_flattened_dict(params)
        # all trials see the same batches, also when one is trained again
        if run.order_seed is None:
            run.order_seed = min(run.seeds)
        return run

    def _train(self, group: Sequence[Any], should_stop: Callable[[], bool]) -> None:
        config = self.config.copy_and_resolve_references()
        names = {f'trial{trial.number:04d}': trial for trial in group}
        for name in set(config.runs) - set(self.others()):
            del config.runs[name]
        for name, trial in names.items():
            config.runs[name] = self.config_of(trial.params)
        study = Study(config, self.workdir, list(names), {'trials': tuple(names)})
        pruned: set[int] = set()
        reported: set[tuple[int, int]] = set()

        def prune(
            step: int, validated: Mapping[tuple[str, int], Mapping[str, Any]]
        ) -> set[tuple[str, int]]:
            for name, trial in names.items():
                values = [val['top1'] for (run, _), val in validated.items() if run == name]
                if values and (trial.number, step) not in reported:
                    reported.add((trial.number, step))
                    trial.report(statistics.mean(values), step)
                    if trial.should_prune():
                        pruned.add(trial.number)
            return {(name, seed) for name, seed in validated if names[name].number in pruned}

        study.check()
        study.train('trials', should_stop, prune=prune, test=False)
        states = self.optuna.trial.TrialState
        for name, trial in names.items():
            runs = [RunDirectory(self.workdir / name / f'seed{seed}') for seed in self.run.seeds]
            if all(run.finished() for run in runs):
                values = [run.result()['val']['top1'] for run in runs]
                trial.set_user_attr('val', values)
                self.study.tell(trial, statistics.mean(values))
                say(f'{name} · val top-1 {percent(values)} · {_words(trial.params)}')
            else:
                ended = states.PRUNED if trial.number in pruned else states.FAIL
                self.study.tell(trial, state=ended)
                say(f'{name} · {ended.name.lower()} · {_words(trial.params)}')

    def finish(self) -> dict[str, Any]:
        """Measures the winner on the test split; writes its config, `search.json`,
        `search.md` and `search.png`.
        """
        complete = [t for t in self.study.get_trials(deepcopy=False) if t.state.name == 'COMPLETE']
        if not complete:
            raise UserError(
                f'no trial of {self.workdir} got to its end; search '
                'other values in another --workdir'
            )
        ranked = sorted(complete, key=lambda t: -t.value)
        best = ranked[0]
        run = f'trial{best.number:04d}'
        test = [
            evaluate.evaluate_run(self.workdir / run / f'seed{seed}', 'test')['top1']
            for seed in self.run.seeds
        ]
        counts = {state: sum(t.state.name == state for t in self.study.get_trials(deepcopy=False))
                  for state in ('COMPLETE', 'PRUNED', 'FAIL')}  # fmt: skip
        result = {
            'best': {
                'run': run,
                'params': best.params,
                'val': best.user_attrs['val'],
                'test': test,
            },
            'trials': [
                {'run': f'trial{t.number:04d}', 'params': t.params, 'val': t.user_attrs['val']}
                for t in ranked
            ],
            'counts': counts,
        }
        write_json(self.workdir / 'search.json', result)
        self.best.write_text(self._best_config(best.params))
        head = ('trial', *self.space, 'val top-1 %')
        rows = [
            (f'{t.number}', *(_word(t.params[f]) for f in self.space), percent(t.user_attrs['val']))
            for t in ranked[:SHOWN]
        ]
        table = markdown.table(head, rows, 'r' * len(head), rule='')
        summary = (
            f'{counts["COMPLETE"]} trials complete, {counts["PRUNED"]} pruned, '
            f'{counts["FAIL"]} failed; {len(test)} seed(s) each. The best on validation has '
            f'{percent(test)} % on the test split.'
        )
        (self.workdir / 'search.md').write_text(f'{table}\n\n{summary}\n')
        say(f'\n{table}\n\n{summary}\npython -m kd_jax.main --config={self.best} trains it again')
        self._plot(complete)
        return result

    @property
    def best(self) -> epath.Path:
        """The config of the winner; its name is that of the workdir it will train in."""
        return self.workdir / f'{self.workdir.name}_best.py'

    def _best_config(self, params: Mapping[str, Any]) -> str:
        config, others = self.config.copy_and_resolve_references(), self.others()
        run = self.config_of(params)

        def there(name):
            return str(self.workdir / name) if name.partition('/')[0] in others else name

        run.teachers, run.init = tuple(map(there, run.teachers)), there(run.init)
        config.runs = ConfigDict({self.name: run})
        text = pprint.pformat(config.to_dict(), width=120, sort_dicts=False)
        return (
            f'"""The best that a search found: runs.{self.name} with {_words(params)}.\n\n'
            f'    python -m kd_jax.main --config={self.best}\n\n'
            'Its teachers are those of the search.\n"""\n\n'
            'from ml_collections import ConfigDict\n\nfrom configs import common\n\n'
            f'CONFIG = {text}\n\n\n'
            'def get_config():\n    return common.follow(ConfigDict(CONFIG))\n'
        )

    def _plot(self, complete: Sequence[Any]) -> None:
        """Validation accuracy over each number that was searched, in `search.png`."""
        numbers = [
            field
            for field in self.space
            if all(isinstance(t.params[field], float) for t in complete)
        ]
        try:
            import matplotlib
        except ImportError:
            return
        if not numbers:
            return
        matplotlib.use('Agg')
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(
            1,
            len(numbers),
            figsize=(4 * len(numbers), 3.2),
            layout='constrained',
            squeeze=False,
            sharey=True,
        )
        for ax, field in zip(axes[0], numbers, strict=True):
            accuracies = [
                mean_std([100 * value for value in t.user_attrs['val']]) for t in complete
            ]
            values, spread = [a['mean'] for a in accuracies], [a['std'] or 0.0 for a in accuracies]
            ax.errorbar([t.params[field] for t in complete], values, spread, fmt='o', capsize=2)
            ax.set_xlabel(field)
            if getattr(self.space[field], 'log', False):
                ax.set_xscale('log')
                low, high = ax.get_xlim()
                ticks = [low * (high / low) ** (k / 4) for k in range(5)]
                ax.set_xticks(ticks, [f'{tick:.2g}' for tick in ticks])
                ax.set_xticks([], minor=True)
        # A trial that went wrong would press all others into a line at the top.
        best, middle = max(values), statistics.median(values)
        floor = best - max(4 * (best - middle), 1.0)
        below = sum(value < floor for value in values)
        axes[0][0].set_ylim(bottom=floor if below else None, top=best + 0.15 * (best - floor))
        axes[0][0].set_ylabel('validation top-1 %' + (f' ({below} below)' if below else ''))
        figure.savefig(self.workdir / 'search.png', dpi=120)
        pyplot.close(figure)


def _word(value: Any) -> str:
    return f'{value:.3g}' if isinstance(value, float) else str(value)


def _words(params: Mapping[str, Any]) -> str:
    return ', '.join(f'{field}={_word(value)}' for field, value in params.items())


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        fail(f'unexpected argument {argv[1]!r}; options look like --config=configs/digits.py')
    logging.getLogger().setLevel(logging.WARNING)  # jax tells which backends it did not find
    stop: list[int] = []
    with told_to_the_user():
        config = load_config()
        runtime.prepare(fast=config.fast)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: stop.append(received))
        given = flags.FLAGS['workdir'].value
        workdir = (
            epath.Path(given)
            if given
            else default_workdir().with_name(f'{default_workdir().name}-search')
        )
        asked = {
            'together': _TOGETHER.value,
            'storage': _STORAGE.value,
            'worker': _WORKER.value,
            'prune': _PRUNE.value,
        }
        search = Search(config, workdir, _RUN.value, _SPACE.value, **asked)
        try:
            search.go(_TRIALS.value, lambda: bool(stop))
        except Stopped:
            say('stopped; the same command continues')
            sys.exit(128 + (stop[0] if stop else signal.SIGTERM))


if __name__ == '__main__':
    flags.mark_flag_as_required('config')
    app.run(main, flags_parser=parse)
