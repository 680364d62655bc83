"""What every model family shares: the `Output` vocabulary, the classifier around a
backbone, and blocks.

Parameter paths are the same in every family, so that a pattern can name them: `stem/...`,
`stage<i>_...` and `head/kernel`, `head/bias`; everything that depends on the classes, and
nothing else, is under a name that begins with `head`. What comes between the last stage
and the pooling is under `top`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from kd_jax.errors import UserError
from kd_jax.fields import field, flag, is_number, number, several
from kd_jax.models import layers
from kd_jax.models.layers import BatchNorm, Setting
from kd_jax.models.pooling import adaptive_avg_pool, global_pool

Features = dict[str, jax.Array]


class Exit(NamedTuple):
    """What a head of several returns: its logits `[B, K]` and what its classifier
    sees, `[B, D]`, both float32.
    """

    logits: jax.Array
    pooled: jax.Array


@flax.struct.dataclass
class Output:
    """What a model returns for a batch of B images.

    logits: `[B, K]` float32.
    features: `stem`, `stage1` ... `stageN` (`[B, H, W, C]` in the compute type, the output of each
      stage) and `pooled` (`[B, D]` float32, what the classifier sees before dropout). Where the
      last operation of a stage is a ReLU, `stage<i>_pre` is what comes before it,
      `stage<i> = ReLU(stage<i>_pre)`; not with adapters, which follow the ReLU.
    heads: the auxiliary heads by name, the shallowest first, and `head`, the
      deepest one; empty for most models.
    """

    logits: jax.Array
    features: Features
    heads: dict[str, Exit] = flax.struct.field(default_factory=dict)


def param_count(variables: Mapping[str, Any]) -> int:
    """Number of parameters of a model's variables, or of their shapes
    (running statistics do not count).
    """
    return sum(math.prod(x.shape) for x in jax.tree.leaves(variables['params']))


def multiplier() -> Any:
    """A field that multiplies the channels or the blocks of a network;
    1.0 leaves them as they are.
    """
    return number(1.0, above=0, at_most=100)


def share(default: float, such: str) -> Any:
    """A field for the share of something that is dropped in training."""
    return number(
        default, at_least=0, below=1, words=f'at least 0 and less than 1: the share to drop, {such}'
    )


def odd(default: int | None) -> Any:
    """A field for the side of a convolution's kernel. None: those of the published
    network, which are not all the same.
    """
    return field(
        default,
        lambda side: 1 <= side <= 63 and side % 2 == 1,
        'an odd number from 1 to 63',
        example=3,
    )


class Classifier(nn.Module, kw_only=True):
    """A backbone, the head `head`, and auxiliary heads: the base of every
    family, which defines `backbone`.

    `heads` are numbers of stages that get an auxiliary classifier, `head_stage<i>`. With
    `average_heads`, `logits` in evaluation are the log of the mean of all heads' probabilities
    (layer-wise prediction); in training they are always those of the deepest head. `adapter` adds a
    residual adapter of so many hidden channels to every block. `frozen`: see `Setting`. Fields with
    a limit (`kd_jax.fields`) are the user's, the others a variant's or the program's.
    """

    num_classes: int
    width: float = multiplier()  # of the channels
    dropout: float = share(0.0, 'such as 0.1')  # before the classifier
    adapter: int = number(
        0,
        at_least=0,
        at_most=2**16,
        words='0 (no adapters) or a number of hidden channels up to 65536, such as 16',
    )
    heads: tuple[int, ...] = several(
        (), lambda stage: is_number(stage) and stage >= 1, 'numbers of stages, such as (1, 2)'
    )
    average_heads: bool = flag(False)
    frozen: tuple[str, ...] = ()
    fast: bool = True  # on CPU, every layer in the form that is fast there
    axis_name: str | None = None
    dtype: Any = jnp.float32

    EPSILON: ClassVar[float] = 1e-5  # of BatchNorm
    MOMENTUM: ClassVar[float] = 0.1

    def backbone(self, x: jax.Array, setting: Setting, train: bool) -> Features:
        """The features of `x` `[B, H, W, C]`, as `Output` names them; called inside `__call__`."""
        raise NotImplementedError

    def own_heads(self, features: Features, setting: Setting, train: bool) -> dict[str, Exit]:
        """The auxiliary heads that belong to the family as published."""
        return {}

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool) -> Output:
        setting = Setting(
            self.axis_name,
            self.dtype,
            self.EPSILON,
            self.MOMENTUM,
            frozen=tuple(self.frozen),
            adapter=self.adapter,
            fast=self.fast and jax.default_backend() == 'cpu',
        )
        features = self.backbone(image.astype(self.dtype), setting, train)
        stages = [name for name in features if name.removeprefix('stage').isdigit()]
        pooled = features['pooled']
        heads = self.own_heads(features, setting, train)
        for stage in sorted(self.heads):
            if f'stage{stage}' not in stages[:-1]:
                raise UserError(
                    f'auxiliary head at stage {stage}: this model has {len(stages)} stages, the '
                    f'last of which feeds its own head; choose from 1 to {len(stages) - 1}'
                )
            make = AuxiliaryHead(
                self.num_classes, pooled.shape[-1], setting=setting, name=f'head_stage{stage}'
            )
            heads[f'stage{stage}'] = make(
                features[f'stage{stage}'], features[stages[-1]].shape[1:3], train=train
            )
        logits = Head(self.num_classes, self.dropout, self.axis_name, name='head')(
            pooled, train=train
        )
        if heads:
            heads['head'] = Exit(logits, pooled)
        if self.average_heads and not train:
            if not heads:
                raise UserError('average_heads needs auxiliary heads; set heads, such as (1, 2)')
            logits = mean_probabilities([head.logits for head in heads.values()])
        return Output(logits, features, heads)


def mean_probabilities(
    logits: Sequence[jax.Array], shares: Sequence[float] | None = None
) -> jax.Array:
    """Log of the mean of softmax(logits) over several predictions, each `[B, K]`,
    in float32 and in log space.

    shares: of each in the mean, 1 in total; None: equal.
    """
    # [members, B, K]
    log_p = jnp.stack([jax.nn.log_softmax(z.astype(jnp.float32), axis=-1) for z in logits])
    share = jnp.asarray(shares or (1 / len(logits),) * len(logits), jnp.float32)
    return jax.nn.logsumexp(log_p, axis=0, b=share[:, None, None])


def scaled(channels: int, width: float) -> int:
    """`channels * width`, rounded.

    Raises:
      UserError: if no channel is left.
    """
    result = round(channels * width)
    if result < 1:
        raise UserError(
            f'width {width} leaves none of a layer of {channels} channels; '
            f'use {1 / channels:.3g} or more'
        )
    return result


def divisible(channels: float, width: float = 1.0, by: int = 8) -> int:
    """`channels * width` as a multiple of `by`, rounded, but never more than 10 %
    below (torchvision's MobileNets).
    """
    wanted = channels * width
    result = max(by, int(wanted + by / 2) // by * by)
    return result + by if result < 0.9 * wanted else result


def deepened(blocks: Sequence[int], depth: float) -> tuple[int, ...]:
    """The number of blocks of each stage times `depth`, rounded up, at least 1."""
    return tuple(max(math.ceil(round(n * depth, 6)), 1) for n in blocks)


class ConvBN(nn.Module):
    """Convolution, BatchNorm and activation (None: none): `[B, H, W, C] -> [B, H', W', features]`.

    Without `norm` the convolution has a bias instead; `use_bias` gives it one beside BatchNorm too.
    Parameters: `conv/kernel`, `conv/bias`, `norm/scale`, `norm/bias`.
    """

    features: int
    kernel: int | tuple[int, int] = 3
    stride: int = 1
    groups: int = 1
    act: Callable[[jax.Array], jax.Array] | None = nn.relu
    padding: int | tuple[int, int] | None = None
    use_bias: bool = False
    norm: bool = True
    setting: Setting = Setting()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = layers.Conv(
            self.features,
            self.kernel,
            self.stride,
            self.groups,
            self.padding,
            use_bias=self.use_bias or not self.norm,
            setting=self.setting,
            name='conv',
        )(x)
        if self.norm:
            x = BatchNorm(self.setting, name='norm')(x, train=train)
        return x if self.act is None else self.act(x)


class Adapter(nn.Module):
    """A residual adapter, `x + up(ReLU(down(x)))` with 1x1 convolutions; `up` starts at 0,
    the adapter at the identity.

    Rebuffi et al. 2018 (arXiv:1803.10082) put 1x1 convolutions beside those of a residual network;
    the bottleneck is that of Houlsby et al. 2019 (arXiv:1902.00751).
    """

    hidden: int
    setting: Setting = Setting()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv = partial(layers.Conv, kernel=1, use_bias=True, setting=self.setting)
        y = nn.relu(conv(self.hidden, name='down')(x))
        return x + conv(x.shape[-1], zero_init=True, name='up')(y)


def block(module: nn.Module, x: jax.Array, *, train: bool) -> jax.Array:
    """`module(x, train=train)` and, if `module.setting` asks for it, the adapter
    `<name of the module>_adapter`.

    Fast, the result is computed once: XLA's CPU backend would compute a chain of additions anew for
    every block that follows. (The barrier works where `kd_jax.parallel.KEEP_BARRIERS` keeps it.)
    """
    return _adapted(module, module(x, train=train))


def _adapted(module: Any, x: jax.Array) -> jax.Array:
    hidden = module.setting.adapter
    x = Adapter(hidden, module.setting, name=f'{module.name}_adapter')(x) if hidden else x
    return jax.lax.optimization_barrier(x) if module.setting.fast else x


def run_stage(
    number: int, blocks: Sequence[nn.Module], x: jax.Array, *, relu: bool = True, train: bool
) -> Features:
    """`stage<number>`, the output of `blocks` one after another, each a `block`, and without
    adapters `stage<number>_pre`.

    The blocks leave their last ReLU to this function; without `relu` they have none, and
    there is no `stage<number>_pre`.
    """
    pre = x
    for module in blocks:
        pre = module(x, train=train)
        # The barrier in it leaves `pre` out: nobody may want it.
        x = _adapted(module, nn.relu(pre) if relu else pre)
    before = {f'stage{number}_pre': pre} if relu and not module.setting.adapter else {}
    return before | {f'stage{number}': x}


class Dropout(nn.Module):
    """Dropout whose mask depends on the example's place in the global batch, not on
    how devices share the batch.

    Under `axis_name` every device must pass the same `dropout` key and as many examples as the
    others. With `whole_example` an example is kept or dropped as a whole (stochastic depth,
    Huang et al. 2016, arXiv:1603.09382).
    """

    rate: float
    axis_name: str | None = None
    whole_example: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        # Initialisation runs outside the device axis.
        if not train or self.rate == 0.0 or self.is_initializing():
            return x
        first = jax.lax.axis_index(self.axis_name) * x.shape[0] if self.axis_name else 0
        key = self.make_rng('dropout')
        shape = (1,) * (x.ndim - 1) if self.whole_example else x.shape[1:]
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(x.shape[0]))
        keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1.0 - self.rate, shape))(keys)
        return jnp.where(keep, x / (1.0 - self.rate), 0.0).astype(x.dtype)


def check_size(x: jax.Array, least: int, name: str) -> None:
    """Raises `UserError` if the images `[B, H, W, C]` are too small for the model called `name`."""
    if min(x.shape[1:3]) < least:
        raise UserError(
            f'{name} needs images of at least {least} x {least} pixels, these '
            f'have {x.shape[1]} x {x.shape[2]}'
        )


class Head(nn.Module):
    """Dropout and the classifier, in float32 whatever the compute type:
    `pooled [B, D] -> logits [B, num_classes]`.

    Every family calls it `head`.
    """

    num_classes: int
    dropout: float = 0.0
    axis_name: str | None = None

    @nn.compact
    def __call__(self, pooled: jax.Array, *, train: bool) -> jax.Array:
        pooled = Dropout(self.dropout, self.axis_name)(pooled, train=train)
        dense = layers.Dense(self.num_classes)
        nn.share_scope(self, dense)
        return dense(pooled)


class AuxiliaryHead(nn.Module):
    """A classifier on a stage's feature: pooled to the deepest stage's size, 1x1
    ConvBN to `width`, pooled, dense.

    Zhang et al. 2019 (arXiv:1905.08094) put strided bottleneck blocks there; pooling first makes
    the head cheap whatever the size of the feature. `width` is the deepest head's, so that what
    both classifiers see can be compared.
    """

    num_classes: int
    width: int
    setting: Setting = Setting()

    @nn.compact
    def __call__(self, x: jax.Array, size: Sequence[int], *, train: bool) -> Exit:
        size = tuple(min(a, b) for a, b in zip(size, x.shape[1:3], strict=True))
        x = ConvBN(self.width, 1, setting=self.setting, name='reduce')(
            adaptive_avg_pool(x, size), train=train
        )
        pooled = global_pool(x)
        return Exit(layers.Dense(self.num_classes, name='dense')(pooled), pooled)
