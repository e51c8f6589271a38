"""optax transformations over estimators."""

from zojax.optimizers._apply_updates import apply_updates
from zojax.optimizers._curvature import HessianDiagonalState, hessian_diagonal
from zojax.optimizers._line_search import ScaleByBestState, scale_by_best
from zojax.optimizers._zeroth_order import ZerothOrderState, zeroth_order

__all__ = [
    "HessianDiagonalState",
    "ScaleByBestState",
    "ZerothOrderState",
    "apply_updates",
    "hessian_diagonal",
    "scale_by_best",
    "zeroth_order",
]
