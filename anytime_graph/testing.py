"""A chat model that plays replies in order, to test an app without a provider."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import PrivateAttr, SkipValidation

Reply = str | AIMessage | Exception
"""What a call brings: a text, a message (with tool calls, say), or an error to raise."""


class ScriptedModel(BaseChatModel):
    """Plays `replies` in order, one a call; the last one again and again. Copies of the model, as by
    `bind` or `with_config`, share the order.

    replies: texts, messages, errors to raise, or functions from the messages of a call to one of these.
    max_tokens: of a reply; a longer one is cut, and ends with "length".

    A token of a reply is a word, and of a prompt four characters that are not blank. All calls report
    their usage; streams bring a word a chunk. `asked` has the messages of each call.

        model = ScriptedModel(replies=["one", "two", ValueError("no")])
    """

    replies: SkipValidation[Sequence[Reply | Callable[[list[BaseMessage]], Reply]]]
    max_tokens: int | None = None
    _places: Iterator[int] = PrivateAttr(default_factory=count)
    _asked: list[list[BaseMessage]] = PrivateAttr(default_factory=list)

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        if not self.replies or isinstance(self.replies, str):
            raise ValueError(f"replies={self.replies!r}: a list of one reply or more is needed")

    @property
    def asked(self) -> list[list[BaseMessage]]:
        """The messages of each call so far."""
        return self._asked

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        """The replies stay what they are: for a tool call, have one of them call the tool."""
        return self.bind(tools=tools, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._played(messages, kwargs))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        message = self._played(messages, kwargs)
        for word in _words(message.text):
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=word, id=message.id))
            if run_manager:
                run_manager.on_llm_new_token(word, chunk=chunk)
            yield chunk
        rest = message.model_copy(update={"content": ""})
        yield ChatGenerationChunk(message=AIMessageChunk(**rest.model_dump(exclude={"type"})))

    def _played(self, messages: list[BaseMessage], options: dict[str, Any]) -> AIMessage:
        """The next reply, cut at the cap, with its usage."""
        self._asked.append(messages)
        reply = self.replies[min(next(self._places), len(self.replies) - 1)]
        if callable(reply):
            reply = reply(messages)
        if isinstance(reply, Exception):
            raise reply
        said = AIMessage(reply) if isinstance(reply, str) else reply
        words, cap = _words(said.text), options.get("max_tokens", self.max_tokens)
        cut = cap is not None and len(words) > cap
        finish = "length" if cut else "tool_calls" if said.tool_calls else "stop"
        changes: dict[str, Any] = {
            "response_metadata": {"finish_reason": finish, **said.response_metadata},
            "usage_metadata": said.usage_metadata or _usage(messages, words[:cap]),
        }
        return said.model_copy(update=changes | ({"content": "".join(words[:cap])} if cut else {}))


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+\s*$|\s*\S+|\s+", text)


def _usage(messages: Sequence[BaseMessage], words: Sequence[str]) -> UsageMetadata:
    read = sum(len("".join(m.text.split())) for m in messages) // 4 + 1
    written = max(1, len(words))
    return UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
