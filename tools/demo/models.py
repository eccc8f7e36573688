"""The models of the demo: trained ones first, then small ones with random weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from torch import nn

import mmsparse
from mmsparse.weights import entries
from mmsparse.weights.cache import find

SMALL = ('nano', 'pico', 'tiny')
MAX_LOADED = 3


@dataclass(frozen=True)
class Choice:
    """A model to choose: its name, and a file with weights unless these are random."""

    name: str
    origin: str = 'random weights'  # of the weights, as the page shows it
    weights: Path | None = None

    @property
    def title(self) -> str:
        """Return name and origin of the weights."""
        return f'{self.name}, {self.origin}'


def list_choices(
    name: str | None = None, checkpoint: str | None = None
) -> dict[str, Choice]:
    """Return what can be chosen, by title; what the options name is first.

    Args:
        name: A model of :func:`mmsparse.list_models`.
        checkpoint: File with its weights.

    Returns:
        Title to choice.
    """
    known = [*_trained(), *map(Choice, _small())]
    if checkpoint is not None:
        known.insert(0, Choice(name, Path(checkpoint).name, Path(checkpoint)))
    elif name is not None:
        known.append(Choice(name))
        known.sort(key=lambda choice: choice.name != name)  # stable: trained ones first
    return {choice.title: choice for choice in known}


@lru_cache(MAX_LOADED)
def load(choice: Choice) -> nn.Module:
    """Build the classifier of a choice."""
    return mmsparse.create_model(choice.name, pretrained=choice.weights).eval()


def _trained() -> Iterator[Choice]:
    """Yield models whose weights are in the repository or in a cache."""
    for entry in entries('classification'):
        path = find(entry) if entry.model in mmsparse.list_models() else None
        if path is not None:
            yield Choice(entry.model, f'trained on {entry.data}', path)


def _small() -> list[str]:
    return [x for x in mmsparse.list_models() if x.rpartition('-')[2] in SMALL]
