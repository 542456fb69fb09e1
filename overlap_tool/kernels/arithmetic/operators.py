"""Python's operators for values that record operations instead of performing them."""

from __future__ import annotations

from typing import Any


class Operators:
    """For numbers, integers and truth values."""

    def _binary(self, sign: str, other: Any, swap: bool = False) -> Any:
        """Write `self sign other`, or `other sign self` if `swap`."""
        raise NotImplementedError

    def _compared(self, sign: str, other: Any) -> Any:
        raise NotImplementedError

    def __add__(self, other: Any) -> Any:
        return self._binary("+", other)

    def __sub__(self, other: Any) -> Any:
        return self._binary("-", other)

    def __rsub__(self, other: Any) -> Any:
        return self._binary("-", other, swap=True)

    def __mul__(self, other: Any) -> Any:
        return self._binary("*", other)

    def __truediv__(self, other: Any) -> Any:
        return self._binary("/", other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._binary("/", other, swap=True)

    def __and__(self, other: Any) -> Any:
        return self._binary("&", other)

    def __or__(self, other: Any) -> Any:
        return self._binary("|", other)

    def __xor__(self, other: Any) -> Any:
        return self._binary("^", other)

    def __lt__(self, other: Any) -> Any:
        return self._compared("<", other)

    def __le__(self, other: Any) -> Any:
        return self._compared("<=", other)

    def __gt__(self, other: Any) -> Any:
        return self._compared(">", other)

    def __ge__(self, other: Any) -> Any:
        return self._compared(">=", other)

    def __eq__(self, other: object) -> Any:
        return self._compared("==", other)

    __radd__, __rmul__, __rand__, __ror__ = __add__, __mul__, __and__, __or__
    __hash__ = None  # type: ignore[assignment]
