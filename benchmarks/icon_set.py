"""A set of colour images from Debian's icon themes, as folders: what an icon is called is its
class, and its theme says which split it is in.

    apt-get install faenza-icon-theme mate-icon-theme gnome-icon-theme lxde-icon-theme \
        tango-icon-theme gnome-icon-theme-yasis gnome-wine-icon-theme
    python -m benchmarks.icon_set icons
    kd_jax --config=folder:icons

Names that occur in at least five of the themes; PNGs of 22 pixels or more. Links are left out, and
files that are in an earlier theme too: some themes took icons from others.
"""

import argparse
from collections import defaultdict
from pathlib import Path

from PIL import Image

THEMES = {
    'Faenza': 'train',
    'Tango': 'train',
    'gnome': 'train',
    'yasis': 'train',
    'gnome-wine': 'train',
    'nuoveXT2': 'val',
    'mate': 'test',
}
LEAST_THEMES, LEAST_PIXELS = 5, 22


def icons(root: Path) -> dict[str, dict[str, list[Path]]]:
    """Name -> theme -> its files."""
    found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    for theme in THEMES:
        for path in sorted((root / theme).rglob('*.png')):
            if path.is_symlink():
                continue
            with Image.open(path) as image:
                if min(image.size) >= LEAST_PIXELS:
                    found[path.stem][theme].append(path)
    return {name: dict(of) for name, of in found.items() if len(of) >= LEAST_THEMES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('target', type=Path)
    parser.add_argument('--icons', type=Path, default=Path('/usr/share/icons'))
    given = parser.parse_args()
    chosen = icons(given.icons)
    trained = {n for n, of in chosen.items() if any(THEMES[t] == 'train' for t in of)}
    seen: set[bytes] = set()
    for theme, split in THEMES.items():
        for name in sorted(trained):
            for number, path in enumerate(chosen[name].get(theme, ())):
                content = path.read_bytes()
                if content in seen:
                    continue
                seen.add(content)
                place = given.target / split / name
                place.mkdir(parents=True, exist_ok=True)
                (place / f'{theme}_{number}.png').write_bytes(content)
    print(f'{len(seen)} icons of {len(trained)} names in {given.target}')


if __name__ == '__main__':
    main()
