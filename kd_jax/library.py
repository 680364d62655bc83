"""The trained models that the runs of a study name: other runs, workdirs elsewhere,
imported teachers, files of weights.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from kd_jax import data, imported, jobs, trained
from kd_jax.command import as_called
from kd_jax.errors import UserError
from kd_jax.monitor import warn
from kd_jax.parallel import Parallel, is_main
from kd_jax.spec import Job
from kd_jax.teacher_outputs import outside
from kd_jax.trained import Trained
from kd_jax.workdir import RunDirectory, find_run, to_json, write_json


class Library:
    """Models by what a run calls them; each is read once, until `forget`. So is each data set."""

    def __init__(
        self, plan: jobs.Plan, config: ConfigDict, workdir: epath.Path, parallel: Parallel
    ):
        self.plan, self.config, self.workdir, self.parallel = plan, config, workdir, parallel
        self.imports = {
            name: imported.check(name, given, plan.runs) for name, given in config.teachers.items()
        }
        self._models: dict[epath.Path, Trained] = {}
        self._datasets: dict[str, data.Dataset] = {}

    def dataset(self, run: ConfigDict) -> data.Dataset:
        """The data of a run, or of the study; runs with the same data share one copy."""
        key = json.dumps(to_json(run.data.to_dict()), sort_keys=True)
        if key not in self._datasets:
            self._datasets[key] = data.load(run.data)
            for sentence in self._datasets[key].notes if is_main() else ():
                warn(sentence)
        return self._datasets[key]

    def directory(self, name: str, seed: int) -> RunDirectory:
        """Of a run of the study, or of an imported teacher."""
        return RunDirectory(self.workdir / name / f'seed{seed}')

    def unfinished(self, name: str) -> list[int]:
        """The seeds of a run that are still to train."""
        seeds = self.plan.runs[name].seeds
        return [seed for seed in seeds if not self.directory(name, seed).finished()]

    def results(self) -> list[dict[str, Any]]:
        """Of all runs and imported teachers that are finished."""
        runs = [(name, 0) for name in self.imports]
        runs += [(name, seed) for name, run in self.plan.runs.items() for seed in run.seeds]
        directories = [self.directory(name, seed) for name, seed in runs]
        return [directory.result() for directory in directories if directory.finished()]

    def find(self, reference: str, seed: int) -> RunDirectory:
        """The trained run that a student of `seed` means by `reference`."""
        if reference in self.imports:
            return self.directory(reference, 0)
        run = jobs.owner(reference, self.plan.runs)
        if run is None:
            return find_run(epath.Path(reference).expanduser(), seed)
        if '/' in reference:
            return RunDirectory(self.workdir / reference)
        seeds = self.plan.runs[run].seeds
        return self.directory(run, seed if seed in seeds else seeds[0])

    def lacks(self, run: ConfigDict, seed: int) -> str | None:
        """The run of this study that a seed needs and that is not finished, if there is one."""
        for reference in jobs.references(run):
            if jobs.owner(reference, self.plan.runs) and not self.find(reference, seed).finished():
                return reference
        return None

    def load(self, reference: str, seed: int) -> Trained:
        """The trained model that `reference` means.

        Raises:
          UserError: if it is unfinished or damaged, or a file is not what it should be.
        """
        run = self.find(reference, seed)
        if run.path not in self._models:
            if reference in self.imports:
                self._models[run.path] = imported.load(
                    reference, self.imports[reference], run, self.dataset(self.config).info
                )
            else:
                self._models[run.path] = trained.load(run)
        return self._models[run.path]

    def teachers(
        self, run: ConfigDict, seed: int, load: Callable[[str, int], Trained] | None = None
    ) -> Mapping[str, Trained]:
        """Name -> the teachers of a seed that are other runs, as `load` gives them."""
        return {name: (load or self.load)(name, seed) for name in outside(run.teachers)}

    def start(
        self, run: ConfigDict, seed: int, load: Callable[[str, int], Trained] | None = None
    ) -> Trained | None:
        """What a run starts from, if anything: another run, or a file of PyTorch weights."""
        if not run.init:
            return None
        path = epath.Path(run.init).expanduser()
        if path.suffix not in trained.WEIGHTS:
            return (load or self.load)(run.init, seed)
        if path not in self._models:
            if not path.exists():
                raise UserError(
                    f'init is {run.init!r}, but there is no such file; give the path of the '
                    'weights, such as --config.runs.teacher.init=DIR/resnet50.pth'
                )
            self._models[path] = trained.load_weights(path, run.model, self.dataset(run).info)
        return self._models[path]

    def finish_imports(self) -> None:
        """Gives the study its imported teachers as finished runs, those that a run
        which is still to train needs.
        """
        for name in self.imports:
            directory = self.directory(name, 0)
            model = self._models.get(directory.path)
            if model is not None and model.imported is not None:
                imported.make_run(name, directory, model, self.dataset(self.config), self.parallel)

    def forget(self) -> None:
        """Large teachers are read again rather than kept."""
        self._models.clear()


def store_beside(teacher: RunDirectory, workdir: epath.Path) -> epath.Path:
    """Where a teacher's soft targets lie: beside it, or in the workdir if nothing can be
    written there.
    """
    if os.access(teacher.path, os.W_OK):
        return teacher.path
    return workdir / 'teachers' / '-'.join(teacher.path.parts[-3:])


def begun(library: Library, names: Iterable[str]) -> list[epath.Path]:
    """The folders of what is to train of these and has begun, perhaps in another process."""
    folders = [
        library.directory(name, seed).path for name in names for seed in library.unfinished(name)
    ]
    return [folder for folder in folders if folder.exists()]


def taught_alike(library: Library, waiting: Sequence[Job]) -> list[list[Job]]:
    """The jobs in groups that have the same teachers."""
    groups: dict[tuple[epath.Path, ...], list[Job]] = {}
    for job in waiting:
        names = outside(job.config.teachers)
        teachers = tuple(library.find(name, job.seed).path for name in names)
        groups.setdefault(teachers, []).append(job)
    return list(groups.values())


def record(workdir: epath.Path, config: ConfigDict) -> None:
    """Writes what the study is and the command that trains it."""
    write_json(workdir / 'study.json', config.copy_and_resolve_references().to_dict())
    write_json(workdir / 'command.json', as_called())
