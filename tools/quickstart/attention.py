"""Draw what a trained model attends to, for the report."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
from mmengine.config import Config
from mmengine.model import BaseModel
from PIL import Image

from mmsparse.visualization import (
    choose_query_point,
    draw_all,
    read_pipeline,
    record_sample,
)

FILE = 'attention_{}.webp'
DPI = 110


def draw(
    model: BaseModel, cfg: Config, image: str, classes: Sequence[str], folder: Path
) -> None:
    """Write all figures that `mmsparse.visualization` has for the model.

    Args:
        model: Trained model, in evaluation mode.
        cfg: Its config.
        image: Image file.
        classes: Names of the classes.
        folder: Folder of the task.
    """
    mpl.use('Agg')
    transforms = read_pipeline(cfg)
    sample = record_sample(model, transforms, image, classes)
    point = choose_query_point(sample, model.backbone)
    for name, figure in draw_all(sample, point, model.backbone):
        file = BytesIO()
        figure.savefig(file, dpi=DPI)
        drawn = Image.open(file).convert('RGB')
        drawn.save(folder / FILE.format(name), quality=80, method=6)
