"""What sees every op that a thread runs: the base of all classes of ours that do."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """Without `torch.compile` in between: PyTorch would import its compiler with the first op, which takes
    longer than to build most models, and would ask it of every op."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
