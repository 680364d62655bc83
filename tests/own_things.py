"""What a user brings: models, losses and data, each named as 'own_things:Name'."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kd_jax.fields import number
from kd_jax.objectives import Loss


class Linear(nn.Module):
    """Called with the images alone; has no state."""

    num_classes: int

    @nn.compact
    def __call__(self, image):
        return nn.Dense(self.num_classes)(image.reshape(len(image), -1))


class Net(nn.Module):
    """With BatchNorm, dropout, features, a compute type and an axis."""

    num_classes: int
    hidden: int = 8
    dropout: float = 0.0
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, image, train=False):
        x = nn.Conv(self.hidden, (3, 3), strides=2, dtype=self.dtype)(image)
        norm = nn.BatchNorm(not train, dtype=self.dtype, axis_name=self.axis_name)
        stage1 = nn.relu(norm(x))
        pooled = nn.Dropout(self.dropout, deterministic=not train)(stage1.mean((1, 2)))
        return nn.Dense(self.num_classes)(pooled), {'stage1': stage1, 'pooled': pooled}


class Bare(nn.Module):
    """BatchNorm without an axis or a compute type; says how many classes it has itself."""

    @nn.compact
    def __call__(self, image, *, deterministic):
        x = nn.BatchNorm(use_running_average=deterministic)(image)
        return nn.Dense(3)(x.reshape(len(x), -1))


class Nnx(nnx.Module):
    def __init__(self, num_classes, hidden=8, rate=0.0, *, rngs):
        self.conv = nnx.Conv(1, hidden, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(hidden, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.head = nnx.Linear(hidden, num_classes, rngs=rngs)

    def __call__(self, image):
        return self.head(self.dropout(nnx.relu(self.norm(self.conv(image))).mean((1, 2))))


def make(num_classes, wide=False):
    return Net(num_classes, hidden=16 if wide else 8)


fixed = Net(3, hidden=4)


class Answers(nn.Module):
    """Returns what `how` says; mostly something wrong."""

    num_classes: int
    how: str = 'text'

    @nn.compact
    def __call__(self, image):
        logits = nn.Dense(self.num_classes)(image.reshape(len(image), -1))
        return {
            'text': 'logits',
            'triple': (logits, logits, logits),
            'mapping': {'logits': logits},
            'half': logits[: len(logits) // 2],
            'wide': jnp.tile(logits, 2),
            'whole': logits.astype(jnp.int32),
            'flat': (logits, {'stage1': logits}),
            'pooled': (logits, {'pooled': image}),
        }[self.how]


class Two(nn.Module):
    """Asks for more than there is."""

    @nn.compact
    def __call__(self, image, text):
        return image


def jsd(student_logits, teacher_logits, labels, beta=0.5):
    """The generalised Jensen-Shannon divergence."""
    student, teacher = jax.nn.softmax(student_logits), jax.nn.softmax(teacher_logits)
    mean = beta * student + (1 - beta) * teacher

    def to_mean(p):
        return (p * (jnp.log(p) - jnp.log(mean))).sum(-1)

    return beta * to_mean(student) + (1 - beta) * to_mean(teacher)


def blind(student_logits, teacher_logits, _labels):
    return jnp.square(student_logits - teacher_logits).mean(-1)


def mean_of_batch(student_logits, teacher_logits, labels):
    return jnp.square(student_logits - teacher_logits).mean()


def two_only(student_logits, labels):
    return student_logits.sum(-1)


class Margin(Loss):
    """The margin by which the teacher's class leads."""

    margin: float = number(1.0, above=0, sweep=True)

    def __call__(self, student, teacher, batch):
        chosen = jnp.take_along_axis(student.logits, teacher.logits.argmax(-1)[:, None], 1)[:, 0]
        return jnp.maximum(self.margin + student.logits.max(-1) - chosen, 0)


def bright(image):
    """Logits of the data of `load`, whose classes differ in brightness."""
    return -jnp.square(image.mean((1, 2, 3))[:, None] - jnp.array([[27.0, 87.0, 147.0]])) / 200


def on_host(image):
    """The same with NumPy, which cannot be traced."""
    mean = np.asarray(image).mean((1, 2, 3), dtype=np.float32)[:, None]
    return -np.square(mean - np.float32([[27, 87, 147]])) / np.float32(200)


def of_one(image):
    return image.mean((1, 2))


with_variables = (Linear(3), Linear(3).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1))))


def load():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 90)
    image = (rng.integers(0, 55, (90, 8, 8)) + 60 * label[:, None, None]).astype(np.uint8)
    return {
        'train': (image[:60], label[:60]),
        'test': (image[60:], label[60:]),
        'class_names': ('a', 'b', 'c'),
    }


def load_asked(config):
    return load() | ({'train': 3} if config.name == 'wrong' else {})


def fail():
    raise FileNotFoundError('nowhere')


not_callable = 3
