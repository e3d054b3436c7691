"""The type of a picture on the host."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

Picture = UInt8[np.ndarray, "_h _w 3"]  # 0..255; the pictures of one call may differ in size
