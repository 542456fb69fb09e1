from .certificate import SCHEMA as SCHEMA
from .certificate import Certificate as Certificate
from .certificate import Check as Check
from .certificate import DifferenceMap as DifferenceMap
from .observing import difference_map as difference_map
from .published import SelfTest as SelfTest
from .published import selftest as selftest
from .run import verify as verify
