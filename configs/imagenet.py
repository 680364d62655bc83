"""ImageNet (ILSVRC 2012) by the recipe of the published tables: torchvision's ResNet-50 teaches
MobileNet V1.

SGD, momentum 0.9, batch 512, 100 epochs, learning rate 0.2 divided by ten after 30, 60 and 90,
weight decay 1e-4, random parts of the photos (8 to 100 % of the area) of 224 pixels and flips, in
bfloat16, the last epoch's weights; `kl` is 0.5 CE + 0.5 KL at tau 1, DKD has beta 2 at tau 1 (0.5
for resnet34-resnet18): mdistiller's (arXiv:2203.08679). Evaluated once on each of the 50,000
validation images, of which the shorter side becomes 256 pixels and the middle 224 are seen.

    python -m kd_jax.main --config=configs/imagenet.py:method=kl,pair=resnet50-mobilenet_v1
        --config.teachers.teacher.torch=resnet50-0676ba61.pth
        --config.data.path=ILSVRC2012

ILSVRC2012 has train/n01440764/*.JPEG ... and val/n01440764/*.JPEG ...; with `data=tfds` as another
argument it is the data_dir in which TFDS prepared imagenet2012. The teacher's file is torchvision's
(a state dict). With `--config.runs.student.soft_targets=8` what the teacher says of 8 views of each
image is kept and read beside the images (FKD, Shen and Xing 2022, arXiv:2112.01528).

Duration: 100 epochs a run, meant for 8 accelerators: a host decodes some 500 photos a second with
each core. Expected (the tables, top-1 %): the teacher 76.13 (torchvision's V1 weights) or 76.16,
MobileNet V1 68.87 to 70.13 alone, 70.50 with kl, 72.05 with dkd, 73.24 with dist; resnet34-resnet18
73.31, 69.76, 71.03 to 71.81, 71.70 and 72.07. The tables train on all 1,281,167 images; here one in
a hundred is kept for validation. Not yet measured with this code.
"""

from kd_jax import config as common
from kd_jax import methods

PAIRS = (
    'resnet50-mobilenet_v1',
    'resnet34-resnet18',
    'resnet50-imagenet_mobilenet_v2',
    'resnet50-mobilenet_v3_large',
    'resnet50-resnet18',
)
METHODS = ('kl', 'dkd', 'dist', 'at', 'fitnet', 'rkd', 'sp', 'crd', 'reviewkd')
CHOSEN = {
    'kl': {'cross_entropy.weight': 0.5, 'kl.weight': 0.5, 'kl.tau': 1.0},
    'dkd': {'dkd.tau': 1.0, 'dkd.beta': 2.0},
    'dist': {'dist.tau': 1.0, 'dist.weight': 1.0},
    'reviewkd': {'reviewkd.weight': 8.0},
}
OF_PAIR = {'resnet34-resnet18': {'dkd': {'dkd.beta': 0.5}, 'reviewkd': {'reviewkd.weight': 1.0}}}


def get_config(argument: str = ''):
    chosen = common.arguments(argument, method=METHODS, pair=PAIRS, data=('folder', 'tfds'))
    teacher, student = chosen['pair'].split('-')
    config = common.study()
    config.precision = 'bfloat16'
    config.data.source = chosen['data']
    config.data.name = 'imagenet2012' if chosen['data'] == 'tfds' else ''
    config.data.size, config.data.resize = 224, 256
    config.data.decode, config.data.interpolation = 'photo', 'bilinear'
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.data.val_share = 0.01
    config.augment.random_resized_crop = 0.08
    config.augment.flip = True
    config.teachers.teacher = common.imported(f'{teacher}.pth', teacher)

    def make(objective=None, teacher=False):
        run = common.run(config, student, objective)
        run.epochs, run.eval_every, run.select = 100.0, 5.0, 'last'
        run.batch_size = 512
        run.optim.learning_rate, run.optim.weight_decay = 0.2, 1e-4
        run.optim.schedule, run.optim.step_epochs = 'step', (30.0, 60.0, 90.0)
        return run

    config.runs.alone = make()
    methods.add(config, chosen['method'], make)
    numbers = CHOSEN.get(chosen['method'], {}) | OF_PAIR.get(chosen['pair'], {}).get(
        chosen['method'], {}
    )
    for path, value in numbers.items():
        term, field = path.split('.')
        config.runs.student.objective[term][field] = value
    return config
