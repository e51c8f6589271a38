"""optax transformations over estimators."""

from zojax.optimizers._apply_updates import apply_updates
from zojax.optimizers._zeroth_order import ZerothOrderState, zeroth_order

__all__ = ["ZerothOrderState", "apply_updates", "zeroth_order"]
