"""Your images, in folders of classes: a teacher, a small network alone, and the same one taught.

    python -m kd_jax.main --config=configs/folder.py:/path/to/images

`root/class/*.jpg`, or `root/{train,val,test}/class/*.jpg`; JPEG, PNG, WebP, BMP, TIFF, GIF. The
networks follow from the size of the images and the length of the training from their number; every
field can be overridden, such as `--config.data.size=64` or
`--config.runs.student.model.name=mobilenet_v3_small`. A teacher of ImageNet's instead:
configs/finetune.py with `--config.data.source=folder`.

Distillation: Hinton et al. 2015, arXiv:1503.02531. Duration: 20 to 100 epochs a run; small images
train on a CPU, large ones are meant for an accelerator. Expected numbers: those of your images;
compare `student` with `alone`.
"""

from pathlib import Path

from kd_jax import config as common
from kd_jax.data import Settings, folder, listing
from kd_jax.errors import UserError

SMALL = 48  # sides up to which networks for small images are taken
STEPS = 12_000  # of 64 images, at which a training aims


def get_config(path=''):
    config = common.study()
    config.data.source, config.data.path = 'folder', path
    side, count = look(path)
    small = side <= SMALL
    teacher, student = ('resnet20', 'resnet8') if small else ('resnet18', 'mobilenet_v3_small')
    config.augment.crop = max(side // 8, 1)
    config.augment.flip = True

    config.runs.teacher = common.run(config, teacher)
    config.runs.alone = common.run(config, student)
    config.runs.student = common.run(config, student, common.distillation(alpha=0.9, tau=4.0))
    config.runs.student.teachers = ('teacher',)
    for run in config.runs.values():
        run.batch_size = 64
        run.epochs = float(min(max(STEPS * run.batch_size // max(count, 1), 20), 100))
        run.eval_every = run.epochs / 20
        run.optim.learning_rate = 0.05
        run.optim.weight_decay = 5e-4
        run.optim.warmup_epochs = common.share(run, 0.05)
    return config


def look(path):
    """(side, number) of the images under `path`."""
    if not path:
        raise UserError('name the folder of your images: --config=folder:/path/to/images')
    root = Path(path).expanduser()
    items = listing.listed(root).items
    return folder.form_of(root, items, Settings()).side, len(items)
