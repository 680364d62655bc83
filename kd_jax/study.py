"""A study: its runs in the order of what they depend on, each trained, resumed or skipped; then the closing table."""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from kd_jax import data, imported, parallel, population, program, report, runtime, soft_targets, teachers, train
from kd_jax.errors import Diverged, UserError, unknown
from kd_jax.monitor import import_wandb, say
from kd_jax.workdir import RunDirectory, find_run, make_directory, to_json, write_json


def references(run: ConfigDict) -> tuple[str, ...]:
    """What a run names: its teachers, and the run it starts from."""
    return program.named_teachers(run) + ((run.init,) if run.init else ())


def _owner(reference: str, runs: Iterable[str]) -> str | None:
    """The one of `runs` that `reference` ('teacher' or 'teacher/seed0') names; None for a workdir elsewhere."""
    name, _, rest = reference.partition('/')
    return name if name in runs and (not rest or rest.startswith('seed')) else None


def order(runs: ConfigDict) -> list[str]:
    """The names of the runs, each after those it names; those that others name come first.

    Raises:
      UserError: for a cycle.
    """
    done: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise UserError(f'the runs depend on each other in a circle: {" -> ".join((*path[path.index(name) :], name))}')
        if name not in done:
            for reference in references(runs[name]):
                owner = _owner(reference, runs)
                if owner is not None:
                    visit(owner, (*path, name))
            done.append(name)

    named = {_owner(reference, runs) for run in runs.values() for reference in references(run)}
    for name in sorted(runs, key=lambda name: name not in named):
        visit(name, ())
    return done


def check(config: ConfigDict) -> None:
    """Raises `UserError` for a value of the study that makes no sense."""
    if config.steps_per_dispatch < 0:
        raise UserError(f'steps_per_dispatch is {config.steps_per_dispatch}; it must be 0 (the usual number) or more')
    there = jax.device_count()
    if not 0 <= config.devices <= there:
        raise UserError(f'devices is {config.devices}; it must be 0 (all) or at most {there}, which is how many there are')
    profile = tuple(config.profile)
    if profile and not (len(profile) == 2 and all(type(n) is int for n in profile) and 0 <= profile[0] < profile[1]):
        raise UserError(f'profile is {profile}; it must be two step numbers, such as --config.profile="(10,20)", or "()"')


def _expanded(runs: Mapping[str, ConfigDict]) -> tuple[dict[str, ConfigDict], dict[str, tuple[str, ...]]]:
    """The runs, each population as its members; and population -> names of its members.

    Raises:
      UserError: for a name that is taken, or a run that names a population.
    """
    found, members = {}, {}
    for name in runs:
        run = runs[name].copy_and_resolve_references()
        made = population.expand(name, run) if run.population else {name: run}
        if run.population:
            members[name] = tuple(made)
        for member in made:
            if member in found:
                raise UserError(
                    f'the population of runs.{name} would name a run {member!r}, which there is; rename one of them'
                )
        found |= made
    for name, run in found.items():
        for reference in references(run):
            if reference.partition('/')[0] in members:
                one = members[reference.partition('/')[0]][0]
                raise UserError(f'runs.{name} names the population {reference!r}; name one of its members, such as {one!r}')
    return found, members


class Study:
    """The runs of `config` in `workdir`. together: name -> runs that differ in numbers only, and train as a population."""

    def __init__(
        self, config: ConfigDict, workdir: Path, only: Sequence[str] = (), together: Mapping[str, Sequence[str]] | None = None
    ):
        self.config, self.workdir = config, Path(workdir)
        runs, self._members = _expanded(config.runs)
        self._members |= together or {}
        self.runs = {name: runs[name] for name in order(runs)}
        if not self.runs:
            raise UserError('the config has no runs; add one to config.runs')
        for name in only:
            if name not in self.runs and name not in self._members:
                raise unknown('run', name, [*self.runs, *self._members])
        only = [member for name in only for member in self._members.get(name, (name,))]
        self.imports = {name: imported.check(name, spec, self.runs) for name, spec in config.teachers.items()}
        self.chosen = [name for name in self.runs if not only or name in only]
        check(config)
        self.parallel = parallel.Parallel(config.parallel, config.devices or None, fast=config.fast)
        self._splits: dict[str, data.Splits] = {}
        self._programs: dict[str, program.Program] = {}  # of the runs to train; a population's under its own name
        self.failures: list[str] = []
        self._trained: dict[Path, teachers.Trained] = {}  # models read from disk
        for name, run in self.runs.items():
            program.check(name, run)

    def directory(self, name: str, seed: int) -> RunDirectory:
        return RunDirectory(self.workdir / name / f'seed{seed}')

    def find(self, reference: str, seed: int) -> RunDirectory:
        """The trained run that a student of `seed` means by `reference`."""
        if reference in self.imports:
            return self.directory(reference, 0)
        owner = _owner(reference, self.runs)
        if owner is None:
            return find_run(Path(reference).expanduser(), seed)
        if '/' in reference:
            return RunDirectory(self.workdir / reference)
        seeds = self.runs[owner].seeds
        return self.directory(owner, seed if seed in seeds else seeds[0])

    def splits(self, run: ConfigDict) -> data.Splits:
        """The run's data; runs with the same data share one copy."""
        key = json.dumps(to_json(run.data.to_dict()), sort_keys=True)
        if key not in self._splits:
            self._splits[key] = data.load(run.data)
        return self._splits[key]

    def _promise(self, reference: str, seed: int) -> teachers.Trained:
        """The model that `reference` will be once the runs before this one are trained."""
        owner = _owner(reference, self.runs)
        owner = self._population_of(owner) or owner
        return self._programs[owner].promise() if owner in self._programs else self._load(reference, seed)

    def _load(self, reference: str, seed: int) -> teachers.Trained:
        """The trained model that `reference` means; each is read once."""
        run = self.find(reference, seed)
        if run.path not in self._trained:
            if reference in self.imports:
                self._trained[run.path] = imported.load(reference, self.imports[reference], run, self.splits(self.config))
            else:
                self._trained[run.path] = teachers.load(run)
        return self._trained[run.path]

    def _start(self, name: str, seed: int, load: Callable[[str, int], teachers.Trained]) -> teachers.Trained | None:
        """What a run starts from, if anything: another run (as `load` gives it), or a file of PyTorch weights."""
        run = self.runs[name]
        if not run.init:
            return None
        path = Path(run.init).expanduser()
        if path.suffix not in teachers.WEIGHTS:
            return load(run.init, seed)
        if path not in self._trained:
            data = self.splits(run)
            self._trained[path] = teachers.load_weights(path, run.model, data.mean, data.std)
        return self._trained[path]

    def unfinished(self, name: str) -> list[int]:
        return [seed for seed in self.runs[name].seeds if not self.directory(name, seed).finished()]

    def check(self) -> None:
        """Finds every mistake that can be found before the first step of the first run."""
        if self.config.wandb:
            import_wandb(self.config.wandb)
        make_directory(self.workdir)
        for name in self.chosen:
            run = self.runs[name]
            for seed in run.seeds:
                self.directory(name, seed).check_same(run.to_dict())
            for seed in reversed(self.unfinished(name)):
                trained = [self._promise(reference, seed) for reference in program.named_teachers(run)]
                par = self.parallel.for_batch(run.batch_size, run.optim.accumulate)
                owner = self._population_of(name) or name
                if owner not in self._programs:
                    self._programs[owner] = program.Program(
                        owner, run, self.splits(run), trained, par, self.config.steps_per_dispatch
                    )
                if owner != name:  # the program is that of another member
                    self._programs[owner].check_numbers(run)
                start = self._start(name, seed, self._promise)
                if start is not None:
                    teachers.check_start(start, self._programs[owner].shapes)

    def run(self, should_stop: Callable[[], bool]) -> list[dict]:
        """Trains what is not finished and returns all results; writes results.json and report.md."""
        self.check()
        if parallel.is_main():
            write_json(self.workdir / 'study.json', to_json(self.config.copy_and_resolve_references().to_dict()))
        for name in self.imports:
            self._import(name)
        for name in self.chosen:
            owner = self._population_of(name)
            if owner is None:
                self._train(name, should_stop)
            elif owner in self._programs:
                self.train_population(owner, should_stop)
        directories = [self.directory(name, 0) for name in self.imports]
        directories += [self.directory(name, seed) for name, run in self.runs.items() for seed in run.seeds]
        results = [directory.result() for directory in directories if directory.finished()]
        if parallel.is_main():
            rows = report.aggregate(results)
            gains = report.gains(results, self.runs)
            write_json(self.workdir / 'results.json', {'results': results, 'table': rows, 'gains': gains})
            (self.workdir / 'report.md').write_text(report.markdown(rows, gains))
            report.show(rows, gains)
        if self.failures:
            raise UserError(' '.join(self.failures))
        return results

    def waiting(self) -> list[str]:
        """What `check` found to train: runs, and populations by their own names."""
        return list(self._programs)

    def _population_of(self, name: str) -> str | None:
        return next((owner for owner, members in self._members.items() if name in members), None)

    def train_population(
        self, owner: str, should_stop: Callable[[], bool], *, judge: population.Judge | None = None, test: bool = True
    ) -> None:
        """Trains what is not finished of a population; members whose seeds have teachers of their own in turn.

        judge, test: see `population.train`.
        """
        shared = self._programs.pop(owner)
        names = [name for name in self._members[owner] if name in self.chosen]
        together = population.Population(shared, population.differing([self.runs[name] for name in names]))
        groups: dict[tuple[Path, ...], list[population.Member]] = {}
        for name in names:
            for seed in self.unfinished(name):
                if self._lacks_a_run(name, seed):
                    continue
                run = self.runs[name]
                start = self._start(name, seed, self._load)
                member = population.Member(name, run, seed, self.directory(name, seed), start)
                groups.setdefault(
                    tuple(self.find(reference, seed).path for reference in program.named_teachers(run)), []
                ).append(member)
        say(f'{owner} · {describe(shared)}; {sum(map(len, groups.values()))} students')
        for members in groups.values():
            if should_stop():
                raise train.Stopped
            taught = self._taught(shared, members[0].seed, should_stop)
            self.failures += population.train(
                together,
                members,
                taught=taught,
                should_stop=should_stop,
                tensorboard=self.config.tensorboard,
                judge=judge,
                test=test,
            )
        self._trained.clear()
        del shared, together
        runtime.forget_programs()

    def _import(self, name: str) -> None:
        """Gives the study an imported teacher as a finished run, if a run that is still to train needs it."""
        directory = self.directory(name, 0)
        trained = self._trained.get(directory.path)
        if trained is not None and trained.imported is not None:
            imported.make_run(name, directory, trained, self.splits(self.config), self.parallel)

    def _train(self, name: str, should_stop: Callable[[], bool]) -> None:
        """Trains the seeds of a run that are not finished."""
        run, unfinished = self.runs[name], self.unfinished(name)
        if parallel.is_main():
            for seed in run.seeds:
                if seed not in unfinished:
                    say(f'{name} seed {seed} · finished earlier')
        if not unfinished:
            return
        parallel.barrier(f'{name} listed')  # nobody finishes a seed while another still looks what is finished
        shared = self._programs.pop(name)  # and with it, at the end, what it holds on the devices
        if parallel.is_main():
            say(f'{name} · {describe(shared)}')
        for seed in unfinished:
            if self.parallel.any(should_stop()):
                raise train.Stopped
            if self._lacks_a_run(name, seed):
                continue
            try:
                train.train(
                    shared,
                    self.directory(name, seed),
                    seed,
                    taught=self._taught(shared, seed, should_stop),
                    start=self._start(name, seed, self._load),
                    should_stop=should_stop,
                    tensorboard=self.config.tensorboard,
                    wandb=self.config.wandb,
                    profile=tuple(self.config.profile),
                )
            except Diverged as error:
                self._give_up(str(error))
        self._trained.clear()  # large teachers are read again rather than kept
        del shared
        runtime.forget_programs()

    def _lacks_a_run(self, name: str, seed: int) -> bool:
        """Whether a run of this study that `name` needs did not get to its end; if so, it is given up."""
        for reference in references(self.runs[name]):
            if _owner(reference, self.runs) and not self.find(reference, seed).finished():
                self._give_up(f'{name} seed {seed} was not trained, for {reference} did not get to its end')
                return True
        return False

    def _give_up(self, why: str) -> None:
        """The study ends with this sentence, after everything else is done."""
        self.failures.append(why)
        if parallel.is_main():
            say(f'{why} · the study goes on')

    def _keeping(self, teacher: RunDirectory) -> Path:
        """Where a teacher's soft targets are kept: beside it, or in this workdir if nothing can be written there."""
        return (
            teacher.path if os.access(teacher.path, os.W_OK) else self.workdir / 'teachers' / '-'.join(teacher.path.parts[-3:])
        )

    def _taught(self, shared: program.Program, seed: int, should_stop: Callable[[], bool]) -> program.Taught:
        """What the teachers of a seed give to its training."""
        run = shared.run
        trained = [self._load(reference, seed) for reference in program.named_teachers(run)]
        if shared.stored is None:
            return shared.taught(trained)
        rows = soft_targets.obtain(
            trained,
            [self._keeping(self.find(reference, seed)) for reference in program.named_teachers(run)],
            shared.stored,
            shared.splits,
            shared.parallel,
            precision=run.precision,
            title=' and '.join(program.named_teachers(run)),
            should_stop=should_stop,
        )
        if rows is None:
            raise train.Stopped
        return shared.taught(trained, rows)


def describe(shared: program.Program) -> str:
    """One line on what is about to be trained."""
    splits, run = shared.splits, shared.run
    count = len(splits.train.label)
    images = f'{count} images' if shared.labelled == count else f'{count} images, {shared.labelled} of them labelled'
    if len(shared.pool) < count:
        images = f'the {len(shared.pool)} labelled of {count} images'
    devices = '1 device' if len(shared.parallel) == 1 else f'{len(shared.parallel)} devices'
    return (
        f'{run.model.name}, {shared.params:,} parameters, on {images} of {splits.name}; '
        f'{shared.total_steps} steps of {run.batch_size} ({shared.parallel.mode} on {devices})'
    )
