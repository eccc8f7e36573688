"""Iterations of the models of a comparison: as many for each, or as the time allows."""

from collections.abc import Mapping
from dataclasses import dataclass

from training.costs import Cost

from comparison.comparison import Comparison
from mmsparse.errors import UsageError

ITERATIONS, TIME = 'iterations', 'time'


@dataclass(frozen=True)
class Protocol:
    """What all models of a comparison have the same of.

    Args:
        name: `ITERATIONS` or `TIME`.
        budget: Number of iterations, or minutes of training.
    """

    name: str
    budget: float

    def iterations(self, cost: Cost) -> int:
        """Return the iterations of a model with a cost, at least 1."""
        if self.name == ITERATIONS:
            return int(self.budget)
        return max(1, int(60 * self.budget / cost.iteration_seconds))

    def __str__(self) -> str:
        unit = {ITERATIONS: 'iterations', TIME: 'minutes of training'}[self.name]
        return f'{self.budget:g} {unit}'


def choose_protocol(
    comparison: Comparison, name: str, options: Mapping[str, float | None]
) -> Protocol:
    """Return a protocol with the budget of an option, or else of the comparison.

    Args:
        comparison: Has the default budgets.
        name: `ITERATIONS` or `TIME`.
        options: The values of --iterations and --minutes, None if they are not given.

    Returns:
        The protocol.

    Raises:
        UsageError: A budget is not positive, or that of the other protocol.
    """
    used = {ITERATIONS: 'iterations', TIME: 'minutes'}[name]
    for option, value in options.items():
        if value is not None and value <= 0:
            raise UsageError(f'--{option} must be more than 0; got {value:g}')
        if value is not None and option != used:
            raise UsageError(
                f'--{option} is no budget of --protocol {name}; give --{used}'
            )
    budget = options[used]
    return Protocol(name, getattr(comparison, used) if budget is None else budget)
