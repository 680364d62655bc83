"""When what of a run happens, in updates."""

import math

from ml_collections import ConfigDict

from kd_jax.data import Dataset
from kd_jax.data.batches import parts_of
from kd_jax.errors import UserError
from kd_jax.fields import MOST_WHOLE
from kd_jax.parallel import Parallel
from kd_jax.spec import Timing

CPU_STEPS, STEPS = 4, 32  # in one dispatch
MOST_VALIDATIONS = 10**6
MOST_SENT = 2**26  # bytes of images in one dispatch


def timing_of(
    run: ConfigDict, dataset: Dataset, parallel: Parallel, steps_per_dispatch: int, lie: str
) -> Timing:
    """Of a run. steps_per_dispatch: the most steps of one call; 0: the usual number. lie: where the
    images do, see `Images.placement`.

    Raises:
      UserError: for more steps or validations than can be counted.
    """
    count, mine = len(dataset.train) - dataset.unlabelled, run.batch_size
    if dataset.unlabelled:
        mine, _ = parts_of(run.batch_size, run.data.unlabelled_share)
    steps_per_epoch = count / mine
    total = max(round(run.epochs * steps_per_epoch), 1)
    if total > MOST_WHOLE:
        raise UserError(
            f'epochs is {run.epochs}, {total:.3g} steps of {run.batch_size} images; at most '
            f'{MOST_WHOLE} are counted: take fewer epochs or a larger batch'
        )
    if run.epochs / run.eval_every > MOST_VALIDATIONS:
        raise UserError(
            f'eval_every is {run.eval_every} in {run.epochs} epochs; there are at most '
            f'{MOST_VALIDATIONS} validations, each with a checkpoint: raise it'
        )
    due = (
        round(k * run.eval_every * steps_per_epoch)
        for k in range(1, math.ceil(run.epochs / run.eval_every) + 1)
    )
    eval_steps = frozenset(min(max(step, 1), total) for step in due) | {total}
    # Plain gradients are very slow in a CPU's loop.
    usual = STEPS if not parallel.on_cpu else CPU_STEPS if parallel.fast else 1
    if lie in ('host', 'stream'):  # the images come with each dispatch
        size = run.batch_size * math.prod(dataset.info.image_shape)
        usual = min(usual, max(MOST_SENT // size, 1))
    return Timing(total, steps_per_epoch, eval_steps, min(steps_per_dispatch or usual, total))
