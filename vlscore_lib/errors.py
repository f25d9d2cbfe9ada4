"""Errors that the user can fix, and the checks of ranges that all files share."""

from __future__ import annotations

from importlib import import_module


class VLScoreError(ValueError):
    """An input cannot be used; the message says in one line what is wrong and how to fix it.

    It is a subclass of ``ValueError``, so ``except ValueError`` catches it too.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))  # a name that is quoted may hold line breaks


class MissingPackageError(VLScoreError):
    """A package of one of the extras is not installed."""


def check_temperature(value: float, name: str = "the temperature") -> None:
    """Raise VLScoreError unless τ is a finite number above 0."""
    if not 0 < value < float("inf"):
        raise VLScoreError(f"{name} is {value}: give a number above 0")


def check_threshold(value: float, name: str = "the threshold") -> None:
    """Raise VLScoreError unless the CAM threshold α lies between 0 and 1."""
    if not 0 < value < 1:
        raise VLScoreError(f"{name} is {value}: give a number between 0 and 1")


def check_keep(keep: int | float | None) -> None:
    """Raise VLScoreError unless `keep` is None, a number of maps (0 for none), or a fraction in (0, 1)."""
    is_count = isinstance(keep, int) and not isinstance(keep, bool) and keep >= 0
    is_fraction = isinstance(keep, float) and 0 < keep < 1
    if not (keep is None or is_count or is_fraction):
        raise VLScoreError(f"keep is {keep!r}: give a number of maps, or a fraction between 0 and 1")


def check_at_least(lowest: int, value: int | None, name: str) -> None:
    """Raise VLScoreError if a value is given and is below the lowest one allowed."""
    if value is not None and value < lowest:
        raise VLScoreError(f"{name} is {value}: give {lowest} or more")


def check_choice(value: str, choices, name: str) -> None:
    """Raise VLScoreError unless the value is one of the choices."""
    if value not in choices:
        raise VLScoreError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")


def nearest(word: str, known: list[str]) -> str:
    """Suggest the known words nearest to an unknown one, ignoring upper and lower case."""
    from difflib import get_close_matches

    plain = {each.lower(): each for each in known}
    found = [plain[each] for each in get_close_matches(word.lower(), list(plain), n=4, cutoff=0.3)]
    return f"choose {', '.join(found or known[:4])}" + (" or another" if len(known) > 4 else "")


def import_extra(module: str, extra: str):
    """Import a module that comes with one of the package's extras.

    Raises:
        MissingPackageError: the module is not installed; the message names the extra.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"this needs the package {error.name}: install it with pip install 'vlscore[{extra}]'"
        ) from None
