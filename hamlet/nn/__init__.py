"""The parts of HAMLET, one a file, each usable alone.

Feature maps are (B, H, W, C) everywhere here, which is what the attention takes and what layer norms and linear layers
want; a batch of images of different sizes is padded, and its ``extents`` hold each sample's valid (height, width).
"""

from hamlet.nn.acsa import ACSA
from hamlet.nn.cecm import CECM
from hamlet.nn.grgm import GRGM
from hamlet.nn.hfe import HFE
from hamlet.nn.hffn import HFFN
from hamlet.nn.mkdm import MKDM

__all__ = ["ACSA", "CECM", "GRGM", "HFE", "HFFN", "MKDM"]
