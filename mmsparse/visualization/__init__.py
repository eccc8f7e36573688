"""Pictures of what a sparse model looks at."""

from mmsparse.visualization.kept_tokens import draw_kept_tokens

__all__ = ['draw_kept_tokens']
