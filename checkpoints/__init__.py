"""Checkpoints and ledger over one SQLite file or one PostgreSQL database."""

from anytime_graph.checkpoints.leases import ThreadBusy
from anytime_graph.checkpoints.ledger import Ledger
from anytime_graph.checkpoints.open import Checkpoints, open_checkpoints
from anytime_graph.checkpoints.schema import LedgerError

__all__ = ["Checkpoints", "Ledger", "LedgerError", "ThreadBusy", "open_checkpoints"]
