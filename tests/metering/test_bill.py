"""P5: what a call is charged, by what is known of it, in figures that can be worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk

from anytime_graph import Prices
from anytime_graph.metering.bill import Bill, bill
from anytime_graph.metering.meter import Meter
from anytime_graph.metering.meter import meter as meter_of
from anytime_graph.metering.request import Request
from anytime_graph.metering.streamed import StreamedReply
from tests.kit.server import serving

PRICES = Prices(input=2.0, output=8.0, cached_input=0.5, cache_write=2.5)
REQUEST = Request(prompt=[], max_input=1_000, max_output=100)


@pytest.fixture(scope="module")
def meter() -> Iterator[Meter]:
    with serving() as server:
        yield meter_of(server.model(), PRICES)


def arrived(text: str, *reports: dict[str, Any], n: int = 1) -> StreamedReply:
    streamed = StreamedReply(n=n, max_output=100 * n, run_id="run")
    for choice in range(n):
        id = f"run-{choice}" if n > 1 else "run"
        for word in text.split():
            streamed.feed(AIMessageChunk(word + " ", id=id))
        streamed.feed(AIMessageChunk("", id=id, response_metadata={"finish_reason": "stop"}))
    for report in reports:
        streamed.feed(AIMessageChunk("", usage_metadata=report))
    return streamed


def usage(input: int, output: int, total: int | None = None, **more: Any) -> dict[str, Any]:
    """A provider's report. more: details of the input; reasoning: of the output."""
    return {
        "input_tokens": input,
        "output_tokens": output,
        "total_tokens": input + output if total is None else total,
        "output_token_details": {"reasoning": more.pop("reasoning", 0)},
        "input_token_details": more,
    }


def charged(meter: Meter, streamed: StreamedReply, request: Request = REQUEST, **how: Any) -> Bill:
    return bill(meter, request, streamed, **{"ended": True, "overran": False, **how})


@pytest.mark.parametrize("overran", [False, True])
def test_a_cut_call_is_charged_its_reservation_not_what_was_seen(
    meter: Meter, overran: bool
) -> None:
    spend = charged(meter, arrived("so far so"), ended=False, overran=overran).spend
    assert (spend["input_tokens"], spend["output_tokens"], spend["calls"]) == (1_000, 100, 1)
    assert spend["usd"] == pytest.approx((1_000 * 2.5 + 100 * 8) / 1e6)


def test_a_call_without_a_report_is_charged_its_reservation(meter: Meter) -> None:
    got = charged(meter, arrived("so far so"))
    assert (got.spend["tokens"], got.reported) == (1_100, None)
    assert got.errors == [
        "the provider reported no usage; charged 1100 tokens, the whole reservation"
    ]


def test_what_overran_is_charged_piece_by_piece_shown_or_not(meter: Meter) -> None:
    streamed = StreamedReply(n=1, max_output=100, run_id="run")
    for piece in [*("the " * 50), *[""] * 7]:
        streamed.feed(AIMessageChunk(piece))
    spend = charged(meter, streamed, ended=False, overran=True).spend
    assert spend["output_tokens"] == 200 + 7
    assert charged(meter, streamed, ended=False).spend["output_tokens"] == 100


@pytest.mark.parametrize(
    ("details", "usd"),
    [
        ({}, 1_000 * 2 + 10 * 8),
        ({"cache_read": 600}, 400 * 2 + 600 * 0.5 + 10 * 8),
        ({"priority_cache_read": 600}, 400 * 2 + 600 * 0.5 + 10 * 8),
        ({"flex_cache_creation": 600}, 400 * 2 + 600 * 2.5 + 10 * 8),
        ({"cache_creation": 600}, 400 * 2 + 600 * 2.5 + 10 * 8),
        ({"cache_read": 300, "cache_creation": 200}, 500 * 2 + 300 * 0.5 + 200 * 2.5 + 10 * 8),
        ({"cache_read": 5_000}, 1_000 * 0.5 + 10 * 8),
        ({"cache_read": 900, "cache_creation": 900}, 900 * 0.5 + 100 * 2.5 + 10 * 8),
        ({"cache_read": -5, "cache_creation": -5}, 1_000 * 2 + 10 * 8),
    ],
)
def test_input_from_and_into_a_cache_has_its_own_price(
    meter: Meter, details: dict[str, int], usd: float
) -> None:
    got = charged(meter, arrived("so far so", usage(1_000, 10, **details)))
    assert got.spend["usd"] == pytest.approx(usd / 1e6)
    assert (got.spend["tokens"], got.reported, got.errors) == (1_010, 1_000, [])
    cached = details.get("cache_read", details.get("priority_cache_read", 0))
    assert got.spend["cached_tokens"] == min(max(0, cached), 1_000)


@pytest.mark.parametrize(("said", "booked"), [(30, 30), (70, 50), (-1, 0)])
def test_what_the_report_leaves_out_of_its_output_is_in_its_total(
    meter: Meter, said: int, booked: int
) -> None:
    """As with hidden reasoning: 20 + 10 tokens of 70 in all are 50 of output."""
    spend = charged(meter, arrived("so", usage(20, 10, total=70, reasoning=said))).spend
    assert (spend["output_tokens"], spend["tokens"]) == (50, 70)
    assert spend["reasoning_tokens"] == booked


@pytest.mark.parametrize(
    ("input", "output", "beyond"),
    [(1_000, 100, False), (1_001, 100, True), (1_000, 101, True), (1, 1, False)],
)
def test_a_report_beyond_the_reservation_is_booked_and_told(
    meter: Meter, input: int, output: int, beyond: bool
) -> None:
    got = charged(meter, arrived("so", usage(input, output)))
    assert got.spend["tokens"] == input + output
    told = f"the provider reported {input} + {output} tokens; reserved were 1000 + 100"
    assert got.errors == ([told] if beyond else [])


@pytest.mark.parametrize(
    ("report", "credible"),
    [
        (usage(20, 10**9 - 20), True),
        (usage(20, 10**9 - 19), False),
        (usage(20, 0), False),
        (usage(20, -3), False),
        (usage(-1, 30), False),
    ],
)
def test_a_report_that_cannot_be_is_not_believed(
    meter: Meter, report: dict[str, Any], credible: bool
) -> None:
    spend = charged(meter, arrived("so far so", report)).spend
    assert (spend["tokens"] == 1_100) != credible


def test_the_prompt_of_several_choices_is_billed_once_or_for_each(meter: Meter) -> None:
    """The docstring's prompt: of 100 to 130 tokens, for three choices."""
    request = Request(
        prompt=[AIMessageChunk("river " * 100)],
        max_input=390,
        max_output=300,
        n=3,
        prompt_copies=3,
    )
    for input, reported, once in ((130, 130, True), (391, 131, False)):
        got = charged(meter, arrived("so far so", usage(input, 12), n=3), request)
        assert (got.reported, got.billed_once) == (reported, once)
        assert got.spend["tokens"] == input + 12


def test_a_report_of_one_choice_of_several_is_charged_as_seen(meter: Meter) -> None:
    request = Request(prompt=[], max_input=390, max_output=300, n=3, prompt_copies=3)
    got = charged(meter, arrived("so far so " * 5, usage(100, 15), n=3), request)
    assert got.spend["input_tokens"] == 300
    assert 45 <= got.spend["output_tokens"] <= 300
    assert got.billed_once is False
    assert got.errors[0].startswith("the provider reported 100 + 15 tokens for 3 choices")
