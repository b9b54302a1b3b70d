"""The tree of accounts: each call is booked once in each account that pays for it, whatever ends when."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from anytime_graph.budget import Spend, nothing
from anytime_graph.metering.account import Account


def tokens(n: int) -> Spend:
    return {**nothing(), "tokens": n, "calls": 1}


def digits(n: int, calls: int) -> list[int]:
    """How often each call is in an amount: 1 for its cost, 2 for its reservation."""
    assert 0 <= n < 4**calls
    return [n // 4**call % 4 for call in range(calls)]


@given(data=st.data())
def test_a_call_is_booked_once_in_every_account_above_it_whatever_ends_first(
    data: st.DataObject,
) -> None:
    """The nth call costs 4 ** n tokens, and twice that is reserved for it."""
    tree = [Account({"tokens": 10**6})]
    for _ in range(data.draw(st.integers(0, 5), "accounts")):
        parent = data.draw(st.sampled_from(tree), "parent")
        tool_call = data.draw(st.sampled_from([None, "a tool's"]), "of")
        tree.append(Account({"tokens": 10**6}, parent=parent, tool_call=tool_call))
    calls = data.draw(st.lists(st.sampled_from(tree), min_size=1, max_size=5), "calls")
    for n, account in enumerate(calls):
        account.hold(tokens(2 * 4**n))
    ended = data.draw(st.sets(st.sampled_from(range(len(tree)))), "ended") - {0}
    order = data.draw(st.permutations([*range(len(calls)), *(tree[i] for i in ended)]), "order")
    for end in order:
        if isinstance(end, Account):
            end.close()
        else:
            calls[end].settle(tokens(2 * 4**end), tokens(4**end))

    assert tree[0].left()["tokens"] == 10**6 - tree[0].spent["tokens"], "nothing stays reserved"
    for i, account in enumerate(tree):
        inside = [account in caller.chain for caller in calls]
        booked = digits(account.spent["tokens"], len(calls))
        assert [times > 0 for times in booked] == inside, "each once"
        if i in ended:  # what is due then is told by nobody
            continue
        due = digits(account.due["tokens"], len(calls))
        for caller, has, owed in zip(calls, booked, due, strict=True):
            below = caller.chain[: caller.chain.index(account)] if account in caller.chain else []
            within = bool(below) and below[-1].tool_call is account.tool_call is None
            assert owed in ({has} if within else {0, 1} if caller is account else {0})
