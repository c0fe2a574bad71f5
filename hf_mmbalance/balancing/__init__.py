"""Representation-level balancing: methods that change how the towers learn, one file each, built on one hook.

Importing the package registers all methods.
"""

from hf_mmbalance.balancing import (  # noqa: F401  # each registers its methods
    agm,
    dgl,
    frozen,
    inforeg,
    joint,
    mcr,
    mla,
    mlb,
    mmpareto,
    modality_dropout,
    ogm,
    olm,
    opm,
    pdf,
    qmf,
    reconboost,
    remix,
)
from hf_mmbalance.balancing.method import BalancingMethod
from hf_mmbalance.balancing.registry import BALANCING_METHODS, build_method, options_of, register_balancing_method


__all__ = ["BALANCING_METHODS", "BalancingMethod", "build_method", "options_of", "register_balancing_method"]
