from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from recorded_models import (  # noqa: F401
    detector,
    detector_cfg,
    detector_sample,
    record_backbone,
)

from mmsparse.visualization import ImageTransform


@pytest.fixture
def flipped():
    """An image of 60x40, resized to 120x80 and flipped; the input is padded."""
    return ImageTransform((40, 60), (40, 60)).resized((80, 120)).flipped('horizontal')


@pytest.fixture
def read_panel():
    """Return what is drawn in a panel."""

    def read(axis):
        content = SimpleNamespace(dots=[], polygons=[], lines=[], boxes=[])
        for collection in axis.collections:
            if isinstance(collection, PathCollection):
                content.dots.append(collection)
            elif isinstance(collection, LineCollection):
                content.lines.append(np.stack(collection.get_segments()))
            elif isinstance(collection, PolyCollection):
                paths = collection.get_paths()
                content.polygons.append(
                    SimpleNamespace(
                        extents=np.array([x.get_extents().extents for x in paths]),
                        colors=collection.get_facecolor(),
                    )
                )
        content.boxes = [patch.get_bbox().extents.tolist() for patch in axis.patches]
        return content

    return read
