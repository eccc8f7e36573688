"""Faults of annotations, collected so that all are reported at once."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

EXAMPLES = 3


class Problem(Enum):
    """A fault; its value describes it in the report."""

    UNLABELED = 'images without label file, kept without boxes'
    EMPTY = 'images without object in their label file, kept without boxes'
    NO_IMAGE = 'label files without image, left out'
    REPEATED = 'images listed again, used once'
    CLIPPED = 'objects that cross the border of the image, clipped'
    NO_AREA = 'objects less than a pixel wide or high in the image, left out'
    OTHER_SIZE = 'label files with another size than the image, see --draw'
    NO_OUTLINE = 'points, lines and masks, left out'
    DIFFICULT = 'difficult objects, iscrowd=1'
    NOT_LISTED = 'listed images that are not in the folder'
    SAME_NAME = 'files that differ in the suffix only'
    UNREADABLE = 'unreadable images'
    MALFORMED = 'malformed entries'
    UNKNOWN_CLASS = 'objects of an unknown class'
    OUT_OF_RANGE = 'values outside 0 to 1'


INVALID = frozenset(
    {
        Problem.NOT_LISTED,
        Problem.SAME_NAME,
        Problem.UNREADABLE,
        Problem.MALFORMED,
        Problem.UNKNOWN_CLASS,
        Problem.OUT_OF_RANGE,
    }
)


class AnnotationError(ValueError):
    """Raised where a problem is found, without the place."""

    def __init__(self, problem: Problem, reason: str) -> None:
        super().__init__(problem, reason)
        self.problem, self.reason = problem, reason


class Problems:
    """The places of all problems found."""

    def __init__(self) -> None:
        self._places: dict[Problem, list[str]] = {}

    def add(self, problem: Problem, place: object) -> None:
        self._places.setdefault(problem, []).append(str(place))

    @contextmanager
    def at(self, place: object) -> Iterator[None]:
        """Record an AnnotationError raised inside, and skip the rest of the block."""
        try:
            yield
        except AnnotationError as error:
            self.add(error.problem, f'{place}: {error.reason}')

    def report(self, invalid: bool) -> Iterator[str]:
        """Yield a line for each problem with its number and examples.

        ``invalid`` chooses problems for which nothing should be written, or the others.
        """
        for problem in Problem:
            places = self._places.get(problem, [])
            if places and (problem in INVALID) == invalid:
                more = len(places) - EXAMPLES
                examples = '; '.join(places[:EXAMPLES])
                rest = f'; and {more} more' if more > 0 else ''
                yield f'{problem.value}: {len(places)}: {examples}{rest}'
