"""From a module that takes one map and returns one to a network of ops with rules."""

from overlap_tool.trace.run import input_channels, trace
from overlap_tool.trace.tracer import TRIALS

__all__ = ["TRIALS", "input_channels", "trace"]
