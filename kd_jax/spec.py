"""The records between a config and a compiled program; no logic.

A `StepSpec` says what a step is: `kd_jax.step` makes every function of it, `kd_jax.build`
makes it of a config. A `RunSpec` is what the seeds of a run share; a `Job` is one training,
of which a sweep has several.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax
import jax
import numpy as np
import optax
from etils import epath
from ml_collections import ConfigDict

from kd_jax.data import Dataset, DatasetInfo
from kd_jax.data.mixing import Mixing
from kd_jax.data.views import Views
from kd_jax.models.common import Output
from kd_jax.models.initial import Plan
from kd_jax.networks import Network
from kd_jax.objectives import Objective

Arrays = dict[str, Any]
Hparams = Mapping[str, Any]  # 'objective.<label>.<field>', 'optim.<field>' -> number

# What holds the learned parts of a student's objective in a state, beside the student itself.
OBJECTIVE_OF = {'student': 'objective', 'peer': 'peer_objective'}


@flax.struct.dataclass
class TrainState:
    """What training changes. It never holds the teacher and never has a device axis."""

    step: jax.Array | np.ndarray  # int32 scalar: updates done
    params: dict[str, Any]  # {'student', 'objective'} and, with a peer, {'peer', 'peer_objective'}
    model_state: dict[str, Any]  # likewise: running statistics, memory banks
    opt_state: Any
    ema: dict[str, Any] | None = None  # averaged {'params', 'model_state'} of the student
    snapshot: dict[str, Any] | None = None  # {'params', 'model_state'} that the student had


@dataclasses.dataclass(frozen=True)
class TeacherSpec:
    """One teacher of a step: what it says, as a function of the batch
    and of what is known beside it.

    output(variables, batch, state, outputs, role) -> `Output`. variables: what the executor gives
    the step for this teacher; batch: `image` in 0..255; state: of the student; outputs:
    role -> what the students say; role: which of them learns.
    """

    name: str  # as the config has it
    weight: float
    output: Callable[[Any, Arrays, TrainState | None, Mapping[str, Output], str], Output]
    # it says the same to every student of a sweep: state, outputs and role are not read
    shared: bool
    network: Network | None = None  # that runs in the step: its features are there


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """What a step is. Training, evaluation, prediction, extraction
    and sweeps are functions of it.
    """

    students: Mapping[str, Network]  # by role: 'student' and perhaps 'peer'
    teachers: tuple[TeacherSpec, ...]  # in the config's order
    objective: Objective
    views: Views  # of the training images
    precision: str
    steps_per_epoch: float
    optimizer: Callable[[Hparams], optax.GradientTransformation] | None = None
    mixing: Mixing = dataclasses.field(default_factory=Mixing)  # of the training images
    accumulate: int = 1  # parts of a batch, one after the other
    ema_decay: float = 0.0  # 0: no average
    snapshot_steps: int = 0  # updates between snapshots; 0: none
    # see `optim.frozen_mask`; a frozen BatchNorm uses its running statistics
    freeze: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Timing:
    """When what happens, in updates."""

    total_steps: int
    steps_per_epoch: float
    eval_steps: frozenset[int]  # after which there is a validation
    steps_per_dispatch: int  # the most that one call does

    def count_at(self, step: int) -> int:
        """How many steps are dispatched after `step`: never past a validation."""
        return min(
            self.steps_per_dispatch, min(due for due in self.eval_steps if due > step) - step
        )


class Images(NamedTuple):
    """How the images of a run come to its steps. placement: where they lie, 'resident', 'sharded',
    'host' or 'stream'. workers: processes that read a stream.
    """

    placement: str
    workers: int = 0


ON_DEVICES = Images('resident')


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """What the seeds of a run, and the members of a sweep, share."""

    name: str
    config: ConfigDict
    step: StepSpec
    timing: Timing
    dataset: Dataset
    sees: DatasetInfo  # the data as the student's network sees them
    plans: Mapping[str, Plan]  # how variables start: role -> plan, as in `TrainState.params`
    # the training examples that are drawn, those of `data.unlabelled` apart
    pool: np.ndarray
    images: Images
    peak: float  # the highest learning rate
    init_optimizer: Callable[[Any], Any]  # parameters -> the optimiser's state
    # `extraction.Kind`: what is kept of the teachers, instead of running them; None: they run
    targets: Any = None
    trainable: int = 0  # of the student's parameters


@dataclasses.dataclass(frozen=True)
class Job:
    """One training: a seed of a run, or of a member of a sweep."""

    run: RunSpec
    name: str  # the run's, or the member's
    config: ConfigDict
    seed: int
    directory: epath.Path
    hparams: Hparams
    learning_rate: float  # at its peak
    start: Any = None  # `Trained` that it starts from

    @property
    def title(self) -> str:
        return f'{self.name} seed {self.seed}'

    @property
    def order_seed(self) -> int:
        """Of the order and the views of the images."""
        return self.seed if self.config.order_seed is None else self.config.order_seed


@dataclasses.dataclass(frozen=True)
class TeacherData:
    """What the teachers of some jobs give to their steps, on the devices.

    variables: name -> of the teachers that the step asks; a store's table where its targets lie on
    the devices. streamed: name -> rows `[N, V]` of the training images that come with each batch.
    logits: split -> the average of the teachers' probabilities as logits `[N, K]`, for
    evaluations; None without a teacher.
    """

    variables: Mapping[str, Any]
    logits: Callable[[str], Any]
    streamed: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
