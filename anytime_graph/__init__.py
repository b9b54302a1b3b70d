"""Anytime reasoning for LangGraph: give a chat model a budget, get the best answer within it."""

from anytime_graph.budget import Budget, BudgetTooSmall, NoAnswer, Prices
from anytime_graph.graph import Context, create_anytime_graph
from anytime_graph.interrupt import interruptible
from anytime_graph.scoring import Constraints, Score
from anytime_graph.strategies import Critique, Draft, Move, Refine, Stop, View

__all__ = [
    "Budget",
    "BudgetTooSmall",
    "Constraints",
    "Context",
    "Critique",
    "Draft",
    "Move",
    "NoAnswer",
    "Prices",
    "Refine",
    "Score",
    "Stop",
    "View",
    "create_anytime_graph",
    "interruptible",
]
