"""Forward passes of both ShuffleNets in float64 numpy."""

import re

import numpy as np
from model_reference import Reference, rectified


class Shuffled(Reference):
    """Forward passes of both versions in float64; channels are shuffled by
    their numbers, one at a time.
    """

    def shuffled(self, x, groups):
        n = x.shape[-1] // groups
        order = [group * n + place for place in range(n) for group in range(groups)]
        return x[..., order]

    def windows(self, x):
        """The nine shifted copies of x under a 3x3 window of stride 2 in zeros of width 1."""
        height, width = (-(-n // 2) for n in x.shape[1:3])
        x = np.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)))
        return [
            x[:, i : i + 2 * height : 2, j : j + 2 * width : 2] for i in range(3) for j in range(3)
        ]

    def begin(self, x, small):
        x = self.unit('stem', x, 1 if small else 2)
        # after ReLU zeros stand for minus infinity
        return x if small else np.max(self.windows(x), axis=0)

    def each_unit(self):
        found = {re.match(r'params/(stage(\d+)_block(\d+))/', path) for path in self.values}
        return sorted({(int(m[2]), int(m[3]), m[1]) for m in found if m})

    def ended(self, features, x):
        features['pooled'] = x.mean(axis=(1, 2))
        return features | {'logits': self.linear('head', features['pooled'])}

    def v1(self, x, groups, small):
        features = {'stem': self.begin(x, small)}
        x = features['stem']
        for stage, number, name in self.each_unit():
            stride, here = (2 if number == 1 else 1), (1 if stage == number == 1 else groups)
            y = self.shuffled(self.unit(f'{name}/conv1', x, groups=here), here)
            y = self.unit(f'{name}/conv2', y, stride, groups=y.shape[-1], relu=small)
            y = self.unit(f'{name}/conv3', y, groups=groups, relu=False)
            y = (
                y + x
                if stride == 1
                else np.concatenate([y, np.mean(self.windows(x), axis=0)], axis=-1)
            )
            features |= rectified(stage, y)
            x = features[f'stage{stage}']
        return self.ended(features, x)

    def v2(self, x, small):
        features = {'stem': self.begin(x, small)}
        x = features['stem']
        for stage, number, name in self.each_unit():
            if number == 1:
                kept = self.unit(f'{name}/shortcut1', x, 2, groups=x.shape[-1], relu=False)
                kept, y = self.unit(f'{name}/shortcut2', kept), x
            else:
                kept, y = np.split(x, 2, axis=-1)
            y = self.unit(f'{name}/conv1', y)
            y = self.unit(
                f'{name}/conv2', y, 2 if number == 1 else 1, groups=y.shape[-1], relu=False
            )
            y = self.unit(f'{name}/conv3', y)
            features[f'stage{stage}'] = x = self.shuffled(np.concatenate([kept, y], axis=-1), 2)
        return self.ended(features, self.unit('top', x))
