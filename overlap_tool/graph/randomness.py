"""Random numbers that leave the global random state unchanged, whatever other threads draw meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from overlap_tool.kernels.dispatching import DispatchMode


class _DefaultGenerator:
    """The generator that functions such as `torch.manual_seed` find: that of the `OwnRandomness` around them,
    or else PyTorch's."""

    def __init__(self) -> None:
        self._found = threading.local()
        self._users = 0
        self._lock = threading.Lock()

    def begin(self, own: torch.Generator) -> None:
        with self._lock:
            self._users += 1
            vars(torch.random)["default_generator"] = self
        self._found.own = [*getattr(self._found, "own", ()), own]

    def end(self) -> None:
        self._found.own.pop()
        with self._lock:
            self._users -= 1
            if not self._users:
                vars(torch.random)["default_generator"] = torch.default_generator

    def __getattr__(self, name: str) -> Any:
        return getattr((getattr(self._found, "own", ()) or [torch.default_generator])[-1], name)


_default = _DefaultGenerator()


class OwnRandomness(DispatchMode):
    """Inside, this thread draws from its own generators, which start at `seed`; a seed that is set inside is
    theirs, too.

    For an op that takes no generator, the global state is swapped while the op runs.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.drawn = False
        """Whether numbers were drawn, and not only shapes."""
        self.generators: dict[torch.device, torch.Generator] = {}

    def __enter__(self) -> OwnRandomness:
        _default.begin(self.generator(torch.device("cpu")))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        _default.end()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator") is not None:
            return func(*args, **kwargs)
        where = next((each.device for each in args if isinstance(each, Tensor)), kwargs.get("device"))
        generator = self.generator(torch.device(where or "cpu"))
        with_generator = _with_generator(func)
        if with_generator is not None:
            result = with_generator(*args, **{**kwargs, "generator": generator})
        else:
            result = self.in_place_of_the_process(lambda: func(*args, **kwargs))
        self.drawn |= isinstance(result, Tensor) and not (isinstance(result, FakeTensor) or result.is_meta)
        return result

    def in_place_of_the_process(self, draw: Callable[[], Any]) -> Any:
        own = self.generator(torch.device("cpu"))
        process = torch.default_generator
        before = process.get_state()
        process.set_state(own.get_state())
        try:
            return draw()
        finally:
            own.set_state(process.get_state())
            process.set_state(before)

    def generator(self, device: torch.device) -> torch.Generator:
        device = device if device.type == "cuda" else torch.device("cpu")
        if device not in self.generators:
            self.generators[device] = torch.Generator(device).manual_seed(self.seed)
        return self.generators[device]


def _with_generator(func: Any) -> Any:
    """The op, or its overload, that takes a generator; None if there is none."""
    if any(argument.name == "generator" for argument in func._schema.arguments):
        return func
    name = func._overloadname.replace("default", "")
    name = f"{name}_generator" if name else "generator"
    return getattr(func.overloadpacket, name, None)
