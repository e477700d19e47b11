"""Validation of arguments that several modules take."""

import math
import numbers


def is_integer(value, minimum=None):
    """Returns whether a value is an integer of Python or NumPy, not a bool, that fits in int64.

    Args:
        value: anything.
        minimum: int, or None for any.

    Example:
        >>> is_integer(32, minimum=1), is_integer(32.0), is_integer(True)
        (True, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        return False
    return (-(2**63) if minimum is None else minimum) <= value < 2**63


def check_integer(name, value, minimum=None):
    """Raises ValueError, which names the argument, unless `is_integer(value, minimum)`."""
    if not is_integer(value, minimum):
        least = "" if minimum is None else f" of at least {minimum}"
        raise ValueError(f"{name} must be an integer (int64){least}, got {value!r}")


def check_integers(minimum, **values):
    """Checks several arguments, given by name, with `check_integer`."""
    for name, value in values.items():
        check_integer(name, value, minimum)


def check_positive(name, value):
    """Returns a positive number as a float; raises ValueError, which names the argument, for other values."""
    if not is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return float(value)


def check_not_negative(name, value):
    """Returns a finite number of at least 0 as a float; raises ValueError for other values."""
    if not is_number(value) or not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
    return float(value)


def check_fraction(name, value, most=1):
    """Returns a number in 0..`most` as a float; raises ValueError for other values."""
    if not is_number(value) or not 0 <= value <= most:
        raise ValueError(f"{name} must be in 0..{most}, got {value!r}")
    return float(value)


def is_number(value):
    """Returns whether a value is a real number of Python or NumPy, not a bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_bool(name, value):
    """Returns `value` if it is a bool; otherwise raises ValueError, which names the argument."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    return value
