"""Cutting a reply at a token."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

from anytime_graph.benchmark.recording import Take, heard

How = Literal["whole", "pieces", "tokenizer", "estimate"]
_ENDS = 2
"""Tokens that a provider may bill and not show, such as the one that ends a reply."""


class Prefix(NamedTuple):
    """What stands before a cut, and how it was found."""

    text: str
    how: How


class Tokenizer(Protocol):
    """tiktoken's encodings are such."""

    def encode(self, text: str, *, disallowed_special: tuple[()]) -> list[int]: ...

    def decode(self, tokens: list[int]) -> str: ...


def tokenizer(model: str) -> Tokenizer | None:
    """OpenAI's for the model of this name; None if it is not known, or not to be had."""
    import tiktoken

    try:
        return tiktoken.encoding_for_model(model)
    except Exception:  # an unknown model is a KeyError; offline it is the network library's own
        return None


def cut(take: Take, generated: int, at: int, exact: Tokenizer | None = None) -> Prefix:
    """The first `at` of the `generated` tokens of a reply.

    By the pieces of its stream, if there were as many as tokens; else by the tokenizer, if there is
    one; else at the same share of its characters, which is an estimate.
    """
    pieces = heard(take)
    text = "".join(pieces)
    if at >= generated:
        return Prefix(text, "whole")
    if abs(generated - len(pieces)) <= _ENDS:
        return Prefix("".join(pieces[:at]), "pieces")
    if exact is not None:
        told = exact.decode(exact.encode(text, disallowed_special=())[:at])
        return Prefix(told.rstrip("\ufffd"), "tokenizer")
    return Prefix(text[: round(len(text) * at / generated)], "estimate")
