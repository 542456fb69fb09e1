"""Images in files, of any size: compressed, decompressed, or put through a network, band by band."""

from overlap_tool.files.codec import Codec
from overlap_tool.files.compressing import compress
from overlap_tool.files.decompressing import decompress
from overlap_tool.files.plain import run
from overlap_tool.files.summary import RunSummary

__all__ = ["Codec", "RunSummary", "compress", "decompress", "run"]
