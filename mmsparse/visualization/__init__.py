"""Draw and measure what the sparse parts of a model attend to, sample and keep."""

from mmsparse.visualization.attention import (
    draw_attention,
    draw_routed_regions,
    draw_sampled_keys,
)
from mmsparse.visualization.comparison import list_comparisons
from mmsparse.visualization.detection import (
    draw_foreground_scores,
    draw_kept_tokens,
    draw_sampling_locations,
)
from mmsparse.visualization.detr import draw_encoder_points, draw_queries
from mmsparse.visualization.draw import draw_all, list_drawings, rasterize
from mmsparse.visualization.image_transform import ImageTransform
from mmsparse.visualization.page import write_page
from mmsparse.visualization.receptive_field import draw_receptive_field
from mmsparse.visualization.recorder import Recording, record
from mmsparse.visualization.sample import (
    Sample,
    choose_query_point,
    read_classes,
    read_metainfo,
    read_pipeline,
    record_image,
    record_sample,
)
from mmsparse.visualization.statistics import attention_distance, sample_statistics

__all__ = [
    'ImageTransform',
    'Recording',
    'Sample',
    'attention_distance',
    'choose_query_point',
    'draw_all',
    'draw_attention',
    'draw_encoder_points',
    'draw_foreground_scores',
    'draw_kept_tokens',
    'draw_queries',
    'draw_receptive_field',
    'draw_routed_regions',
    'draw_sampled_keys',
    'draw_sampling_locations',
    'list_comparisons',
    'list_drawings',
    'rasterize',
    'read_classes',
    'read_metainfo',
    'read_pipeline',
    'record',
    'record_image',
    'record_sample',
    'sample_statistics',
    'write_page',
]
