"""How long a refusal says to wait, in all the forms that servers have for it."""

from __future__ import annotations

import httpx
import openai
import pytest

from anytime_graph.models import refusals

LARGE: list[tuple[str, int | None, bool]] = [
    (
        "<400> InternalError.Algo.InvalidParameter: Range of input length should be [1, 8192]",
        8192,
        True,
    ),
    ("Range of max_tokens should be [1, 8192]", 8192, False),
    (
        "Invalid request: Your request exceeded model token limit: 8192 (requested: 24808)",
        8192,
        True,
    ),
    ("model max length exceeded, max length:8192", 8192, True),
    ("Prompt exceeds max length", None, True),
    ("Prompt 超长", None, True),
    ("token数量超过上限。对话历史+问题的字数太多，需要精简输入", None, True),
    ("上下文过长，请减少输入", None, True),
    ("上下文长度超出模型最大限制 8192", 8192, True),
    ("输入长度超过限制", None, True),
    ("请求的 token 数超过模型上限 8192", 8192, False),
    ("超出最大上下文长度", None, True),
    ("length of prompt_tokens (24808) must be less than max_seq_len (8192).", 8192, True),
    (
        "The input (24808 tokens) is longer than the model's context length (8192 tokens).",
        8192,
        True,
    ),
    ("Input length 24808 exceeds the maximum length 8192", 8192, True),
    ("max_completion_tokens range is [2, 8192]", 8192, False),
    ("invalid params, context window exceeds limit", None, True),
    ("maximum context length is 8.192 tokens", 8192, True),
    ("maximum context length is 8 192 tokens", 8192, True),
    ("the context window of this model is 8k tokens", 8000, True),
    ("the context window of this model is 128k tokens", None, True),
    ("max_tokens must be greater than or equal to 1 and less than or equal to 8192", 8192, False),
]
"""As servers have said it, most of them in China."""


@pytest.mark.parametrize(("says", "most", "window"), LARGE)
def test_what_is_too_large_is_read_in_many_wordings(
    says: str, most: int | None, window: bool
) -> None:
    request = httpx.Request("POST", "http://x")
    response = httpx.Response(400, json={"error": {"message": says}}, request=request)
    error = openai.BadRequestError(says, response=response, body=None)
    assert refusals.too_large(error, 24_808) == (most, window)
    assert not refusals.unpaid(error)


@pytest.mark.parametrize(
    "says",
    [
        *(
            "您当前使用该API的频率过高，请降低频率",
            "余额不足或无可用资源包,请充值。",
            "Invalid API key",
        ),
        "Could not finish the message because max_tokens or model output limit was reached. Please try "
        "again with higher max_tokens.",
        "Invalid 'max_output_tokens': integer below minimum value. Expected a value >= 16, but got 8 instead.",
        "max_tokens must be at least 100",
        "Invalid 'tools': array too long. Expected an array with maximum length 128, but got 129 instead.",
        "Invalid 'metadata.why': string too long. Expected a string with maximum length 512.",
        "user: max length is 512 characters",
    ],
)
def test_other_wordings_tell_of_no_size(says: str) -> None:
    request = httpx.Request("POST", "http://x")
    error = openai.BadRequestError(says, response=httpx.Response(400, request=request), body=None)
    assert refusals.too_large(error, 24_808) is None


NOW = "Sat, 28 Nov 2015 12:00:00 GMT"
"""By the server's clock, which may be any."""

TOLD: list[tuple[dict[str, str], str, float | None]] = [
    ({"retry-after": "7"}, "", 7.0),
    ({"retry-after": "0.25"}, "", 0.25),
    ({"retry-after-ms": "1500", "retry-after": "2"}, "", 1.5),
    ({"retry-after": "Sat, 28 Nov 2015 12:00:20 GMT", "date": NOW}, "", 20.0),
    ({"retry-after": "Sat, 28 Nov 2015 11:59:00 GMT", "date": NOW}, "", 0.0),
    ({"retry-after": "soon"}, "", None),
    ({"retry-after": "1m30s"}, "", 90.0),
    ({"retry-after": "1448712010", "date": NOW}, "", 10.0),
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
    ({}, "Please try again in 500 milliseconds.", 0.5),
    ({}, "Please retry in 2 minutes.", 120.0),
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
