"""Exact, retraining-free tiled inference for learned image codecs and other CNNs.

`analyze` computes the overlap that every stage of a model needs, `wrap` returns the same model running tile
by tile, and `verify` compares the tiled model with the untouched one, bit for bit:

>>> import overlap_tool, torch
>>> model = torch.nn.Conv2d(3, 3, 5, padding=2).eval()
>>> tiled = overlap_tool.wrap(model, tile=32)
>>> image = torch.rand(1, 3, 100, 80)
>>> with torch.no_grad(), overlap_tool.exact_kernels():
...     torch.equal(tiled(image), model(image))
True
"""

from importlib.metadata import version

import lazy_loader

# importing torch takes seconds, so the names listed in `__init__.pyi` are imported on first use
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("overlap-tool")
