"""Decides by TreeQuest's AB-MCTS-A, from the package `treequest`, which answer of a run to build on."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from importlib.util import find_spec
from typing import Any

from anytime_graph.run.pairs import Candidate

KEPT = 128
"""Answers that a run keeps for the tree; of more, the worst are forgotten."""
_ACTIONS = ["answer"]
_DRAWING = threading.Lock()


def require_treequest() -> None:
    """Raises ImportError if treequest is not installed."""
    if find_spec("treequest") is None:
        raise ImportError("strategy='ab_mcts': pip install treequest")


def expanded(candidates: Sequence[Candidate]) -> int | None:
    """The id of the answer to refine next, or None for a draft.

    The tree is made from the candidates each time, and draws by a seed that these give. So the same
    answers lead to the same move, in a run that is resumed too.
    """
    from treequest import ABMCTSA

    tree, nodes = ABMCTSA[int](), dict[int, Any]()
    state = tree.init_tree()
    for c in candidates:
        parent = next((nodes[i] for i in c["parents"] if i in nodes), state.tree.root)
        state.thompson_states.get_or_create(parent, _ACTIONS)
        trial = state.trial_store.create_trial(parent, _ACTIONS[0])
        tree.tell(state, trial.trial_id, (c["id"], c["score"] or 0.0))
        nodes[c["id"]] = parent.children[-1]
    with seeded(candidates):
        _, trial = tree.ask(state, _ACTIONS)
    return trial.parent_state


@contextmanager
def seeded(candidates: Sequence[Candidate]) -> Iterator[None]:
    """Seed the generator that treequest draws from, which is numpy's own, and put it back."""
    import numpy

    known = [(c["id"], c["parents"], c["score"], c["text"]) for c in candidates]
    seed = int.from_bytes(sha256(repr(known).encode(errors="replace")).digest()[:4])
    with _DRAWING:
        before = numpy.random.get_state()
        numpy.random.seed(seed)
        try:
            yield
        finally:
            numpy.random.set_state(before)
