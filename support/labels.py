"""Age bins and genders, as words, as numbers, and as the label vectors that the networks are given."""

from collections.abc import Sequence

import numpy as np

from support.errors import InputError

AGE_BOUNDS = (5, 10, 15, 20, 30, 40, 50, 60, 70)  # the last age of each bin; the last bin is open
OLDEST = 120
MALE, FEMALE, UNKNOWN = 0, 1, -1
GENDER_NAMES = {MALE: "male", FEMALE: "female", UNKNOWN: "unknown"}
# how file names, folders and tables write a gender; a spreadsheet may make a 0 of it a 0.0
GENDERS = {
    **dict.fromkeys(("0", "0.0", "m", "male", "man"), MALE),
    **dict.fromkeys(("1", "1.0", "f", "female", "woman"), FEMALE),
    **dict.fromkeys(("", "u", "unknown", "none", "nan"), UNKNOWN),
}


class AgeBins:
    """Age bins: bounds (5, 10) make 0-5, 6-10 and 11+. Raises InputError unless they rise strictly within 1-119."""

    def __init__(self, bounds: Sequence[int] = AGE_BOUNDS):
        edges = [0, *bounds, OLDEST]
        if len(edges) < 3 or any(low >= high for low, high in zip(edges, edges[1:], strict=False)):
            raise InputError(
                f"age bounds {','.join(map(str, bounds))} must be one or more ages that rise within 1-{OLDEST - 1}, "
                f"such as {','.join(map(str, AGE_BOUNDS))}"
            )
        self.bounds = tuple(bounds)
        lows = [0, *(bound + 1 for bound in bounds)]
        closed = list(zip(lows, self.bounds, strict=False))
        self.names = [f"{low}-{high}" for low, high in closed] + [f"{lows[-1]}+"]
        self.centres = [(low + high) / 2 for low, high in closed] + [self.bounds[-1] + 8.0]  # in years

    def __len__(self) -> int:
        return len(self.names)

    def index(self, ages: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns the bin of each age in years, int [N]."""
        return np.searchsorted(self.bounds, ages)

    def one_hot(self, ages: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns the labels of training: float32 [N, bins], +1 at the age's bin and -1 elsewhere."""
        return np.eye(len(self), dtype=np.float32)[self.index(ages)] * 2 - 1

    def interpolated(self, ages: Sequence[float] | np.ndarray) -> np.ndarray:
        """Returns the labels of aging: float32 [N, bins] in [-1, 1].

        They are linear between the bins' centres, where they equal the one-hot labels, and constant outside them.
        """
        weights = [np.interp(ages, self.centres, one_hot) for one_hot in np.eye(len(self))]
        return np.stack(weights, axis=-1).astype(np.float32) * 2 - 1


def gender_numbers(genders: int | str | Sequence[int | str] | np.ndarray) -> list[int]:
    """Returns genders as MALE, FEMALE and UNKNOWN, a single one as a list of it; words such as "female" are taken too.

    Raises InputError for what is neither.
    """
    given = np.ravel(np.asarray(genders, object)).tolist()
    numbers = [GENDERS.get(gender.strip().lower()) if isinstance(gender, str) else gender for gender in given]
    for gender, number in zip(given, numbers, strict=True):
        if number not in GENDER_NAMES:
            raise InputError(f"{gender!r} is no gender: give {MALE} or 'male', {FEMALE} or 'female'")
    return [int(number) for number in numbers]


def gender_labels(genders: Sequence[int | str] | np.ndarray) -> np.ndarray:
    """Returns float32 [N, 2]: +1 at the gender and -1 at the other, (0, 0) for UNKNOWN; see `gender_numbers`."""
    genders = np.asarray(gender_numbers(genders), int)[:, np.newaxis]
    return np.where(genders == UNKNOWN, 0, np.where(genders == (MALE, FEMALE), 1, -1)).astype(np.float32)
