"""What a call costs: by the provider's report if that is credible, else its whole reservation.

Pure functions: a request, what arrived of its reply, and how it ended make a bill.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from anytime_graph.budget import Spend
from anytime_graph.metering.meter import Meter
from anytime_graph.metering.request import Request
from anytime_graph.metering.streamed import StreamedReply, Usage, max_written_tokens
from anytime_graph.models import tokens

_INCREDIBLE = 10**9
"""Tokens that no call can have used."""
_PRICELESS = 100_000.0
"""Dollars that no call can have cost."""


@dataclass
class Bill:
    """spend: what the call is charged. reported, billed_once: see Receipt. errors: what is wrong
    with the provider's report."""

    spend: Spend
    reported: int | None = None
    billed_once: bool | None = None
    errors: list[str] = field(default_factory=list)


def bill(
    meter: Meter, request: Request, streamed: StreamedReply, ended: bool, overran: bool
) -> Bill:
    """The bill of a call that was made. ended: its stream came to its end. overran: more
    came than its cap allows."""
    return _no_less(meter, request, streamed, _by_tokens(meter, request, streamed, ended, overran))


def _no_less(meter: Meter, request: Request, streamed: StreamedReply, charged: Bill) -> Bill:
    """The bill at the cost that the provider itself states, where dollars count and that is more: it knows who
    served, and its fees. One that states less may leave out what is paid elsewhere."""
    stated, spend, errors = streamed.stated, charged.spend, list(charged.errors)
    if meter.prices is None or stated <= spend["usd"]:
        return charged
    if stated > _PRICELESS:
        errors.append("the provider stated a cost that no call can have; charged by its tokens")
        return replace(charged, errors=errors)
    held = meter.reservation(request.max_input, request.max_output)["usd"]
    if request.max_output is not None and stated > held:
        errors.append(f"the provider stated a cost of ${stated:g}; reserved were ${held:g}")
    return replace(charged, spend={**spend, "usd": stated}, errors=errors)


def _by_tokens(
    meter: Meter, request: Request, streamed: StreamedReply, ended: bool, overran: bool
) -> Bill:
    if not ended:
        return Bill(_unreported_spend(meter, request, streamed, overran))
    usage = streamed.usage
    if (doubt := _disbelief(request, streamed)) is not None or usage is None:
        spend = _unreported_spend(meter, request, streamed, overran)
        error = f"{doubt}; charged {spend['tokens']} tokens, the whole reservation"
        return Bill(spend, billed_once=_not_once(request, streamed), errors=[error])
    if request.n > 1:
        charged = _bill_choices(meter, request, streamed, usage)
    else:
        charged = Bill(_reported_spend(meter, usage), usage.input)
    if excess := _excess(request, charged.spend):
        charged.errors.append(excess)
    return charged


def _reported_spend(meter: Meter, usage: Usage) -> Spend:
    output = max(usage.output, usage.total - usage.input)
    cached = min(max(0, usage.cached), usage.input)
    written = min(max(0, usage.written), usage.input - cached)
    spend = meter.priced(usage.input, output, cached, written)
    return {**spend, "reasoning_tokens": min(max(0, usage.reasoning), output)}


def _unreported_spend(
    meter: Meter, request: Request, streamed: StreamedReply, overran: bool
) -> Spend:
    """The whole reservation; more if more arrived. Pieces count if each can be a token: of 310 "(" at
    a cap of 300, 310; of the 1,400 letters of 300 tokens, none."""
    cap, seen = request.max_output or 0, streamed.seen
    most, pieces = max_written_tokens(seen), streamed.pieces
    if overran:
        output = max(cap, most, pieces + streamed.unseen_chunks)
    else:
        text = tokens.min_tokens(seen) if cap else most
        output = max(cap, text, pieces if pieces <= most else 0)
    return meter.priced(request.max_input, output, written=request.max_input)


def _bill_choices(meter: Meter, request: Request, streamed: StreamedReply, usage: Usage) -> Bill:
    """Several choices: by the report, unless it counts one choice only; then by what arrived, with the
    prompt once for each choice.

    The prompt was surely billed once if the input is below n times the prompt's minimum. Take a prompt
    of 100 to 130 tokens and 3 choices: a report of 130 is below 300, so it was billed once. It was
    surely billed for each choice if the input is above the prompt's maximum: 390 is above 130.
    """
    n, spend = request.n, _reported_spend(meter, usage)
    paid, output = spend["input_tokens"], spend["output_tokens"]
    once = _not_once(request, streamed)
    if output < max(streamed.pieces, tokens.min_tokens(streamed.seen) // 2):
        shown = min(request.max_output or math.inf, tokens.max_tokens(streamed.seen))
        prompts = min(request.max_input, n * paid)
        seen = meter.priced(prompts, max(streamed.pieces, int(shown)), written=prompts)
        error = (
            f"the provider reported {paid} + {output} tokens for {n} choices of at least "
            f"{streamed.pieces}; charged {seen['tokens']}, as far as they were seen"
        )
        return Bill(seen, paid, False, [error])
    if once is None and paid < n * tokens.min_tokens(request.text):
        return Bill(spend, paid, True)
    if once is None and paid > request.max_input // request.prompt_copies:
        return Bill(spend, math.ceil(paid / n), False)
    return Bill(spend, paid, once)


def _not_once(request: Request, streamed: StreamedReply) -> bool | None:
    """`billed_once` before the report is read: False if the provider made too few choices."""
    return False if len(streamed.choices()) < request.n else None


def _disbelief(request: Request, streamed: StreamedReply) -> str | None:
    """Why a report is not credible: it is absent, has no numbers, or is below half of the fewest
    tokens that the texts can be."""
    usage = streamed.usage
    if streamed.unreadable:
        return "the end of the reply, with its usage report, could not be read"
    if usage is None:
        return "the provider reported no usage"
    if not streamed.closed:
        return "the provider reported no usage at the end"
    if max(vars(usage).values()) > _INCREDIBLE:
        return "the provider reported more tokens of usage than a call can have"
    for name, reported, least in (
        ("input", usage.input, tokens.min_tokens(request.text)),
        ("output", usage.output, tokens.min_tokens(streamed.seen) if request.n == 1 else 0),
    ):
        if reported < max(0, math.floor(least / 2)) or (reported <= 0 < least):
            return f"the provider reported {reported} {name} tokens for a text of at least {least}"
    return None


def _excess(request: Request, spend: Spend) -> str | None:
    """The error for a report above the reservation, which is booked all the same."""
    over_input = spend["input_tokens"] - request.max_input
    over_output = spend["output_tokens"] - (request.max_output or math.inf)
    if over_input <= 0 and over_output <= 0:
        return None
    return (
        f"the provider reported {spend['input_tokens']} + {spend['output_tokens']} tokens; "
        f"reserved were {request.max_input} + {request.max_output}"
    )
