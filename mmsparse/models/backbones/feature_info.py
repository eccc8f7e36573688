"""Stages of a backbone: which are returned, and their channels, strides and modules."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class FeatureInfo(list):
    """Feature maps of the stages of a backbone, with the methods of timm's class.

    It is a list of one dict per stage, as timm's feature extractors need it. Methods
    take ``idx``, the index of a stage or a list of them; without it they describe the
    outputs.

    Args:
        stages: ``num_chs``, ``reduction`` (the stride in pixels), ``module`` (its name)
            and ``index`` of every stage.
        out_indices: Stages that are returned.
    """

    def __init__(
        self, stages: Iterable[dict[str, Any]], out_indices: Sequence[int]
    ) -> None:
        super().__init__(stages)
        self.out_indices = tuple(out_indices)

    @classmethod
    def of_stages(
        cls, channels: Sequence[int], out_indices: Sequence[int], prefix: str = ''
    ) -> 'FeatureInfo':
        """Describe stages with strides 4, 8, ...

        Args:
            channels: C of every stage.
            out_indices: Stages that are returned.
            prefix: Prefix of the names of the modules, for example ``backbone.``.

        Returns:
            The description.
        """
        stages = (
            dict(num_chs=width, reduction=4 * 2**i, module=f'{prefix}stages.{i}')
            for i, width in enumerate(channels)
        )
        return cls(
            (stage | dict(index=i) for i, stage in enumerate(stages)), out_indices
        )

    def channels(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return C, or a list of them."""
        return self.get('num_chs', idx)

    def reduction(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the stride in pixels, or a list of them."""
        return self.get('reduction', idx)

    def module_name(self, idx: int | Sequence[int] | None = None) -> Any:
        """Return the name of the module, or a list of them."""
        return self.get('module', idx)

    def get(self, key: str, idx: int | Sequence[int] | None = None) -> Any:
        """Return one value of a stage, or a list of them."""
        if isinstance(idx, int):
            return self[idx][key]
        return [x[key] for x in self.get_dicts(idx=idx)]

    def get_dicts(
        self, keys: Sequence[str] | None = None, idx: int | Sequence[int] | None = None
    ) -> Any:
        """Return the dict of a stage, or a list of them, reduced to ``keys``."""
        if isinstance(idx, int):
            return _select(self[idx], keys)
        return [
            _select(self[i], keys) for i in (self.out_indices if idx is None else idx)
        ]


def resolve_indices(
    name: str, indices: int | Sequence[int] | None, num_stages: int
) -> tuple[int, ...]:
    """Return the indices of stages, each once and ascending, as timm and mmdet do.

    Args:
        name: Name of the argument.
        indices: Indices, negative ones from the end; an integer is the number of last
            stages, None all.
        num_stages: Number of stages.

    Returns:
        The indices, counted from 0.

    Raises:
        TypeError: ``indices`` are no integers.
        ValueError: An index is out of range, or there is none.
    """
    if indices is None:
        return tuple(range(num_stages))
    if type(indices) is int and 0 < indices <= num_stages:
        return tuple(range(num_stages - indices, num_stages))
    if type(indices) is int:
        raise ValueError(
            f'{name} must be a list of stages, or the number of last stages, from 1 to '
            f'{num_stages}; got {indices}.'
        )
    return resolve_out_indices(indices, num_stages, name)


def resolve_out_indices(
    indices: Sequence[int], num_stages: int, name: str = 'out_indices'
) -> tuple[int, ...]:
    """Return :func:`resolve_indices` of a list alone.

    Args:
        indices: Indices, negative ones from the end.
        num_stages: Number of stages.
        name: Name of the argument.

    Returns:
        The indices, counted from 0.

    Raises:
        TypeError: ``indices`` is no list.
        ValueError: An index is no integer or out of range, or there is none.
    """
    if not isinstance(indices, Sequence) or isinstance(indices, str):
        raise TypeError(f'{name} must be a list of stages; got {indices!r}.')
    allowed = range(-num_stages, num_stages)
    if not indices or not all(type(i) is int and i in allowed for i in indices):
        raise ValueError(
            f'{name} must be stages from 0 to {num_stages - 1}, or from -{num_stages} '
            f'to -1, counted from the end; got {indices!r}.'
        )
    return tuple(sorted({i % num_stages for i in indices}))


def _select(stage: Mapping[str, Any], keys: Sequence[str] | None) -> dict[str, Any]:
    return {key: stage[key] for key in (stage if keys is None else keys)}
