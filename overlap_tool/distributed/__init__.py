"""Beyond one machine: pieces of a scene on Dask's workers, each a stream of its own, with the same bits."""

from overlap_tool.distributed.arrays import map_tiles
from overlap_tool.distributed.codecs import compress, decompress
from overlap_tool.distributed.scenes import run

__all__ = ["compress", "decompress", "map_tiles", "run"]
