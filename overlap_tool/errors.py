"""Typed errors: each names where it happened, the reason, and the way out.

The command line prints the one message and exits with code 2; from Python they are ordinary exceptions
with the three parts as attributes.
"""

from __future__ import annotations

import errno
import os

from overlap_tool.legible import legible


class OverlapToolError(Exception):
    """Base class of every error that this package raises deliberately.

    `where` is a file, a layer or a parameter; `reason` says what is wrong with it; `way_out` says what the
    user can do about it. Parameters are spelled as in Python, `tile=256`: alone as `where`, in backquotes
    elsewhere, and the command line rewrites those as options. Names in the three parts may come from hostile
    files: all three are made printable.
    """

    def __init__(self, where: str, reason: str, way_out: str) -> None:
        self.where, self.reason, self.way_out = map(legible, (where, reason, way_out))
        super().__init__(self.where, self.reason, self.way_out)

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}. {self.way_out}"


class OptionError(OverlapToolError, ValueError):
    """An argument that cannot be used: a tile of 0, a stage that the model lacks."""


class CheckpointError(OverlapToolError):
    """A file that is missing, empty, truncated, or not a checkpoint."""


class UntrustedPickleError(CheckpointError):
    """A pickled module, which would run code when loaded."""


class UntrustedClassError(CheckpointError):
    """A wrapped model that names a class of the user's own: importing the class would run code."""


class UnknownArchitectureError(CheckpointError):
    """A state dict that no registered architecture recognises."""


class WeightsError(CheckpointError):
    """Weights that do not fit the architecture, or are not finite."""


class MissingExtraError(OverlapToolError):
    """A feature that needs a package of an extra that is not installed, such as CompressAI for its models."""


class ClusterError(OverlapToolError):
    """Workers that die, differ from this process, or cannot be reached."""


class PluginError(OverlapToolError):
    """A plugin that cannot be imported, or registers something malformed."""


class CopyError(OverlapToolError):
    """A model that cannot be copied, so that it cannot be tried out without being changed."""


class TraceError(OverlapToolError):
    """A stage that cannot be traced into a network."""


class UnknownOpError(TraceError):
    """An op without a rule: its overlap is unknown, and is never guessed."""


class GlobalOpError(TraceError):
    """An op that needs the whole map, so that no finite overlap suffices."""


class SizeDependenceError(TraceError):
    """A stage that reads its own spatial size, so that a piece would behave differently from the whole."""


class DataDependenceError(TraceError):
    """A stage whose control flow depends on the values of its input."""


class SizeError(OverlapToolError, ValueError):
    """A map whose size a stage cannot compute, such as an odd one where pixels are unshuffled by 2."""


class RuleError(TraceError):
    """A rule that contradicts what the op really does."""


class TrainingModeError(OverlapToolError):
    """Tiled inference of a module in training mode."""


class ImageFileError(OverlapToolError):
    """An image file that cannot be read, or cannot be written as requested."""


class ContainerError(OverlapToolError):
    """A compressed file that is damaged, of another version, or from another checkpoint."""


class CodingError(OverlapToolError):
    """A model whose own `compress` or `decompress` fails, or returns what a file cannot hold."""


class ExactnessError(OverlapToolError):
    """An op, a layer or a machine for which the exact engine cannot guarantee the bits."""

    STOCK = '`engine="stock"`'
    """The way out that always exists for those who do not need exact bits."""


class SlowKernelWarning(UserWarning):
    """A layer that the exact engine computes by a slower kernel, with the same bits."""


def why_absent(path: str | os.PathLike[str]) -> str:
    """Why a path leads to nothing readable; empty if it leads to something."""
    try:
        os.stat(path)
    except FileNotFoundError:
        if os.path.islink(path):
            return f"it is a link to {os.readlink(path)}, and there is no such file"
        return "there is no such file"
    except OSError as error:
        looped = error.errno == errno.ELOOP
        return "it is a link that leads back to itself" if looped else f"it cannot be read ({error.strerror})"
    except ValueError as error:
        return f"it is no path ({error})"
    return ""
