"""Observe how many tensors of a module a checkpoint fills, and find why so few."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Size, Tensor, nn

from mmsparse.checkpoint.state_dict import find_state_dict, join_keys
from mmsparse.errors import OfficialWeightsError, UsageError

FEW = 0.1  # of the tensors; a file with fewer has weights of another model
HALF = 0.5  # official keys may be those of mmsparse by coincidence
SHOWN = 3
COUNTERS = 'num_batches_tracked'  # of BatchNorm, which old files lack


class Official(NamedTuple):
    """Weights under the keys of official code."""

    text: str  # what they are, and the way out
    convertible: bool = True

    @classmethod
    def of_family(cls, family: str) -> 'Official':
        """Describe weights of a family that can be converted."""
        return cls(
            f'an official checkpoint of {family}; convert it, see docs/migration.md'
        )


Recognize = Callable[[Collection[str]], Official | None]  # from keys


@dataclass(frozen=True)
class Coverage:
    """Tensors of a module, and those of them that loading did not change.

    Args:
        names: All, without the counters of BatchNorm.
        missing: The unchanged ones, by name, with the sizes if those of the file
            differ.
    """

    names: Collection[str]
    missing: Mapping[str, str]

    @classmethod
    def none_of(cls, module: nn.Module) -> 'Coverage':
        """Return the coverage of a module without any tensor loaded."""
        names = list(_versions(module))
        return cls(names, dict(zip(names, names, strict=True)))

    @property
    def loaded(self) -> int:
        """Number of tensors that were loaded."""
        return len(self.names) - len(self.missing)

    def is_few(self, official: bool = False) -> bool:
        """Return whether the file is not meant for the module."""
        return self.loaded < (HALF if official else FEW) * len(self.names)

    def of_part(self, prefix: str) -> 'Coverage':
        """Return the coverage of the tensors with a prefix."""
        return Coverage(
            [name for name in self.names if name.startswith(prefix)],
            {k: text for k, text in self.missing.items() if k.startswith(prefix)},
        )

    def describe(self, owner: str, file: str) -> str:
        """Format the numbers, and the first names that are missing."""
        text = f'{self.loaded} of {len(self.names)} weights of {owner} from {file}'
        missing = join_keys(list(self.missing.values()), SHOWN)
        return f'{text}; not in it: {missing}' if missing else text


class LoadObserver:
    """Report the coverage of a module when it loads a state dict the next time.

    A tensor is loaded if its version changed, whatever keys the module renames.

    Args:
        module: The module, not wrapped.
        report: Called with the coverage and the state dict.
    """

    def __init__(
        self, module: nn.Module, report: Callable[[Coverage, Mapping[str, Any]], None]
    ) -> None:
        self._report = report
        self._handles = [
            module._register_load_state_dict_pre_hook(self._start, with_module=True),
            module.register_load_state_dict_post_hook(self._finish),
        ]
        self._active = True

    def remove(self) -> None:
        """Stop observing."""
        self._active = False
        for handle in self._handles:
            handle.remove()

    def _start(
        self, module: nn.Module, state_dict: Mapping, prefix: str, *args: Any
    ) -> None:
        self._weights = {
            key.removeprefix(prefix): value
            for key, value in state_dict.items()
            if key.startswith(prefix)
        }
        self._versions = _versions(module)

    def _finish(self, module: nn.Module, keys: Any) -> None:
        if not self._active:
            return
        self._active = False  # hooks cannot be removed while they run
        weights, before = self._weights, self._versions
        shapes = {name: x.shape for name, x in module.state_dict().items()}
        missing = {
            name: _describe(name, weights.get(name), shapes[name])
            for name, version in _versions(module).items()
            if before.get(name) == version
        }
        del self._weights
        self._report(Coverage(list(before), missing), weights)


def _versions(module: nn.Module) -> dict[str, tuple[int, int]]:
    return {
        name: (id(tensor), tensor._version)
        for name, tensor in module.state_dict(keep_vars=True).items()
        if isinstance(tensor, Tensor) and not name.endswith(COUNTERS)
    }


def _describe(name: str, found: Any, shape: Size) -> str:
    if not isinstance(found, Tensor) or found.shape == shape:
        return name
    return f'{name} {tuple(found.shape)} instead of {tuple(shape)}'


@dataclass(frozen=True)
class Diagnosis:
    """Whose weights a checkpoint has.

    Args:
        official: Those of official code; None for others.
        prefix: Prefix under which it has the names of a module; None if it has not.
        keys: The first keys.
    """

    official: Official | None
    prefix: str | None
    keys: list[str]

    def error(self, text: str, file: str, way_out: str) -> UsageError:
        """Return an error: ``text``, and the way out unless weights are official."""
        if self.official is None:
            return UsageError(f'{text}; {way_out}')
        message = f'{text}; it is {self.official.text}'
        if self.official.convertible:
            return OfficialWeightsError(message, file)
        return UsageError(message)


def diagnose(
    checkpoint: Any, names: Collection[str], recognize: Recognize
) -> Diagnosis:
    """Find whose weights a checkpoint has.

    Args:
        checkpoint: Content of the file.
        names: Names of the tensors of a module.
        recognize: Describes official weights.

    Returns:
        The diagnosis.

    Raises:
        ValueError: The checkpoint has no state dict.
    """
    weights = find_state_dict(checkpoint)
    return Diagnosis(
        official=recognize(weights),
        prefix=_find_prefix_of(names, weights),
        keys=list(weights)[:SHOWN],
    )


def _find_prefix_of(names: Collection[str], keys: Collection[str]) -> str | None:
    """Return the prefix under which most of these names are keys, None if few are."""
    known = set(keys)
    prefixes = {
        prefix
        for key in known
        for name in names
        if key.endswith(name) and (prefix := key.removesuffix(name))[-1:] in ('', '.')
    }

    def count(prefix: str) -> int:
        return sum(prefix + name in known for name in names)

    best = max(prefixes, key=lambda x: (count(x), -len(x)), default=None)
    return best if best is not None and count(best) >= FEW * len(names) else None
