from .codec import Codec as Codec
from .compressing import compress as compress
from .decompressing import decompress as decompress
from .plain import run as run
from .summary import RunSummary as RunSummary
from .updating import update as update
