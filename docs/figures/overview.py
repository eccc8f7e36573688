"""Compose the README's figure from the gallery's images.

Run it from anywhere, after the images of the gallery were redrawn.
"""

from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image

IMAGES = Path(__file__).resolve().parents[1] / 'images'
HEIGHT = 2.4  # inches, of a panel
# Title, image of the gallery, and the panel in it: left, upper, right, lower pixels.
PANELS = (
    ('BiFormer: routed regions', 'photograph.jpg', (693, 323, 1018, 566)),
    ('DAT: sampled keys', 'photograph.jpg', (693, 27, 1018, 270)),
    ('Shunted Transformer: two scales', 'photograph.jpg', (360, 620, 685, 863)),
    ('Focus-DETR: kept tokens', 'kept_tokens.jpg', (29, 451, 575, 858)),
)


def main() -> None:
    panels = [Image.open(IMAGES / name).crop(box) for _, name, box in PANELS]
    widths = [panel.width / panel.height for panel in panels]
    plt.rcParams.update({'font.family': 'DejaVu Sans', 'font.size': 10})
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(HEIGHT * sum(widths), HEIGHT),
        width_ratios=widths,
        layout='constrained',
    )
    for ax, panel, (title, *_) in zip(axes, panels, PANELS, strict=True):
        ax.imshow(panel, interpolation='lanczos')
        ax.set_title(title)
        ax.set_axis_off()
    path = IMAGES / 'overview.jpg'
    figure.savefig(path, dpi=130, facecolor='white', pil_kwargs={'quality': 88})
    print(path)


if __name__ == '__main__':
    main()
