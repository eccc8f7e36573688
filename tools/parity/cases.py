"""Golden cases: reading them, and comparing tensors within their tolerances."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

INF = float('inf')
FP64_LIMITS = (1e-9, 1e-9)  # sums may run in another order
NOT_OUTPUTS = ('input', 'state.', 'loaded.', 'cotangent', 'grad')


class UnsupportedCaseError(Exception):
    """A case without a counterpart in mmsparse; the message says why."""


@dataclass(frozen=True)
class Comparison:
    """A tensor of mmsparse and the official one.

    Args:
        name: Name of the tensor in the case.
        actual: Computed by mmsparse.
        expected: The official one.
        atol: Allowed absolute difference.
        rtol: Allowed difference relative to the official value.
        as_sets: Whether the last axis holds indices in any order.
    """

    name: str
    actual: Tensor
    expected: Tensor
    atol: float = 0.0
    rtol: float = 0.0
    as_sets: bool = False

    def error(self) -> float:
        """Return the largest difference over its tolerance; at most 1 passes."""
        actual, expected = self.actual.detach(), self.expected
        if actual.shape != expected.shape:
            return INF
        if not actual.numel():
            return 0.0
        if self.as_sets:
            actual, expected = actual.sort(-1).values, expected.sort(-1).values
        actual, expected = actual.double(), expected.double()
        allowed = self.atol + self.rtol * expected.abs()
        ratio = (actual - expected).abs() / allowed
        # Equal infinities have no difference, and NaN for NaN neither.
        same = (actual == expected) | (actual.isnan() & expected.isnan())
        ratio = ratio.masked_fill(same, 0)
        return ratio.nan_to_num(nan=INF, posinf=INF).max().item()


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
        """Read a case from its JSON file and the safetensors file next to it."""
        info = json.loads(path.read_text(encoding='utf-8'))
        tensors = load_file(path.with_suffix('.safetensors'))
        family = str(info.get('family', path.parent.name)).lower()
        return cls(path.stem, family, info, tensors)

    @property
    def state(self) -> dict[str, Tensor]:
        """The official state dict."""
        return self.with_prefix('state.')

    @property
    def outputs(self) -> list[str]:
        """Names of the stored outputs of a case with one model and one input."""
        return [name for name in self.tensors if not name.startswith(NOT_OUTPUTS)]

    def with_prefix(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names start with a prefix, without the prefix."""
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }

    def compare(
        self,
        name: str,
        actual: Tensor,
        expected: Tensor | None = None,
        as_sets: bool = False,
    ) -> Comparison:
        """Compare a tensor with an official one, by default the stored one of its name.

        Integers, booleans and sets must be equal; the case has tolerances for others.
        """
        expected = self.tensors[name] if expected is None else expected
        exact = as_sets or not expected.is_floating_point()
        limits = (0.0, 0.0) if exact else self._limits(name, expected)
        return Comparison(name, actual, expected, *limits, as_sets)

    def _limits(self, name: str, expected: Tensor) -> tuple[float, float]:
        """The absolute and the relative tolerance of a tensor."""
        if name.endswith('fp64'):
            return FP64_LIMITS
        tolerance = self.info['tolerance']
        own = self.info.get('outputs', {}) | tolerance.get('per_tensor', {})
        atol, rtol = self._shared_limits(name, expected)
        return own.get(name, {}).get('atol', atol), rtol

    def _shared_limits(self, name: str, expected: Tensor) -> tuple[float, float]:
        """The tolerance of all tensors of its type."""
        tolerance = self.info['tolerance']
        rtol = tolerance.get('rtol', tolerance.get('fp32_rtol'))
        if name.startswith('grad.'):
            if 'grad' in tolerance:  # DAT: a rule in words
                return 1e-4 * expected.abs().max().item() + 1e-5, 0.0
            for kind in ('grad', 'grad_fp32'):
                if f'{kind}_atol' in tolerance:
                    return tolerance[f'{kind}_atol'], tolerance.get(
                        f'{kind}_rtol', rtol
                    )
        return tolerance.get('fp32_atol', tolerance.get('atol')), rtol


def find_cases(folders: Iterable[str | Path]) -> list[Path]:
    """Find all cases below some folders.

    Args:
        folders: The folders, searched recursively.

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
