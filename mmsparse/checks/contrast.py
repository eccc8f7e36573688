"""Check that normalized images are not nearly constant."""

from itertools import islice
from pathlib import Path

import numpy as np
from mmengine.config import Config
from PIL import Image

from mmsparse.checks.data import IMAGES, Data
from mmsparse.checks.pretrained import starts_from_weights

READ = 16  # images
SIDE = 64  # pixels of each that count
MOST_FILES = 1000  # among which they are chosen
LARGEST_RATIO = 2.0  # ImageNet has 0, the blood cells of BCCD 3.4


def check_contrast(cfg: Config, data: Data) -> list[str]:
    """Return a note if normalization leaves a constant larger than the contrast.

    A stem of linear layers, such as that of PVTv2 or Swin Transformer, passes nearly
    the same features on everywhere then, once LayerNorm has scaled them to a length.
    A training that starts from weights is not checked: it keeps what they expect.

    Args:
        cfg: The config of a training.
        data: One of its data sets.

    Returns:
        A note with the mean and the standard deviation of some images, or nothing.
    """
    model = cfg.get('model') or {}
    settings = model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    mean, std = settings.get('mean'), settings.get('std')
    known = mean is not None and std is not None and len(mean) == len(std) == 3
    pixels = _pixels(data) if known and not starts_from_weights(cfg) else []
    if len(pixels) == 0:
        return []
    if not (settings.get('to_rgb') or settings.get('bgr_to_rgb')):
        pixels = pixels[:, ::-1]
    own_mean, own_std = pixels.mean(0), pixels.std(0)
    constant = np.mean((own_mean - mean) / std)
    contrast = np.mean(own_std / std)
    if not own_std.all() or abs(constant) < LARGEST_RATIO * contrast:
        return []
    return [
        f'{data.path}: normalized images are nearly constant, {constant:.1f} with a '
        f'standard deviation of {contrast:.1f}; set data_preprocessor.mean='
        f'{_rounded(own_mean)} and std={_rounded(own_std)}, those of some of the '
        f'images.'
    ]


def _pixels(data: Data) -> np.ndarray:
    """Return pixels of some images, in rows of red, green and blue."""
    prefix = data.dataset.data_prefix
    folder = prefix.get('img') or prefix.get('img_path')
    if not folder or not Path(folder).is_dir():
        return np.empty((0, 3))
    files = (x for x in Path(folder).rglob('*') if x.suffix.lower() in IMAGES)
    paths = sorted(islice(files, MOST_FILES))
    read = [_read(x) for x in paths[:: -(-len(paths) // READ) or 1]]
    return np.concatenate([np.empty((0, 3)), *(x for x in read if x is not None)])


def _read(path: Path) -> np.ndarray | None:
    """Return pixels of an image, None if it cannot be read: other checks report it."""
    try:
        with Image.open(path) as image:
            if image.mode not in ('L', 'P', 'RGB', 'RGBA'):
                return None
            # The nearest pixels: means of several have less contrast.
            small = image.convert('RGB').resize((SIDE, SIDE), Image.Resampling.NEAREST)
    except (OSError, SyntaxError, ValueError):
        return None
    return np.asarray(small, dtype=np.float64).reshape(-1, 3)


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(x), 1) for x in values]
