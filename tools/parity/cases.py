"""Reading cases, and comparing tensors by their tolerances."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


class UnsupportedCaseError(Exception):
    """A case that we have no counterpart for; the message says why."""


@dataclass(frozen=True)
class Case:
    """One stored run of the official code.

    Args:
        name: Name of the files without extension.
        family: Folder of the case's family, for example ``biformer``.
        info: Content of the JSON file.
        tensors: Content of the safetensors file.
    """

    name: str
    family: str
    info: dict[str, Any]
    tensors: dict[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> 'Case':
        """Read a case.

        Args:
            path: Its JSON file.

        Returns:
            The case.
        """
        info = json.loads(path.read_text(encoding='utf-8'))
        tensors = load_file(path.with_suffix('.safetensors'))
        family = str(info.get('family', path.parent.name)).lower()
        return cls(path.stem, family, info, tensors)

    @property
    def state(self) -> dict[str, Tensor]:
        """The official state dict."""
        return self.with_prefix('state.')

    def with_prefix(self, prefix: str) -> dict[str, Tensor]:
        """Select tensors.

        Args:
            prefix: Start of their names.

        Returns:
            The tensors whose names start so, by the rest of the name.
        """
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }


@dataclass(frozen=True)
class Comparison:
    """One of our tensors beside the official one.

    Args:
        name: What it is called in the case.
        actual: Ours.
        expected: The official one.
        atol: Allowed absolute difference.
        rtol: Allowed difference relative to the official value.
        as_sets: The last axis holds indices in any order.
    """

    name: str
    actual: Tensor
    expected: Tensor
    atol: float = 0.0
    rtol: float = 0.0
    as_sets: bool = False

    def error(self) -> float:
        """The largest difference over its tolerance: at most 1 is equal."""
        actual, expected = self.actual.detach(), self.expected
        if actual.shape != expected.shape:
            return float('inf')
        if not actual.numel():
            return 0.0
        if self.as_sets:
            equal = torch.equal(actual.sort(-1).values, expected.sort(-1).values)
            return 0.0 if equal else float('inf')
        difference = (actual.double() - expected.double()).abs()
        allowed = self.atol + self.rtol * expected.double().abs()
        ratio = torch.where(difference == 0, 0.0, difference / allowed)
        return ratio.nan_to_num(nan=float('inf')).max().item()


def find_cases(folders: Iterable[str | Path]) -> list[Path]:
    """Find all cases below some folders.

    Args:
        folders: Where to look.

    Returns:
        The JSON file of every case, sorted within a folder.

    Raises:
        FileNotFoundError: A folder is missing or has no case below it.
    """
    found: list[Path] = []
    for folder in folders:
        cases = sorted(
            path
            for path in Path(folder).rglob('*.json')
            if path.with_suffix('.safetensors').is_file()
        )
        if not cases:
            raise FileNotFoundError(
                f'no case (a pair NAME.json and NAME.safetensors) below {folder}'
            )
        found += cases
    return found
