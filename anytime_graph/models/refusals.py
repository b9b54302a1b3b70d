"""What a server's refusal says: how long to wait, how large a request may be, which part it does not take.

Pure functions of the error that a client raised. What is learned from them is kept in
`metering/learned.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from anytime_graph.models import providers, statuses
from anytime_graph.text import clip

_OVERLOADED = (429, 503, 529)
_SHAPELESS = (400, 402, 404, 413, 422)
"""Statuses that may blame the form or the size of a request."""
_UNITS = {
    "h": 3600.0,
    "m": 60.0,
    "s": 1.0,
    "ms": 0.001,
    "milli": 0.001,
    "us": 1e-6,
    "µs": 1e-6,
    "ns": 1e-9,
}
_DURATION = re.compile(r"([\d.]+)\s*(h|ms|milli|us|µs|ns|m|s)(?![a-z])")
_IN_TEXT = re.compile(
    r"(?i)(?:try again|retry) in ((?:[\d.]+\s*(?:ms|milli|h|m|s))+)|retry_?delay\W+(?:seconds\W+)?([\d.]+)"
)
_SIZE = re.compile(statuses.TOO_LARGE)
_UNPAID = re.compile(statuses.UNPAID)
_FILTERS = re.compile(
    r"(?i)\w*(content_?(filter|policy)|responsible_?ai|data_?inspection|moderation|safety)\w*"
)
_FILTERED = re.compile(
    r"(?i)content (violates|exists risk)|(invalid prompt: )?your (prompt|request) was (flagged|rejected)"
    r"|the (response|prompt|request) was (filtered|flagged)"
)
"""How servers begin to say that they do not answer a prompt for what it says."""
_PER_DAY = re.compile(r"(?i)PerDay|limit: 0\b")
"""How Google says that a limit lasts longer than the wait that it names."""
_NEVER = re.compile(r"(?i)request (is )?too large|must be reduced")
"""What a rate limit says to one request that is larger than all that it allows in a minute."""
_WINDOW = re.compile(r"(?i)context|prompt|input|model (token|max)|上下文|输入|提示")
_UNKNOWN = re.compile(
    r"(?i)(un(known|recognized|supported|expected)|not (supported|permitted|allowed)|extra (input|field)s?)"
    r"\W.{0,60}max_\w*tokens"
    r"|max_\w*tokens\W[^\d]{0,40}(un(known|recognized|supported|expected)"
    r"|not (supported|permitted|allowed)|extra (input|field)s?)"
)
_NUMBER = r"(\d{1,3}(?:[.,_'\u2019 \u00a0\u202f]\d{3})+(?!\d)|\d[\d,_]*+)(?:\s?(k)(?![a-z]))?"
_MOST = re.compile(
    r"(?i)(?:maximum|limit|at most|up to|supports?|less than or equal to|<=|>(?!=)|context (?:size|window|length)"
    r"|allowed|\[\d+,|inclusive\) to|less than|cannot exceed|context length of|can only afford|max length|上限|最大|限制|不能超过)"
    rf"[^\d]{{0,60}}?{_NUMBER}(?!\s*\+)|{_NUMBER}\W+(?:tokens? )?maximum"
)
"""Limits as servers write them: 8192, 8,192, 8.192 or 8k."""
_OTHER_SIZE = re.compile(
    r"(?i)(array|string|list|object|dict\w*) (is )?too (long|large)|\d (characters|chars|bytes|items|elements)\b"
)
"""Limits of other things than tokens."""
_TOO_SMALL = re.compile(
    r"(?i)too (small|low|few|short)|below (the )?minimum|(higher|larger|increase) max_\w*tokens|greater[ _]than"
    r"|at least|>=|minimum"
)
_NOT_TOO_SMALL = re.compile(
    r"(?i)exceed|reduce|too (long|large|many|big|high)|maximum|less[ _]than|lower|<=|at most"
)
"""What a refusal says if its cap was too small, unless it also says the contrary."""
_CAP = re.compile(r"(?i)max_?\w*tokens|output[_ ]tokens")
_GUESSABLE = (400, 413, 422)
"""Statuses of refusals that may be about the size without a word of it."""
_OF_SIZE = re.compile(
    r"(?i)\b(too|so) (large|long|big|many|much)|exceed|\blimit|\blength|\bsize|capacity|memory|\bfits?\b"
    r"|larger|longer|maximum|大|长|超"
)
_OF_OTHERS = re.compile(
    r"(?i)un(known|recogni[sz]ed|supported|expected)|not (supported|permitted|allowed|valid|acceptable)|does not support"
    r"|invalid (value|type|schema|json|model|role|image|tool)|must (be|contain|have|alternate)|required|missing"
    r"|api.?key|polic(y|ies)|safety"
)
"""What a refusal says that is about another fault than the size."""
_SAID = 400
"""Characters in which a server has said what is wrong; an echo of the prompt comes later."""
_READ = 4_000
"""Characters of a message that are read, at its head and at its end."""
_LONGEST_WAIT = 30.0
_FAULTS = (ValueError, TypeError, LookupError, AttributeError)
"""Errors that no waiting mends."""
_LEAST = 64
"""A smaller number in such a message is no limit of a request."""


class TooLarge(NamedTuple):
    """most: tokens that the server allows, where it says so. window: for prompt and reply together."""

    most: int | None
    window: bool


def words(error: BaseException) -> str:
    """What the server said. It may repeat a prompt, so it is read and never kept, and not all of it."""
    response: Any = getattr(error, "response", None)
    body = ""
    with suppress(Exception):  # there may be no response, or a stream that was not read
        body = str(response.text)
    message = re.sub(r"^Error code: \d+ - ", "", str(error))  # as OpenAI's clients begin it
    return f"{clip(message, _READ)}\n{clip(body, _READ)}"


def overloaded(error: BaseException) -> bool:
    """Whether the server refused the request only because of its load or a rate limit."""
    return providers.status(error) in _OVERLOADED


def unpaid(error: BaseException) -> bool:
    """Whether the account does not pay for the request, so that no waiting helps. Google says the same of a
    limit by the minute, with the seconds to wait."""
    status, said = providers.status(error), words(error)
    if status == 402:
        return not _SIZE.search(said)
    if status == 429 and _PER_DAY.search(said):
        return True
    if status not in (400, 412, 429) or not _UNPAID.search(said[:_SAID]):
        return False
    return not (_IN_TEXT if status == 429 else _SIZE).search(said)


def filtered(error: BaseException) -> str | None:
    """The word for why the provider does not answer this prompt, if it has read it and refused what it says. Azure
    bills such prompts, and xAI a fee. What the server says may repeat the prompt, so only its beginning counts."""
    if providers.status(error) not in (400, 403, 422):
        return None
    told = _fields_of(error)
    inner = told.get("innererror")
    codes = [
        told.get("code"),
        told.get("type"),
        inner.get("code") if isinstance(inner, dict) else None,
    ]
    words = [code for code in codes if isinstance(code, str) and _FILTERS.fullmatch(code)]
    said = told.get("message") or told.get("error") or ""
    return next(iter(words), "filtered" if _FILTERED.match(str(said)) else None)


def wrote(error: BaseException) -> bool:
    """Whether the model had written a reply before it was refused, as one that is no valid JSON at Groq."""
    return "failed_generation" in _fields_of(error)


def _fields_of(error: BaseException | None) -> Mapping[str, Any]:
    """What the body of a refusal holds."""
    body: Any = getattr(error, "body", None)
    with suppress(Exception):  # there may be no response, or one that is no JSON
        body = body or cast(Any, error).response.json()
    inner = body.get("error") if isinstance(body, dict) else None
    body = inner if isinstance(inner, dict) else body
    return body if isinstance(body, dict) else {"message": body}


def about_form(error: BaseException) -> bool:
    """Whether the refusal may be about the form or the size of the request."""
    return providers.status(error) in _SHAPELESS


def too_large(error: BaseException, asked: int) -> TooLarge | None:
    """Why a request for `asked` tokens in all was too large; None if the refusal is not about that.

    "maximum context length is 8192 tokens. However, you requested 24808" is TooLarge(8192, True).
    """
    said = words(error)
    about_tokens = _SIZE.search(said) and not _OTHER_SIZE.search(said[:_SAID])
    sized = about_form(error) and about_tokens and not _UNKNOWN.search(said)
    if not sized and not (providers.status(error) in (413, 429) and _NEVER.search(said)):
        return None
    found = ((a or b, k or kilo) for a, k, b, kilo in _MOST.findall(said))
    numbers = [int(re.sub(r"\D", "", n)[:12]) * (1_000 if k else 1) for n, k in found]
    allowed = [n for n in numbers if _LEAST <= n < asked]
    if not allowed and too_small(error):
        return None
    return TooLarge(min(allowed, default=None), bool(_WINDOW.search(said)))


def perhaps_too_large(error: BaseException) -> bool:
    """Whether a refusal may be about the size, although it gives no figure: it says "too large", or nothing at
    all of what is wrong."""
    said = words(error)[:_SAID]
    if providers.status(error) not in _GUESSABLE or too_small(error):
        return False
    if providers.status(error) == 413 or _OF_SIZE.search(said):
        return True
    return not _OF_OTHERS.search(said)


def too_small(error: BaseException) -> bool:
    """Whether the server refused a request because something in it is too small."""
    said = words(error)[:_SAID]
    return bool(_TOO_SMALL.search(said)) and not _NOT_TOO_SMALL.search(said)


def cap_too_small(error: BaseException) -> bool:
    """Whether that is the output that the request allowed."""
    return too_small(error) and bool(_CAP.search(words(error)[:_SAID]))


def told_wait(error: BaseException) -> float | None:
    """Seconds that the server asks to wait; None if it does not say.

    Of several limits those count that are used up: "x-ratelimit-remaining-tokens: 0" beside
    "x-ratelimit-reset-tokens: 6m0s" is 360 seconds.
    """
    headers = _headers(error)
    now = _date(headers.get("date")) or datetime.now(UTC)
    if (ms := _number(headers.get("retry-after-ms"))) is not None:
        return ms / 1000
    if (wait := _until(headers.get("retry-after", ""), now)) is not None:
        return wait
    resets: dict[bool, list[float]] = {True: [], False: []}
    for name, value in headers.items():
        limits = "ratelimit" in name and "reset" in name
        if limits and (seconds := _until(value, now)) is not None:
            remaining = headers.get(name.replace("reset", "remaining"))
            resets[_number(remaining) == 0].append(seconds)
    if resets[True]:
        return max(resets[True])
    if resets[False]:
        return min(resets[False])
    if (match := _IN_TEXT.search(words(error))) is not None:
        return _number(match[2]) if match[2] else _duration(match[1])
    return None


def retry_after(error: Exception) -> float:
    """Seconds to hold back before the next call: what the server asks for, else half a second if it is
    overloaded or gone, and 0 if the request itself was at fault."""
    status = providers.status(error)
    if status is None:
        return 0.0 if isinstance(error, _FAULTS) else 0.5
    if (told := told_wait(error)) is not None:
        return min(told, _LONGEST_WAIT)
    return 0.5 if providers.transient(status) else 0.0


def to_check(error: BaseException, model: Any) -> str:
    """What to check after a refusal that every other request would get too; "" after another one."""
    status = providers.status(error)
    name = repr(providers.model_name(model) or type(model).__name__)
    key = next(iter(getattr(model, "lc_secrets", {}).values()), "its key")
    if unpaid(error):
        return f"; the account of {key} does not pay for it: check its credit, plan and limits"
    if status in providers.NO_ENTRY:
        asked = "is the key right" if status == 401 else f"may the key use {name}"
        return f"; check {key}: {asked}?"
    if status == providers.NO_SUCH_THING:
        host = urlsplit(providers.address(model)).hostname
        return f"; check the model's name, {name}" + (f", and its address, {host}" if host else "")
    return ""


def _headers(error: BaseException | None) -> Mapping[str, str]:
    while error is not None:
        response: Any = getattr(error, "response", None)
        with suppress(Exception):
            of_aws = isinstance(response, dict)
            headers = response["ResponseMetadata"]["HTTPHeaders"] if of_aws else response.headers
            if found := {str(k).lower(): str(v) for k, v in headers.items()}:
                return found
        error = error.__cause__ or error.__context__  # which Ollama's client hides
    return {}


def _number(text: str | None) -> float | None:
    """A plain number, 0 or more."""
    text = (text or "").strip()
    return float(text) if re.fullmatch(r"\d{1,15}(\.\d*)?|\.\d+", text) else None


def _duration(text: str) -> float | None:
    """As Go writes it: "1m30s" is 90."""
    parts = _DURATION.findall(text[:100])
    with suppress(ValueError):
        return sum(float(n) * _UNITS[unit] for n, unit in parts) if parts else None
    return None


def _until(text: str, now: datetime) -> float | None:
    """Seconds until a reset, given as a duration, as seconds, or as a time, also a Unix time in seconds
    or milliseconds."""
    seconds = _number(text)
    if seconds is None and (seconds := _duration(text)) is None:
        date = _date(text)
        return None if date is None else max(0.0, (date - now).total_seconds())
    if seconds > 1e11:
        seconds /= 1000
    return max(0.0, seconds - now.timestamp()) if seconds > 1e9 else seconds


def _date(text: str | None) -> datetime | None:
    """A date of HTTP or of ISO 8601."""
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        with suppress(ValueError, TypeError, IndexError):
            found = read((text or "").strip().replace("Z", "+00:00"))
            return found if found.tzinfo else found.replace(tzinfo=UTC)
    return None
