r"""Searches numbers and choices of a run on the validation split, with Optuna, many
trials at once as one sweep:

    python -m kd_jax.search --config=configs/digits.py \
        --space='objective.kl.tau=1..16 log; objective.kl.weight=0.1..1'

Interrupted, the same command continues. Machines may share a search: the same --workdir on a shared
disk, or --storage. The test split is read for the winner only.
"""

import contextlib
import functools
import logging
import pprint
import re
import signal
import socket
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from absl import app, flags
from etils import epath
from ml_collections import ConfigDict

from kd_jax import config as config_lib
from kd_jax import config_check, display, evaluate, jobs, markdown, runtime, signals
from kd_jax.command import load_config, local, parse
from kd_jax.errors import UserError, fail, told_to_the_user
from kd_jax.locking import InUse, locked
from kd_jax.main import default_workdir
from kd_jax.monitor import say, warn
from kd_jax.search_check import alike, check_space
from kd_jax.search_journal import begun, check_trials, drop_half_line, journal
from kd_jax.search_report import entry_of, name_of, plot, values_of, word, words
from kd_jax.search_space import optuna, read_space
from kd_jax.search_trials import ask, is_pruned, validation
from kd_jax.spread import percent
from kd_jax.study import Study
from kd_jax.train import Stopped
from kd_jax.workdir import RunDirectory, is_whole, make_directory, to_json, write_json

_RUN = flags.DEFINE_string('run', 'student', 'The run of the study that is searched')
_SPACE = flags.DEFINE_string(
    'space',
    '',
    "Such as 'objective.kl.tau=1..16 log; optim.learning_rate=0.02,0.05; model.name=cnn,resnet8'",
)
_TRIALS = flags.DEFINE_integer(
    'trials', 24, 'How many there are to be in the end', lower_bound=1, upper_bound=1_000_000
)
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

SHOWN = 12  # trials in the table


@contextlib.contextmanager
def _told(storage: str) -> Iterator[None]:
    """What a database cannot do, as one sentence, without the password."""
    try:
        yield
    except Exception as error:  # of any type: it is the database's
        text = f'{storage} cannot be used ({error})'
        told = re.sub(r'(://[^:/@\s]*):[^@\s]*@', r'\1:***@', text)
        raise UserError(f'--storage={told}; leave it empty, or name a database') from error


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
        check_space(self.config, name, self.space, workdir)  # before it is recorded
        self.optuna = optuna()
        self.study = self._opened(storage, workdir / 'search.journal')
        pruners = self.optuna.pruners
        self.study.pruner = (
            pruners.MedianPruner(n_startup_trials=4) if prune else pruners.NopPruner()
        )

    def _opened(self, storage: str, path: epath.Path) -> Any:
        """Optuna's study, new or the one that is there; nothing is written before it is checked."""
        where = storage or journal(path)
        title = f'{self.name} of {self.workdir.name}'
        with _told(storage):
            there = title in self.optuna.get_all_study_names(where)
            study: Any = self.optuna.load_study(study_name=title, storage=where) if there else None
        new = not there or not _is_same(self, study, '--storage' if storage else path)
        if not storage:
            drop_half_line(path)
        if not there:  # `create_study` would write a line
            with _told(storage):
                study = self.optuna.create_study(
                    study_name=title, storage=where, direction='maximize', load_if_exists=True
                )
        if new:
            space, run = _began_with(self)
            study.set_user_attr('config', run)
            study.set_user_attr('space', space)  # the last: `begun` looks for it
        return study

    def others(self) -> list[str]:
        """The runs that the searched one names, with what those name."""
        return jobs.needed(self.name, self.config.runs)

    def go(self, trials: int, should_stop: Callable[[], bool]) -> dict[str, Any]:
        """Runs until there are so many trials; returns what `finish` found.

        Raises:
          Stopped: when `should_stop()`.
          UserError: if another process is this worker.
        """
        with self._this_worker():
            self._train_others(should_stop)
            while batch := self._ask(trials):
                for group in alike(self.run, batch):
                    first, last = (of(trial.number for trial in group) + 1 for of in (min, max))
                    display.tracker().heading = (f'{first}-{last} of {trials}',)
                    self._train(group, should_stop)
            display.tracker().heading = ()
            display.tracker().idle()
            return self.finish(should_stop)

    @contextlib.contextmanager
    def _this_worker(self) -> Iterator[None]:
        """Nobody else takes over the trials of this worker inside."""
        place = self.workdir / f'worker-{quote(self.worker, safe="")}'
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(place, 'searching'))
            except InUse as error:
                raise UserError(f'{error}, or give this process a --worker of its own') from error
            yield

    def _train_others(self, should_stop: Callable[[], bool]) -> None:
        """Trains what the searched run names; waits while another worker does."""
        others, said = self.others(), ''
        while others:
            try:
                with locked(self.workdir, 'training what a search needs', timeout=1.0):
                    Study(self.config, self.workdir, others).run(should_stop)
                return
            except InUse as error:
                if str(error) != said:
                    say(f'{error} · waiting')
                    said = str(error)
                if should_stop():
                    raise Stopped from None

    def _ask(self, trials: int) -> list[Any]:
        return ask(self.study, self.space, self.worker, self.together, trials)

    def config_of(self, params: Mapping[str, Any]) -> ConfigDict:
        run = self.run.copy_and_resolve_references()
        run.update_from_flattened_dict(params)
        # All trials see the same batches, also when one is trained again.
        if run.order_seed is None:
            run.order_seed = min(run.seeds)
        return run

    def _train(self, group: Sequence[Any], should_stop: Callable[[], bool]) -> None:
        names = {name_of(trial): trial for trial in group}
        try:
            study = _study(self, group)
            study.check()
        except UserError:  # the same command would meet these trials for ever
            for trial in names.values():
                if not any(run.path.exists() for run in _runs(self, trial)):  # or it is damaged
                    self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)
            raise
        pruned: set[int] = set()

        def prune(
            step: int, validated: Mapping[tuple[str, int], Mapping[str, Any]]
        ) -> set[tuple[str, int]]:
            for name, trial in names.items():
                runs = dict(zip(self.run.seeds, _runs(self, trial), strict=True))
                top1 = {s: val['top1'] for (run, s), val in validated.items() if run == name}
                mean = validation(top1, runs, step)
                if mean is not None and is_pruned(self.study, trial, step, mean):
                    pruned.add(trial.number)
            return {(name, seed) for name, seed in validated if names[name].number in pruned}

        study.train('trials', should_stop, prune=prune, test=False)
        states = self.optuna.trial.TrialState
        for name, trial in names.items():
            runs = _runs(self, trial)
            if all(run.finished() for run in runs):
                values = [run.result()['val']['top1'] for run in runs]
                trial.set_user_attr('val', values)
                self.study.tell(trial, statistics.mean(values))
                say(f'{name} · val top-1 {percent(values)} · {words(trial.params)}')
            else:
                ended = states.PRUNED if trial.number in pruned else states.FAIL
                self.study.tell(trial, state=ended)
                say(f'{name} · {ended.name.lower()} · {words(trial.params)}')

    def finish(self, should_stop: Callable[[], bool] = lambda: False) -> dict[str, Any]:
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
        _restore(self, best, should_stop)
        test = [evaluate.evaluate_run(run.path, 'test')['top1'] for run in _runs(self, best)]
        counts = {state: sum(t.state.name == state for t in self.study.get_trials(deepcopy=False))
                  for state in ('COMPLETE', 'PRUNED', 'FAIL')}  # fmt: skip
        result = {
            'best': {**entry_of(best), 'test': test},
            'trials': [entry_of(trial) for trial in ranked],
            'counts': counts,
        }
        write_json(self.workdir / 'search.json', result)
        self.best.write_text(self._best_config(best.params))
        head = ('trial', *self.space, 'val top-1 %')
        rows = [
            (f'{t.number}', *(word(t.params[f]) for f in self.space), percent(values_of(t)))
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
        plot(self.workdir / 'search.png', self.space, complete)
        return result

    @property
    def best(self) -> epath.Path:
        """The config of the winner; its name is that of the workdir it will train in."""
        return self.workdir / f'{self.workdir.name}_best.py'

    def _best_config(self, params: Mapping[str, Any]) -> str:
        config, others = self.config.copy_and_resolve_references(), self.others()
        run = self.config_of(params)

        def there(name: str) -> str:
            return str(self.workdir / name) if name.partition('/')[0] in others else name

        run.teachers, run.init = tuple(map(there, run.teachers)), there(run.init)
        config.runs = ConfigDict({self.name: run})
        text = pprint.pformat(config.to_dict(), width=120, sort_dicts=False)
        return (
            f'"""The best that a search found: runs.{self.name} with {words(params)}.\n\n'
            f'    python -m kd_jax.main --config={self.best}\n\n'
            'Its teachers are those of the search.\n"""\n\n'
            'from ml_collections import ConfigDict\n\nfrom kd_jax import config as common\n\n'
            f'CONFIG = {text}\n\n\n'
            'def get_config():\n    return common.follow(ConfigDict(CONFIG))\n'
        )


def _study(search: Search, group: Sequence[Any]) -> Study:
    """In which these trials are a sweep."""
    config, names = search.config.copy_and_resolve_references(), [name_of(t) for t in group]
    for name in set(config.runs) - set(search.others()):
        del config.runs[name]
    for name, trial in zip(names, group, strict=True):
        config.runs[name] = search.config_of(trial.params)
    return Study(config, search.workdir, names, {'trials': tuple(names)})


def _began_with(search: Search) -> tuple[dict[str, Any], Any]:
    """(space, config of the run) as they are recorded."""
    as_json = optuna().distributions.distribution_to_json
    space = {field: as_json(of) for field, of in search.space.items()}
    return space, to_json(config_lib.upgraded(search.run.to_dict()))


def _is_same(search: Search, study: Any, where: object) -> bool:
    """False for a search that was cut off before it recorded what it began with.

    Raises:
      UserError: if it began with another space or run.
    """
    there = begun(study, where)
    if there is None:
        return False
    space, run = _began_with(search)
    for key, same in (
        ('space', there[0] == space),
        ('run', to_json(config_lib.upgraded(there[1])) == run),
    ):
        if not same:
            raise UserError(
                f'{search.workdir} holds a search with another {key}; choose '
                'another --workdir, or undo the change'
            )
    check_trials(study, search.space, where)
    return True


def _runs(search: Search, trial: Any) -> list[RunDirectory]:
    place = search.workdir / name_of(trial)
    return [RunDirectory(place / f'seed{seed}') for seed in search.run.seeds]


def _restore(search: Search, best: Any, should_stop: Callable[[], bool]) -> None:
    """What the winner has lost since its end is mended or trained again."""
    if not all(map(is_whole, _runs(search, best))):
        study = _study(search, [best])
        study.check()
        study.train('trials', should_stop, test=False)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        fail(f'unexpected argument {argv[1]!r}; options look like --config=configs/digits.py')
    logging.getLogger().setLevel(logging.WARNING)  # jax tells which backends it did not find
    with told_to_the_user():
        config = load_config()
        runtime.prepare(fast=config.fast)
        stop = signals.note()
        given = flags.FLAGS['workdir'].value
        workdir = (
            local(given)
            if given
            else default_workdir().with_name(f'{default_workdir().name}-search')
        )
        search = Search(
            config,
            workdir,
            _RUN.value,
            _SPACE.value,
            together=_TOGETHER.value,
            storage=_STORAGE.value,
            worker=_WORKER.value,
            prune=_PRUNE.value,
        )
        for sentence in config_check.without_effect({_RUN.value: search.run}):
            warn(sentence)
        try:
            with display.showing(display.choose(stopping=lambda: bool(stop))):
                search.go(_TRIALS.value, lambda: bool(stop))
        except Stopped:
            received = signal.Signals(stop[0] if stop else signal.SIGTERM)
            say(f'stopped by {received.name}; the same command continues')
            sys.exit(128 + received)


if __name__ == '__main__':
    app.run(main, flags_parser=functools.partial(parse, about=__doc__))
