"""Array types of the measurements, which are made in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
RealArray = npt.NDArray[np.floating] | npt.NDArray[np.integer]
