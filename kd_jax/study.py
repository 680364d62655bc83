"""A study: its runs by what they depend on, each trained, resumed or skipped; then the table."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from kd_jax import build, executors, extraction, following, jobs, own, parallel, report, trained
from kd_jax import config as config_lib
from kd_jax.config_check import check_run, check_study
from kd_jax.display import tracker
from kd_jax.errors import UserError
from kd_jax.library import Library, begun, record, store_beside, taught_alike
from kd_jax.monitor import detail, import_wandb, say
from kd_jax.runtime import forget_programs
from kd_jax.spec import Job, RunSpec, TeacherData
from kd_jax.teacher_outputs import check_teachers
from kd_jax.train import Prune, Stopped, train
from kd_jax.train_log import mend_log
from kd_jax.trained import Trained
from kd_jax.workdir import PathLike, make_directory


class Study:
    """The runs of `config` in `workdir`. together: name -> runs that differ in
    numbers only, and train as a sweep.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: PathLike,
        only: Sequence[str] = (),
        together: Mapping[str, Sequence[str]] | None = None,
    ):
        self.config, self.workdir = config, epath.Path(workdir)
        check_study(config)
        for name in config.runs:
            check_run(name, config.runs[name])
        self.plan = jobs.plan(config, together)
        self.chosen = self.plan.chosen(only)
        for name, run in self.plan.runs.items():
            check_run(name, run)
            check_teachers(name, run)
        self.parallel = parallel.Parallel(config.parallel, config.devices or None, fast=config.fast)
        self.library = Library(self.plan, config, self.workdir, self.parallel)
        self.specs: dict[str, RunSpec] = {}  # of what is to train: runs, and sweeps by their names
        self.failures: list[str] = []

    def check(self) -> None:
        """Finds every mistake that can be found before the first step of the first run."""
        if self.config.wandb:
            import_wandb(self.config.wandb)
        make_directory(self.workdir)
        for group, names in self.plan.groups(self.chosen).items():
            for name in names:
                for seed in self.plan.runs[name].seeds:
                    directory = self.library.directory(name, seed)
                    directory.check_same(self.plan.runs[name].to_dict(), config_lib.upgraded)
                    mend_log(directory)
                for seed in reversed(self.library.unfinished(name)):
                    self._check(group, name, seed)
        own.tell(say if parallel.is_main() else str)

    def _check(self, group: str, name: str, seed: int) -> None:
        run = self.plan.runs[name]
        if group != name and jax.process_count() > 1:
            raise UserError(
                f'{group} is a sweep, which trains in one process; make its members runs '
                'of their own'
            )
        start = self.library.start(run, seed, self._planned)
        if group not in self.specs:
            devices = self.parallel.for_batch(run.batch_size, run.optim.accumulate)
            teachers = self.library.teachers(run, seed, self._planned)
            data, most = self.library.dataset(run), self.config.steps_per_dispatch
            self.specs[group] = build.run_spec(group, run, data, teachers, devices, most, start)
        else:
            spec = self.specs[group]
            for teacher in self.library.teachers(run, seed, self._planned).values():
                trained.check_teacher(teacher, spec.dataset.info, spec.step.objective.losses)
        build.check_member(self.specs[group], run)
        if start is not None:
            trained.check_start(start, self.specs[group].plans['student'].shapes)

    def _planned(self, reference: str, seed: int) -> Trained:
        """The model that `reference` will be once the runs before this one are trained."""
        run = jobs.owner(reference, self.plan.runs)
        if run is not None and (group := self.plan.group_of(run)) in self.specs:
            return build.planned(self.specs[group], self.plan.runs[run])
        return self.library.load(reference, seed)

    def run(
        self, should_stop: Callable[[], bool], checked: Callable[[], None] = lambda: None
    ) -> list[dict[str, Any]]:
        """Calls `checked` when only training is left, trains what is not finished, writes
        the results and the report, and returns all results."""
        tracker().busy(self.workdir.name, 'reads its data, checks its runs')
        self.check()
        following.plan(self.plan.groups(self.chosen), self.specs, self.library.unfinished)
        checked()
        tracker().doing('starting')
        with parallel.only_here(begun(self.library, self.chosen), 'beginning a study'):
            if parallel.is_main():
                record(self.workdir, self.config)
        self.library.finish_imports()
        for group in self.plan.groups(self.chosen):
            self.train(group, should_stop)
        tracker().idle()
        results = self.library.results()
        if parallel.is_main():
            report.write(self.workdir, results, self.plan.runs)
        if self.failures:
            raise UserError(' '.join(self.failures))
        return results

    def train(
        self,
        group: str,
        should_stop: Callable[[], bool],
        *,
        prune: Prune | None = None,
        test: bool = True,
    ) -> None:
        """Trains what is not finished of a run or of a sweep. prune, test: see `train`."""
        waiting = self._jobs(group)
        spec = self.specs.pop(group, None)  # and with it, at the end, what lies on the devices
        if spec is None:
            return
        sweep = group in self.plan.members
        groups = taught_alike(self.library, waiting) if sweep else [[job] for job in waiting]
        devices = self.parallel.for_batch(spec.config.batch_size, spec.step.accumulate)
        make = executors.MemberParallel if sweep else executors.DataParallel
        executor = make(spec, devices)
        count = f'; {len(waiting)} students' if sweep else ''
        following.begin(spec, len(groups), f'{report.describe(spec, devices)}{count}')
        for together in groups:
            if parallel.in_any_process(should_stop()):
                raise Stopped
            executor.clear()  # what the jobs before had on the devices
            executor.teach(self._teachers(executor, together[0], should_stop))
            for why in train(
                executor,
                together,
                should_stop=should_stop,
                options={name: self.config[name] for name in ('tensorboard', 'wandb', 'log_every')},
                profile=tuple(self.config.profile),
                prune=prune,
                test=test,
            ):
                self._give_up(why, said=sweep)
        self.library.forget()
        del executor, spec
        forget_programs()

    def _jobs(self, group: str) -> list[Job]:
        """What is to train of a run or of a sweep, and can be."""
        waiting = []
        for name in self.plan.groups(self.chosen)[group]:
            run, unfinished = self.plan.runs[name], self.library.unfinished(name)
            if parallel.is_main() and group == name:
                for seed in (seed for seed in run.seeds if seed not in unfinished):
                    detail(f'{name} seed {seed} · finished earlier')
            for seed in unfinished:
                if lacking := self.library.lacks(run, seed):
                    why = f'for {lacking} did not get to its end'
                    self._give_up(f'{name} seed {seed} was not trained, {why}')
                    continue
                start, there = self.library.start(run, seed), self.library.directory(name, seed)
                waiting.append(build.job_of(self.specs[group], name, run, seed, there.path, start))
        # Nobody finishes a seed while another process still looks what is finished.
        parallel.barrier(f'{group} listed')
        return waiting

    def _give_up(self, why: str, *, said: bool = False) -> None:
        """The study ends with this sentence, after everything else is done."""
        self.failures.append(why)
        if parallel.is_main() and not said:
            say(f'{why} · the study goes on')

    def _teachers(
        self, executor: executors.Executor, job: Job, should_stop: Callable[[], bool]
    ) -> TeacherData:
        """What the teachers of a job give to its steps; soft targets are extracted first,
        where they are not there yet.
        """
        spec, teachers = executor.run, self.library.teachers(job.config, job.seed)
        if spec.targets is None:
            return executor.placement.teachers(teachers)
        title, models = ' and '.join(teachers), list(teachers.values())
        wanted = extraction.of_run(spec, models, executor.parallel, title)
        there = [self.library.find(name, job.seed) for name in teachers]
        directories = [store_beside(teacher, self.workdir) for teacher in there]
        rows = extraction.obtain(wanted, directories, should_stop)
        if rows is None:
            raise Stopped
        return executor.placement.teachers(teachers, rows)
