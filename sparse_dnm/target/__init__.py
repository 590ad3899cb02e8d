"""The clock of another machine, or of a C compiler here: networks as C programs that time themselves."""

from sparse_dnm.target.launch import Target, TargetError
from sparse_dnm.target.measure import Measured, time_on_target
from sparse_dnm.target.prices import calibrate_target

__all__ = ["Measured", "Target", "TargetError", "calibrate_target", "time_on_target"]
