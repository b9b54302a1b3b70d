"""How long a refusal says to wait, in all the forms that servers have for it."""

from __future__ import annotations

import httpx
import openai
import pytest

from anytime_graph.models import refusals

NOW = "Sat, 28 Nov 2015 12:00:00 GMT"
"""By the server's clock, which may be any."""

TOLD: list[tuple[dict[str, str], str, float | None]] = [
    ({"retry-after": "7"}, "", 7.0),
    ({"retry-after": "0.25"}, "", 0.25),
    ({"retry-after-ms": "1500", "retry-after": "2"}, "", 1.5),
    ({"retry-after": "Sat, 28 Nov 2015 12:00:20 GMT", "date": NOW}, "", 20.0),
    ({"retry-after": "Sat, 28 Nov 2015 11:59:00 GMT", "date": NOW}, "", 0.0),
    ({"retry-after": "soon"}, "", None),
    ({"retry-after": "-5"}, "", None),
    ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}, "", 360.0),
    (
        {
            "x-ratelimit-remaining-tokens": "0",
            "x-ratelimit-reset-tokens": "1m30.5s",
            "x-ratelimit-remaining-requests": "99",
            "x-ratelimit-reset-requests": "8.64s",
        },
        "",
        90.5,
    ),
    (
        {
            "anthropic-ratelimit-requests-remaining": "0",
            "anthropic-ratelimit-requests-reset": "2015-11-28T12:00:30Z",
            "date": NOW,
        },
        "",
        30.0,
    ),
    ({"x-ratelimit-reset": "1448712010", "date": NOW}, "", 10.0),
    ({"x-ratelimit-reset": "1448712010000", "date": NOW}, "", 10.0),
    ({}, "Rate limit reached. Please try again in 1m2.5s.", 62.5),
    ({}, "Please try again in 20ms.", 0.02),
    ({}, '{"retryDelay": "34s"}', 34.0),
    ({}, "Slow down.", None),
]


@pytest.mark.parametrize(("headers", "text", "seconds"), TOLD)
def test_a_wait_is_read_in_every_form(
    headers: dict[str, str], text: str, seconds: float | None
) -> None:
    request = httpx.Request("POST", "http://x")
    response = httpx.Response(429, headers=headers, text=text, request=request)
    error = openai.RateLimitError(text, response=response, body=None)
    assert refusals.told_wait(error) == (None if seconds is None else pytest.approx(seconds))
