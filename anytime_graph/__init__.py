"""Anytime reasoning for LangGraph: give a chat model a budget, get the best answer within it."""

from pathlib import Path as _Path

# In a checkout nodes/ and checkpoints/ stand beside this folder, in a wheel within it.
if not (_Path(__file__).parent / "nodes").is_dir():
    __path__.append(str(_Path(__file__).parents[1]))

from anytime_graph.budget import Budget, BudgetTooSmall, NoAnswer, Prices, Spend, add_spend
from anytime_graph.checkpoints import LedgerError, ThreadBusy, open_checkpoints
from anytime_graph.constraints import Constraints
from anytime_graph.graph import Context, afork, create_anytime_graph, fork
from anytime_graph.interrupt import interruptible
from anytime_graph.metering.near_end import NearEnd
from anytime_graph.metering.own_process import in_process
from anytime_graph.metering.quota import Quota, QuotaExceeded
from anytime_graph.planning.moves import (
    Choose,
    Critique,
    Draft,
    Evolve,
    Learn,
    Merge,
    Move,
    Refine,
    Stop,
    View,
)
from anytime_graph.planning.profiles import load_profile, profile_of, save_profile
from anytime_graph.planning.until import Until
from anytime_graph.run.pairs import Candidate, Pair
from anytime_graph.run.state import Output
from anytime_graph.scoring import Judge, Score
from anytime_graph.warm_up import Warmed, WarmUp, warm_up

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "BudgetTooSmall",
    "Candidate",
    "Choose",
    "Constraints",
    "Context",
    "Critique",
    "Draft",
    "Evolve",
    "Judge",
    "Learn",
    "LedgerError",
    "Merge",
    "Move",
    "NearEnd",
    "NoAnswer",
    "Output",
    "Pair",
    "Prices",
    "Quota",
    "QuotaExceeded",
    "Refine",
    "Score",
    "Spend",
    "Stop",
    "ThreadBusy",
    "Until",
    "View",
    "WarmUp",
    "Warmed",
    "__version__",
    "add_spend",
    "afork",
    "create_anytime_graph",
    "fork",
    "in_process",
    "interruptible",
    "load_profile",
    "open_checkpoints",
    "profile_of",
    "save_profile",
    "warm_up",
]
