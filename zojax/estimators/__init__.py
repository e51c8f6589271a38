"""Estimators: direction x scheme x shaping."""

from zojax.estimators._adaptive import (
    BaselineState,
    BlockState,
    block_sampling,
    moving_baseline,
)
from zojax.estimators._ask_tell import candidates, losses_of_order, numpy_function, tell
from zojax.estimators._deepzero import (
    deepzero,
    deepzero_by_layer,
    draw_positions,
    grasp_scores,
    layer_counts,
)
from zojax.estimators._diagnostics import BudgetSplit, Info, diagnose, split_budget
from zojax.estimators._estimate import Estimate, advance, estimate, gradient, value_and_grad
from zojax.estimators._estimator import (
    Adaptive,
    AnyEstimator,
    Estimator,
    Joint,
    init,
    joint,
    num_coefficients,
    num_queries,
    num_samples,
)
from zojax.estimators._hizoo import HizooState, hizoo
from zojax.estimators._lozo import LozoMomentumState, lozo_m
from zojax.estimators._microbatch import microbatched
from zojax.estimators._private import privacy_spent, private
from zojax.estimators._probes import LearningRate, MuProbe, probe_mu, suggest_learning_rate
from zojax.estimators._ranking import consensus, ranks
from zojax.estimators._recipes import (
    consensus_hopping,
    eggroll,
    fgd,
    fzoo,
    lozo,
    mezo,
    qzo,
    rank_sgd,
    subzero,
)
from zojax.estimators._schemes import (
    Losses,
    Scheme,
    coordinate_sweep,
    forward_gradient,
    one_sided,
    population,
    two_sided,
)
from zojax.estimators._shaping import Shaping, clipped, difference, normalized, standardized

__all__ = [
    "Adaptive",
    "AnyEstimator",
    "BaselineState",
    "BlockState",
    "BudgetSplit",
    "Estimate",
    "Estimator",
    "HizooState",
    "Info",
    "Joint",
    "LearningRate",
    "Losses",
    "LozoMomentumState",
    "MuProbe",
    "Scheme",
    "Shaping",
    "advance",
    "block_sampling",
    "candidates",
    "clipped",
    "consensus",
    "consensus_hopping",
    "coordinate_sweep",
    "deepzero",
    "deepzero_by_layer",
    "diagnose",
    "difference",
    "draw_positions",
    "eggroll",
    "estimate",
    "fgd",
    "forward_gradient",
    "fzoo",
    "gradient",
    "grasp_scores",
    "hizoo",
    "init",
    "joint",
    "layer_counts",
    "losses_of_order",
    "lozo",
    "lozo_m",
    "mezo",
    "microbatched",
    "moving_baseline",
    "normalized",
    "num_coefficients",
    "num_queries",
    "num_samples",
    "numpy_function",
    "one_sided",
    "population",
    "privacy_spent",
    "private",
    "probe_mu",
    "qzo",
    "rank_sgd",
    "ranks",
    "split_budget",
    "standardized",
    "subzero",
    "suggest_learning_rate",
    "tell",
    "two_sided",
    "value_and_grad",
]
