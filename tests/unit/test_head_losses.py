"""What is particular to the losses on auxiliary heads."""

import head_losses
import jax
import numpy as np
from head_losses import deepest_and_auxiliary
from logit_losses import cross_entropy_oracle, make_batch
from loss_inputs import float64

from kd_jax.objectives import OBJECTIVES


def test_deep_supervision_mixes_the_labels_under_mixup():
    given = head_losses.inputs('deep_supervision')
    rows = np.arange(6)
    student = jax.tree.map(lambda x: x[rows], given.student)
    mixed = np.array([1, 1, 0, -1, 2, 3], np.int32)
    batch = make_batch([0, 4, -1, 2, 2, 1], mixed_label=mixed, mix=np.float32(0.7))
    loss = OBJECTIVES['deep_supervision']()
    got = jax.jit(lambda student, batch: loss.apply({}, student, None, batch))(student, batch)
    _, auxiliary = deepest_and_auxiliary(float64(given._replace(student=student)), 'logits')
    own, want = {'class_weights': (), 'label_smoothing': 0.0}, 0.0
    for share, labels in ((0.7, [0, 4, -1, -1, 2, 1]), (0.3, [1, 1, -1, -1, 2, 3])):
        for z in auxiliary:
            want = want + share / 2 * cross_entropy_oracle(z, None, labels, own)[0]
    np.testing.assert_allclose(got, want, rtol=2e-5)
