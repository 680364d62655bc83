"""Modules of the user's own as models: any `flax.linen` module, and `flax.nnx` modules through
Flax's bridge.
"""

import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kd_jax import own
from kd_jax.errors import UserError, unknown
from kd_jax.models import initial
from kd_jax.models.common import Output

# What says to a module that it trains, and what it is told then.
_TRAINS = {'train': True, 'training': True, 'is_training': True}
_RESTS = {'deterministic': False, 'use_running_average': False}
# By what a constructor calls the number of classes.
_CLASSES = ('num_classes', 'n_classes', 'num_outputs', 'num_labels')
_VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_RETURNS = "return the logits, (logits, {'stage1': ..., 'pooled': ...}) or kd_jax.models.Output"


class Foreign(nn.Module, kw_only=True):
    """A module of the user's, called and answering as those of the zoo are: `(image [B, H, W, C],
    train) -> Output`. Its variables have the paths that it gives them.

    make: makes the module, of the keyword arguments `dtype` and `axis_name` where it `takes` them.
    title: for sentences. The other fields are those of `Classifier`.
    """

    make: Callable[..., nn.Module]
    title: str
    num_classes: int
    takes: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    fast: bool = True
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def setup(self) -> None:
        given = {'dtype': self.dtype, 'axis_name': self.axis_name}
        self.module = self.make(**{key: given[key] for key in self.takes})
        nn.share_scope(self, self.module)

    def __call__(self, image: jax.Array, *, train: bool) -> Output:
        initial.starts_by_itself()
        if self.dtype != jnp.float32 and 'dtype' not in self.takes:
            raise UserError(
                f'{self.title} has no field dtype, so that it computes in float32; take '
                "precision='float32', or give it one"
            )
        answer = self.module(image.astype(self.dtype), **_flags(self.module, self.title, train))
        return _output(answer, self.title, (image.shape[0], self.num_classes))


class Function(Foreign):
    """A function of images `[B, H, W, C]` float32 that returns logits, as a model that cannot
    learn. What cannot be traced, such as one of NumPy or PyTorch, runs on the host.
    """

    def setup(self) -> None:
        pass

    def __call__(self, image: jax.Array, *, train: bool) -> Output:
        image, shape = image.astype(jnp.float32), (image.shape[0], self.num_classes)
        if _can_be_traced(self.make, image, self.title, self.num_classes):
            return _output(self.make(image), self.title, shape)

        def on_host(x: Any) -> np.ndarray:
            logits = np.asarray(self.make(np.asarray(x)))
            _check_logits(logits, self.title, shape)
            return logits.astype(np.float32)

        wanted = jax.ShapeDtypeStruct(shape, jnp.float32)
        return Output(jax.pure_callback(on_host, wanted, image, vmap_method='sequential'), {})


def _can_be_traced(
    function: Callable[..., Any], image: jax.Array, title: str, classes: int
) -> bool:
    """`UserError` if it cannot be called with plain arrays either."""
    said: list[Any] = []
    try:
        jax.eval_shape(
            lambda x: said.append(function(x)), jax.ShapeDtypeStruct(image.shape, image.dtype)
        )
    except Exception:  # of any type: it is the user's
        said = [np.zeros(0)]
    if isinstance(said[0], np.ndarray):
        try:
            with jax.ensure_compile_time_eval():
                found = function(np.zeros(image.shape, np.float32))
        except Exception as error:
            raise UserError(
                f'{title} failed for images of shape {image.shape}: {type(error).__name__}: {error}'
            ) from error
        _check_logits(np.asarray(found), title, (image.shape[0], classes))
        return False
    return True


def build(name: str, num_classes: int, **given: Any) -> Foreign:
    """The module of the user's called `name`, made with the fields `given`.

    `name` means a class of modules, a function that makes one, or a module, alone or in a tuple
    with its variables; with `function=True` a function of images that returns logits.

    Raises:
      UserError: if there is none, or it has no such field.
    """
    title, found = f'model {name!r}', own.load(name, 'model')
    if given.pop('function', False):
        if not callable(found):
            raise UserError(f'{name!r} is {type(found).__name__}; it must be a function')
        return Function(make=found, title=f'teacher {name!r}', num_classes=num_classes)
    if isinstance(found, tuple) and found:
        found = found[0]  # (module, variables)
    if isinstance(found, nn.Module):
        found = functools.partial(_changed, found)
    if is_nnx(type(found)):
        raise UserError(f'{title} is an object of flax.nnx; name its class')
    if not callable(found):
        raise UserError(f'{title} is {type(found).__name__}; it must be a class of Flax modules')
    if isinstance(found, type) and not is_nnx(found) and not issubclass(found, nn.Module):
        raise UserError(f'{title} is a class, but not of flax.linen or flax.nnx modules')
    fields = _fields(found)
    fields.pop('rngs', None)
    for key in given:
        if key not in fields:
            raise unknown(f'field of {title}', key, [*fields])
    classes = [key for key in _CLASSES if key in fields and key not in given]
    given |= dict.fromkeys(classes, num_classes)
    missing = [
        key
        for key, one in fields.items()
        if one.default is inspect.Parameter.empty and key not in given
    ]
    if missing:
        raise UserError(f'{title} needs {", ".join(missing)}; give model.{missing[0]}')
    takes = tuple(key for key in ('dtype', 'axis_name') if key in fields and key not in given)
    plain = tuple((key, _hashable(value)) for key, value in given.items())
    make = functools.partial(_made, found, title, plain)
    return Foreign(make=make, title=title, num_classes=num_classes, takes=takes)


def of_module(module: nn.Module, num_classes: int | None = None) -> Foreign:
    """A module of the user's as a model. num_classes: where it has no field that tells it.

    Raises:
      UserError: for something else, or if nothing tells how many classes there are.
    """
    if not isinstance(module, nn.Module):
        raise UserError(f'{module!r} is no module of flax.linen; give one')
    title = f'the model {type(module).__name__}'
    told = next((getattr(module, key) for key in _CLASSES if hasattr(module, key)), num_classes)
    if not isinstance(told, int):
        raise UserError(f'{title} does not tell its number of classes; give num_classes')
    fields = {f.name for f in dataclasses.fields(module)}
    takes = tuple(key for key in ('dtype', 'axis_name') if key in fields)
    kept = {key: getattr(module, key) for key in takes}
    make = functools.partial(_changed, module)
    return Foreign(make=make, title=title, num_classes=told, takes=takes).clone(**kept)


def is_nnx(thing: object) -> bool:
    """Whether it is a class of `flax.nnx` modules; there is none before that is imported."""
    nnx = sys.modules.get('flax.nnx')
    return nnx is not None and isinstance(thing, type) and issubclass(thing, nnx.Module)


def _hashable(value: Any) -> Any:
    """What a record has as a list, as the tuple that it was."""
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def _fields(of: Any) -> dict[str, inspect.Parameter]:
    if isinstance(of, functools.partial) and of.func is _changed:
        found = {f.name: f for f in dataclasses.fields(of.args[0]) if f.init}
        kind = inspect.Parameter.KEYWORD_ONLY
        return {
            key: inspect.Parameter(key, kind, default=None)
            for key in found
            if key not in ('parent', 'name')
        }
    return {
        key: one
        for key, one in own.parameters(of).items()
        if key not in ('parent', 'name') and one.kind not in _VARIABLE
    }


def _changed(module: nn.Module, **given: Any) -> nn.Module:
    return module.clone(**given)


def _made(found: Any, title: str, given: tuple[tuple[str, Any], ...], **more: Any) -> nn.Module:
    """The module, inside the one that calls it."""
    fields = dict(given) | more
    if is_nnx(found):
        from kd_jax.models.bridge import bridged

        return bridged(found, fields, _flags)
    module = found(**fields)
    if not isinstance(module, nn.Module):
        raise UserError(f'{title} made {type(module).__name__}, which is no Flax module')
    return module


def _flags(module: Any, title: str, train: bool) -> dict[str, bool]:
    """The keyword argument that tells a module whether it trains."""
    parameters = [*own.parameters(type(module).__call__).values()]
    for one in parameters[1:]:
        if one.name in _TRAINS:
            return {one.name: train}
        if one.name in _RESTS:
            return {one.name: not train}
    needed = [
        one.name
        for one in parameters[1:]
        if one.default is inspect.Parameter.empty and one.kind not in _VARIABLE
    ]
    if needed:
        raise UserError(
            f'{title} is called with (image, {", ".join(needed)}); it must be (image), or '
            '(image, train)'
        )
    return {}


def _output(answer: Any, title: str, shape: tuple[int, int]) -> Output:
    """What a module or a function returned as `Output`, checked. shape: of its logits."""
    output = _as_output(answer, title)
    _check_logits(output.logits, title, shape)
    return output.replace(logits=output.logits.astype(jnp.float32))  # type: ignore[attr-defined]


def _check_logits(logits: Any, title: str, shape: tuple[int, int]) -> None:
    if jnp.shape(logits) != shape:
        raise UserError(
            f'{title} returned logits of shape {jnp.shape(logits)} for {shape[0]} images of '
            f'{shape[1]} classes; it must be {shape}'
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise UserError(f'{title} returned {logits.dtype} logits; they must be float')


def _as_output(answer: Any, title: str) -> Output:
    if isinstance(answer, Output):
        return answer
    if isinstance(answer, jax.Array):
        return Output(answer, {})
    if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], jax.Array):
        logits, features = answer
        if isinstance(features, jax.Array):
            features = {'pooled': features}
        if isinstance(features, Mapping) and all(
            isinstance(key, str) and isinstance(x, jax.Array) for key, x in features.items()
        ):
            return Output(logits, _features(dict(features), title))
    raise UserError(f'{title} returned {_words(answer)}; {_RETURNS}')


def _features(features: dict[str, jax.Array], title: str) -> dict[str, jax.Array]:
    for key, x in features.items():
        wanted = 2 if key == 'pooled' else 4
        if x.ndim != wanted and (key == 'pooled' or key.startswith('stage')):
            raise UserError(
                f'{title} returned the feature {key} of shape {x.shape}; it must be '
                f'{"[B, D]" if wanted == 2 else "[B, H, W, C]"}'
            )
    if 'pooled' in features:
        features['pooled'] = features['pooled'].astype(jnp.float32)
    return features


def _words(answer: Any) -> str:
    if isinstance(answer, (tuple, list)):
        return f'{type(answer).__name__} of {", ".join(type(one).__name__ for one in answer)}'
    return type(answer).__name__
