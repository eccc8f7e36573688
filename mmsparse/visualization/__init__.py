"""Pictures of what a sparse model looks at."""

from mmsparse.visualization.attention import (
    draw_attention,
    draw_regions,
    draw_sampled_keys,
)
from mmsparse.visualization.detections import draw_sampling_points
from mmsparse.visualization.drawings import draw_all
from mmsparse.visualization.fields import draw_receptive_field
from mmsparse.visualization.image_transform import ImageTransform
from mmsparse.visualization.page import write_page
from mmsparse.visualization.recorder import Recording, record
from mmsparse.visualization.sample import (
    Sample,
    choose_point,
    read_pipeline,
    view,
)
from mmsparse.visualization.tokens import draw_foreground, draw_kept_tokens

__all__ = [
    'ImageTransform',
    'Recording',
    'Sample',
    'choose_point',
    'draw_all',
    'draw_attention',
    'draw_foreground',
    'draw_kept_tokens',
    'draw_receptive_field',
    'draw_regions',
    'draw_sampled_keys',
    'draw_sampling_points',
    'read_pipeline',
    'record',
    'view',
    'write_page',
]
