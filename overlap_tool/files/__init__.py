"""Images in files, of any size: compressed, decompressed, or put through a network, band by band."""

import lazy_loader

# What is known of a file without torch is looked at before torch is imported.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
