"""optax transformations over estimators, and the step they make."""

from zojax.optimizers._apply_updates import apply_updates
from zojax.optimizers._curvature import HessianDiagonalState, hessian_diagonal
from zojax.optimizers._line_search import ScaleByBestState, scale_by_best
from zojax.optimizers._step import StepFunctions, TrainState, step_functions
from zojax.optimizers._zeroth_order import ZerothOrderState, zeroth_order

__all__ = [
    "HessianDiagonalState",
    "ScaleByBestState",
    "StepFunctions",
    "TrainState",
    "ZerothOrderState",
    "apply_updates",
    "hessian_diagonal",
    "scale_by_best",
    "step_functions",
    "zeroth_order",
]
