"""Exact, retraining-free tiled inference for learned image codecs and other CNNs.

`analyze` says which overlap every stage of a model needs, `wrap` gives back the same model running tile by
tile, and `verify` holds the tiles to the untouched model, bit for bit:

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

# torch takes seconds to import: what `__init__.pyi` lists is imported when it is first used, and not before.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = version("overlap-tool")
