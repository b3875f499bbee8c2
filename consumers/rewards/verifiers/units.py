"""What stands beside a number: a unit, a percent sign, a currency, degrees; each in one form, so that units compare.

Pure. A unit of one letter is also a variable (`5 m`, `5x`), so it is read as a unit only where that is likely: a known
letter, and either parted from its number by a space or given as the answer to a reference that names a unit.
"""

import re
from typing import Final

PERCENT: Final = "%"

_NO_UNITS: Final = ("and", "or", "percent", "pct", "base", "if", "for", "mod")
_NUMBER: Final = r"(?P<number>[-+]?[\d.,/ ]*\d)"
_POWER: Final = r"(?:\^\s*\{?(?P<power>-?\d)\}?)?"
_SET_UNIT: Final = re.compile(
    r"(?P<number>.*[\w}!)])\s*(?:\\text|\\mathrm|\\textrm|\\mbox|\\rm)\s*\{(?P<unit>[^{}]*[A-Za-z][^{}]*)\}\s*"
    + _POWER,
    re.DOTALL,
)
_PLAIN_UNIT: Final = re.compile(
    _NUMBER + r"\s*(?P<unit>(?!and\b|or\b)[A-Za-z][A-Za-z.]+(?:[ /][A-Za-z]+)*)" + _POWER,
)
_LETTER: Final = re.compile(_NUMBER + r"(?P<space>\s*)(?P<unit>[mgshlLNJWVAKCF])" + _POWER)
_PERCENT: Final = re.compile(
    r"(?P<number>.*[\d}!)])\s*(?:\\?%|(?:\\text\s*\{\s*)?(?:percent|pct)\.?\s*\}?)", re.DOTALL | re.IGNORECASE
)
_DEGREES: Final = re.compile(
    r"(?P<number>[-+]?(?:[\d.,/ ]*\d|\d*\s*\\[dt]?frac\s*\{\d+\}\s*\{\d+\}))\s*"
    r"(?:\^\s*\{?\s*\\circ\s*\}?|\\degree|°)\s*(?P<scale>[CFK]|\\(?:text|mathrm)\s*\{\s*[CFK]\s*\})?"
)
_CURRENCY: Final = re.compile(r"(?:\\\$|[$€£¥₹])\s*(?=[-+]?[\d.])")
_PRICE: Final = re.compile(r"(?P<sign>[-+]?)\s*(?P<currency>\\\$|[$€£¥₹])\s*(?P<number>[-+]?[\d.,]*\d)\.?")
_CURRENCIES: Final = {"\\$": "dollar", "$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "₹": "rupee"}

_NAMES: Final = {
    name: unit
    for unit, names in {
        "mm": "millimeter millimetre",
        "cm": "centimeter centimetre",
        "m": "meter metre",
        "km": "kilometer kilometre",
        "in": "inch inche",
        "ft": "foot feet",
        "yd": "yard",
        "mi": "mile",
        "mg": "milligram",
        "g": "gram",
        "kg": "kilogram kilo",
        "lb": "lbs",
        "s": "sec second",
        "min": "minute",
        "h": "hr hrs hour",
        "l": "liter litre",
        "ml": "milliliter millilitre",
        "n": "newton",
        "j": "joule",
        "w": "watt",
        "v": "volt",
        "a": "ampere amp",
        "k": "kelvin",
        "c": "celsius",
        "f": "fahrenheit",
        "rad": "radian",
        "degree": "deg",
        "dollar": "usd buck",
        "cent": "¢",
        "euro": "eur",
    }.items()
    for name in names.split()
}
_POWERS: Final = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}


def without_currency(text: str) -> str:
    """`text` without the currency signs in front of its numbers."""
    return _CURRENCY.sub("", text)


def currency_of(text: str) -> str:
    """The currency of a text that is one price, or nothing."""
    found = _PRICE.fullmatch(text.strip())
    return _CURRENCIES[found["currency"]] if found else ""


def split_unit(text: str, likely: bool | None) -> tuple[str, str]:
    """A number and its unit; ("text", "") where there is none.

    `likely`: whether a single letter is a unit, None for what is read without knowing (then only behind a space).
    """
    if percent := _PERCENT.fullmatch(text):
        return percent["number"].strip(), PERCENT
    if degrees := _DEGREES.fullmatch(text):
        scale = (degrees["scale"] or "").strip("} ")[-1:]
        return degrees["number"].strip(), scale.lower() or "degree"
    found = _SET_UNIT.fullmatch(text) or _PLAIN_UNIT.fullmatch(text)
    if found is None and likely is not False:
        letter = _LETTER.fullmatch(text)
        found = letter if letter and (likely or letter["space"]) else None
    if found is None or found["unit"].strip().lower() in _NO_UNITS:
        return text, ""
    return found["number"].strip(), _normal(found["unit"], found["power"] or "")


def _normal(unit: str, power: str) -> str:
    """One spelling of a unit: `square centimeters`, `cm^2` and `sq. cm` are `cm^2`."""
    words = []
    for word in re.split(r"([\s./\\]+|\bper\b)", unit.strip().casefold()):
        bare = word.strip(" .\\\t\n")
        if bare in ("/", "per"):
            words.append("/")
        elif bare in _POWERS:
            power = power or _POWERS[bare]
        elif bare:
            singular = bare[:-1] if len(bare) > 3 and bare.endswith("s") else bare
            words.append(_NAMES.get(bare) or _NAMES.get(singular, singular))
    name = " ".join(words).replace(" / ", "/")
    return f"{name}^{power}" if power else name
