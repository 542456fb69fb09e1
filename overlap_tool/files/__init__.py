"""Images in files, of any size: compressed, decompressed, or put through a network, band by band."""

import lazy_loader

# what can be checked without torch is checked before torch is imported
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
