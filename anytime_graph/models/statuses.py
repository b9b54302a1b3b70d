"""The HTTP status that an error stands for by its words, where it came within a reply of status 200."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

_STANDS_FOR = {
    402: r"insufficient_(balance|credits?|funds)|billing\w*|arrearage|payment_required",
    429: r"rate_?limit\w*|too_?many_?requests\w*|\w*_?quota\w*|resource_?exhausted|throttling[\w.]*",
    503: r"overloaded\w*|\w*overloaded|\w*unavailable\w*",
    400: r"context_(length|window)_exceeded|invalid_?(request|prompt|argument|value|parameter)\w*|bad_?request\w*"
    r"|unsupported_\w+|failed_precondition|budget_exceeded|validation\w*",
    401: r"authentication\w*|(invalid|incorrect)_?api_?key|unauthenticated|unauthorized",
    403: r"permission\w*|forbidden|access_?denied\w*",
    404: r"((model|resource)_?)?not_?found\w*",
    413: r"request_too_large",
    500: r"(server|api|internal)_?error|internal\w*|timeout\w*|deadline\w*",
}
"""Words for an error, and the status that they stand for where it came within a reply of status 200."""
TOO_LARGE = (
    r"(?i)context.{0,12}(length|window|size|limit)|prompt (is )?too (long|large)|reduce the length"
    r"|max\w*_?tokens|maxoutputtokens|maximum.{0,20}tokens|too many (input )?tokens|tokens?.{0,20}exceed"
    r"|exceed.{0,60}tokens?|input (is )?too long|token limit|tokens you requested|(input|prompt|sequence) length"
    r"|(less|fewer) than \d+ tokens|max(imum)?[ _](seq\w*|model)?[ _]?len(gth)?\b|data length exceed"
    r"|上下文.{0,6}(长|超|限)|(超过|超出).{0,12}(上下文|长度|上限)"
    r"|(输入|提示词?|prompt|tokens?).{0,12}(超长|过长|超过|超出|超限)"
)
"""How servers say that a request is too large. In Chinese: the context, input or prompt is long, too long or
beyond a limit."""
UNPAID = (
    r"(?i)insufficient[_ ](quota|balance|credits?|funds)|billing[_ ](hard[_ ]limit|not[_ ]active)"
    r"|(credit|account) balance|arrearage|good standing|plan and billing|budget[_ ](has been )?exceeded"
    r"|exceeded[_ ](your[_ ])?(current|monthly)[_ ]\w*[_ ]?(quota|credits)|(credit|spending) limit|(more|available) credits"
    r"|payment required|specified \w+ usage limits|credits are (depleted|exhausted)"
    r"|余额不足|欠费"
)
"""How servers say that the account does not pay for the request."""
_SAYING = {
    402: UNPAID,
    429: r"(?i)rate.?limit|too many requests|quota|频率|频繁|并发|限流|请求过多",
    503: r"(?i)overloaded|at capacity|no (available|healthy) \w+|(temporarily|currently) unavailable",
    400: TOO_LARGE,
    401: r"(?i)(invalid|incorrect|missing|no) (api|auth)\w*.?key|unauthorized|no auth credentials|authentication",
    403: r"(?i)forbidden|permission|not have access|access denied",
    404: r"(?i)(model|deployment|endpoints?)\b.{0,80}\bnot? (found|exist)|(no|unknown) (such )?(model|endpoints?)\b"
    r"|not a valid model",
}
"""The same for messages of errors that have no such word, or only one of the most general ones."""


def status_in(body: Any, *words: Any) -> int | None:
    """The status that the body of an error, or a word for it, stands for; None if it is not told."""
    if isinstance(body, str):  # OpenRouter's client has it as text
        with suppress(ValueError, RecursionError):
            body = json.loads(body)
    for key in ("data", "error"):
        body = (isinstance(body, dict) and body.get(key)) or body
    if isinstance(body, dict):
        words += tuple(body.get(key) for key in ("code", "status", "type"))
        body = body.get("message")
    told = [str(word) for word in words if word]
    if number := next((int(word) for word in told if re.fullmatch(r"[345]\d\d", word)), None):
        return number
    known = (
        s for word in told for s, known in _STANDS_FOR.items() if re.fullmatch(known, word, re.I)
    )
    if (status := next(known, None)) not in (None, 400):
        return status
    said = body if isinstance(body, str) else ""
    return next((s for s, known in _SAYING.items() if re.search(known, said)), status)
