"""Which bands a change of an image reaches, and so have to be coded again, by the geometry of all stages.

Where the reach is not known, everything counts as reached: more is coded again than necessary, never less.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from overlap_tool.files.formats.container import CodedString
from overlap_tool.files.running import StageNumbers, Workspace, area_read
from overlap_tool.geometry.walk import Area
from overlap_tool.runtime.deferred import Argument, InMemory, Numbers, OnDemand, sources
from overlap_tool.runtime.lazy import LazyMap


@dataclass(frozen=True)
class FromString:
    """The origin of decoded numbers: a string, and the means that its symbols are added to."""

    string: bytes
    means: Tensor | None


class Change:
    """A rectangle of an image that differs from when `strings` were coded, in this order."""

    def __init__(
        self, image: Numbers, area: Area, before: Sequence[CodedString], workspace: Workspace
    ) -> None:
        self.image = image
        self.area = area
        self.before: Iterator[CodedString] = iter(before)
        self.workspace = workspace
        self.renewed = 0
        """How many bands differ from before."""
        self._changed: dict[int, tuple[CodedString, list[Area]]] = {}
        """By the identities of strings, which are kept alive so that no identity is reused."""

    def coded(self, string: CodedString, changed: list[Area]) -> None:
        """Record where the symbols of a string differ from before."""
        self._changed[id(string)] = string, changed
        self.renewed += len(changed)

    def reaches(self, values: Tensor, area: Area) -> bool:
        """Whether an area of a map depends on anything that has changed."""
        if self.workspace.took_whole:  # then any number may depend on it
            return True
        if isinstance(values, LazyMap):
            return self._reaches(values.numbers, area)
        return _has_places(values, behind=2)

    def _reaches(self, numbers: Numbers, area: Area) -> bool:
        return any(self._is_changed(source, part) for source, part in sources(numbers, area))

    def _is_changed(self, source: Numbers, area: Area) -> bool:
        if source is self.image:
            return area.meets(self.area)
        match source:
            case StageNumbers():
                whole, shape = source.source, source.shape
                return not isinstance(whole, LazyMap) or self._reaches(
                    whole.numbers, area_read(source.stage, shape, area)
                )
            case OnDemand(of=FromString(string, means)):
                known = self._changed.get(id(string))
                if known is None or any(area.meets(each) for each in known[1]):
                    return True
                return means is not None and self.reaches(means, area)
            case OnDemand() if source.of is not None:
                return self._reaches(source.of, area)
            case Argument() if source.behind is None:
                return False  # weights
            case Argument() | InMemory():
                return _has_places(source.values, source.behind or 2)
        return True


def _has_places(values: Tensor, behind: int) -> bool:
    """Whether a tensor varies from place to place; one that is broadcast over a map does not."""
    sides = range(max(0, values.ndim - behind), values.ndim)[:2]
    return any(values.shape[side] > 1 and values.stride(side) != 0 for side in sides)
