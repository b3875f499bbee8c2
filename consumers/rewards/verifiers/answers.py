"""Final answers as text: where a response states one, and the forms of it that are no formulas.

Pure, and without the formula parser. What real reference columns hold (MATH, GSM8K, AIME, DAPO-Math, multiple choice)
is bare LaTeX, plain numbers, words and option letters; a formula parser reads a word as the product of its letters
(`listen` = `silent`), drops units, and knows no number bases or times of day.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

from consumers.rewards.verifiers.units import PERCENT, currency_of, split_unit, without_currency

_BOXES: Final = ("\\boxed", "\\fbox", "\\framebox")
_BETWEEN_BOXES: Final = re.compile(r"[\s$.;]*(?:,|\\text\{\s*)?\s*(?:and|or|,)?\s*\}?[\s$]*")
_STATED: Final = re.compile(r"(?i)(?:\banswer\s*(?:is|:|=)|####)\s*:?")
_WRAPPED: Final = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|mathrm|mathbf|mathsf|mathit|mbox|operatorname)\s*\{([^{}]*)\}"
)
_SPACING: Final = re.compile(r"\\[,;:!> ]|\\q?quad\b|~|\\left(?![a-z])|\\right(?![a-z])|\\displaystyle\b")
_WORDS: Final = re.compile(r"[A-Za-z][A-Za-z'’-]*(?:[ ,.]+[A-Za-z][A-Za-z'’-]*)*")
_FORMULA_WORDS: Final = frozenset(
    {"pi", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "lg", "exp", "sqrt", "inf", "infty", "deg", "mod"}
)
_CHOICE: Final = re.compile(
    r"(?:option|choice)?\s*[([]?\s*([A-Za-z])\s*(?:[)\].:](?:\s+.*)?)?", re.DOTALL | re.IGNORECASE
)
_BARE_CHOICE: Final = re.compile(r"[([]?\s*([A-J])\s*[)\].]?|\(([A-J])\)\s.*", re.DOTALL)
_TIME: Final = re.compile(r"0?(\d{1,2}):([0-5]\d)\s*([ap])?\.?(m?)\.?", re.IGNORECASE)
_BASED: Final = re.compile(r"([0-9A-Za-z]+)\s*_\s*(?:\{\s*(\d+)\s*\}|(\d+))")
_SCIENTIFIC: Final = re.compile(r"(?<![\w.])([+-]?(?:\d+\.?\d*|\.\d+))[eE]([+-]?\d+)(?!\w)")
_QUANTITY: Final = re.compile(r"(?:\\\$|[$€£¥₹])?[-+]?(?:\d[\d.,/]*)\D{0,24}$")
_GROUPED: Final = re.compile(r"[-+]?\d{1,3}(?:(?:\{,\}|,|\\,|\\ |\\!| |’|'|,\\!)\d{3})+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: `kind` says how it is compared, `text` is its normal form, `unit` what stands behind a number."""

    kind: Literal["formula", "words", "choice", "time", "based"]
    text: str
    unit: str = ""


def stated_answer(text: str) -> str | None:
    """What a response gives as its answer: its last box, else what follows its last "answer is", "Answer:" or `####`.

    Boxes that only a comma, "and" or "or" parts are one answer. None: it states none.
    """
    boxes = _boxed(text)
    if boxes:
        joined = [boxes[-1]]
        for box in reversed(boxes[:-1]):
            between = text[box[1] : joined[0][0]]
            if len(between) > 24 or not between.strip("$ \n.") or not _BETWEEN_BOXES.fullmatch(between):
                break
            joined.insert(0, box)
        return ", ".join(content for _, _, content in joined)
    stated = list(_STATED.finditer(text))
    if not stated:
        return None
    line = text[stated[-1].end() :].strip().split("\n", 1)[0].strip()
    return _without_full_stop(line.strip("*").strip()) or None


def last_quantity(text: str) -> str:
    """The number that a text ends with and what stands behind it, which may be its unit; empty where there is none."""
    found = _QUANTITY.search(_without_full_stop(" ".join(text.split())))
    return found[0] if found else ""


def is_boxed(text: str) -> bool:
    """Whether a response has a box that is closed."""
    return bool(_boxed(text))


def reference_answer(reference: str) -> Answer:
    """A reference column's entry, boxed or bare."""
    return read_answer(stated_answer(reference) or reference, expected=None)


def read_answer(text: str, expected: Answer | None) -> Answer:
    """`text` in normal form; a response's answer is read as the kind that its reference (`expected`) is."""
    bare = _bare(text)
    currency = currency_of(bare)
    bare = without_currency(bare).replace("$", " ").strip()
    plain = _without_full_stop(_plain(bare))
    if expected is None or expected.kind == "choice":
        pattern = _BARE_CHOICE if expected is None else _CHOICE
        if found := pattern.fullmatch(plain):
            return Answer("choice", next(letter for letter in found.groups() if letter).upper())
    if (expected is None or expected.kind == "time") and (found := _TIME.fullmatch(plain)):
        return Answer("time", f"{int(found[1])}:{found[2]}{(found[3] or '').lower()}")
    if (expected is None or expected.kind in ("based", "formula")) and (found := _BASED.fullmatch(_unspaced(plain))):
        return Answer("based", found[1].upper().lstrip("0"), found[2] or found[3])
    if (expected is not None and expected.kind == "words") or _is_words(bare, plain):
        return Answer("words", _folded(plain))
    formula, unit = split_unit(_without_full_stop(bare), None if expected is None else bool(expected.unit))
    return Answer("formula", _numeral(formula), unit or currency)


def same_text(one: Answer, other: Answer) -> bool:
    """Whether both are written alike, spacing and decoration aside."""
    return _unspaced(_plain(one.text)) == _unspaced(_plain(other.text))


def units_differ(one: Answer, other: Answer) -> bool:
    """Whether both name a unit, and not the same. A unit that only one of them names is taken as understood."""
    return bool(one.unit and other.unit and one.unit != other.unit)


def is_percentage_of(one: Answer, other: Answer) -> bool:
    """Whether `one` is a percentage and `other` a number, so that 75 % is compared with 0.75 as well as with 75."""
    return one.unit == PERCENT and not other.unit


def _boxed(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of every box with balanced braces."""
    found = []
    for name in _BOXES:
        start = text.find(name)
        while start >= 0:
            opening = start + len(name)
            while opening < len(text) and text[opening] == " ":
                opening += 1
            end = _closing(text, opening)
            if end is not None:
                found.append((start, end + 1, text[opening + 1 : end]))
            start = text.find(name, start + len(name))
    return sorted(found)


def _closing(text: str, opening: int) -> int | None:
    """Where the brace at `opening` is closed."""
    if opening >= len(text) or text[opening] != "{":
        return None
    depth = 0
    for place in range(opening, len(text)):
        if text[place] == "{" and text[place - 1] != "\\":
            depth += 1
        elif text[place] == "}" and text[place - 1] != "\\":
            depth -= 1
            if depth == 0:
                return place
    return None


def _bare(text: str) -> str:
    """Without the delimiters of a formula and line breaks."""
    text = " ".join(text.split())
    for first, last in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**")):
        if len(text) > len(first) + len(last) and text.startswith(first) and text.endswith(last):
            inner = text[len(first) : -len(last)]
            if first not in inner or first in ("\\(", "\\["):
                text = inner.strip()
    return text


def _plain(text: str) -> str:
    """Without the commands that only set type."""
    while (unwrapped := _WRAPPED.sub(r"\1", text)) != text:
        text = unwrapped
    return " ".join(_SPACING.sub(" ", text).split())


def _is_words(bare: str, plain: str) -> bool:
    """Whether an answer is made of words: said to be text, or with a word that no formula has."""
    if not _WORDS.fullmatch(plain):
        return False
    words = re.split(r"[ ,.]+", plain)
    if all(word.lower() in _FORMULA_WORDS or len(word) == 1 for word in words):
        return False
    in_text = _WRAPPED.fullmatch(bare) is not None
    return in_text or any(
        (len(word) >= 3 and re.search(r"[aeiouyAEIOUY]", word)) or re.fullmatch(r"[A-Z][a-z]+", word) for word in words
    )


def _folded(plain: str) -> str:
    return re.sub(r"[\s,.;:!?'’\"-]+", " ", plain.casefold()).strip()


def _unspaced(text: str) -> str:
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    return re.sub(r"\s+", "", text)


def _without_full_stop(text: str) -> str:
    return text[:-1].rstrip() if text.endswith((".", "。")) and not text.endswith("..") else text


def _numeral(text: str) -> str:
    """Thousands without separators, scientific notation as a product."""
    if _GROUPED.fullmatch(text.strip()):
        return re.sub(r"\{,\}|,|\\,|\\ |\\!| |’|'", "", text.strip())
    return _SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)
