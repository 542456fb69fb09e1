"""`verify`: compares a tiled model with the untouched one, bit for bit, and certifies what was found."""

from overlap_tool.verification.certificate import SCHEMA, Certificate, Check, DifferenceMap
from overlap_tool.verification.observing import difference_map
from overlap_tool.verification.published import SelfTest, selftest
from overlap_tool.verification.run import verify

__all__ = [
    "SCHEMA",
    "Certificate",
    "Check",
    "DifferenceMap",
    "SelfTest",
    "difference_map",
    "selftest",
    "verify",
]
