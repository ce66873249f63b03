"""Whisper's languages by code and by their names.

Names are English, native, or codes of other standards; case, accents and apostrophes are ignored in
those. Source: CLDR 47 for native names, ISO 639-2 and 639-3 for three-letter codes.
"""

import difflib
import functools
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping

from corpus_asr.errors import ConfigError

# The order is that of the tokens after <|startoftranscript|>; large-v3 appended Cantonese.
# Source: openai/whisper, tokenizer.py, LANGUAGES and TO_LANGUAGE_CODE.
LANGUAGES = {
    "en": "english", "zh": "chinese", "de": "german", "es": "spanish", "ru": "russian",
    "ko": "korean", "fr": "french", "ja": "japanese", "pt": "portuguese", "tr": "turkish",
    "pl": "polish", "ca": "catalan", "nl": "dutch", "ar": "arabic", "sv": "swedish",
    "it": "italian", "id": "indonesian", "hi": "hindi", "fi": "finnish", "vi": "vietnamese",
    "he": "hebrew", "uk": "ukrainian", "el": "greek", "ms": "malay", "cs": "czech",
    "ro": "romanian", "da": "danish", "hu": "hungarian", "ta": "tamil", "no": "norwegian",
    "th": "thai", "ur": "urdu", "hr": "croatian", "bg": "bulgarian", "lt": "lithuanian",
    "la": "latin", "mi": "maori", "ml": "malayalam", "cy": "welsh", "sk": "slovak",
    "te": "telugu", "fa": "persian", "lv": "latvian", "bn": "bengali", "sr": "serbian",
    "az": "azerbaijani", "sl": "slovenian", "kn": "kannada", "et": "estonian", "mk": "macedonian",
    "br": "breton", "eu": "basque", "is": "icelandic", "hy": "armenian", "ne": "nepali",
    "mn": "mongolian", "bs": "bosnian", "kk": "kazakh", "sq": "albanian", "sw": "swahili",
    "gl": "galician", "mr": "marathi", "pa": "punjabi", "si": "sinhala", "km": "khmer",
    "sn": "shona", "yo": "yoruba", "so": "somali", "af": "afrikaans", "oc": "occitan",
    "ka": "georgian", "be": "belarusian", "tg": "tajik", "sd": "sindhi", "gu": "gujarati",
    "am": "amharic", "yi": "yiddish", "lo": "lao", "uz": "uzbek", "fo": "faroese",
    "ht": "haitian creole", "ps": "pashto", "tk": "turkmen", "nn": "nynorsk", "mt": "maltese",
    "sa": "sanskrit", "lb": "luxembourgish", "my": "myanmar", "bo": "tibetan", "tl": "tagalog",
    "mg": "malagasy", "as": "assamese", "tt": "tatar", "haw": "hawaiian", "ln": "lingala",
    "ha": "hausa", "ba": "bashkir", "jw": "javanese", "su": "sundanese", "yue": "cantonese",
}  # fmt: skip

OWN_NAMES = {
    "en": "English", "zh": "中文, 汉语, 漢語, 普通话, 普通話, 国语, 國語, 华语, 華語",
    "de": "Deutsch", "es": "español, castellano", "ru": "русский, русский язык",
    "ko": "한국어, 조선말, 한국말", "fr": "français", "ja": "日本語", "pt": "português",
    "tr": "Türkçe", "pl": "polski, język polski", "ca": "català, valencià",
    "nl": "Nederlands, Vlaams", "ar": "العربية, عربي, عربية", "sv": "svenska",
    "it": "italiano", "id": "Bahasa Indonesia, Indonesia", "hi": "हिन्दी, हिंदी",
    "fi": "suomi, suomen kieli", "vi": "Tiếng Việt, Việt", "he": "עברית",
    "uk": "українська, українська мова", "el": "Ελληνικά, νέα ελληνικά",
    "ms": "Melayu, Bahasa Melayu, Bahasa Malaysia", "cs": "čeština, česky",
    "ro": "română, limba română", "da": "dansk", "hu": "magyar, magyar nyelv", "ta": "தமிழ்",
    "no": "norsk, bokmål, norsk bokmål", "th": "ไทย, ภาษาไทย", "ur": "اردو",
    "hr": "hrvatski", "bg": "български, български език", "lt": "lietuvių, lietuvių kalba",
    "la": "Latina, lingua Latina", "mi": "Māori, te reo Māori, te reo", "ml": "മലയാളം",
    "cy": "Cymraeg", "sk": "slovenčina, slovensky", "te": "తెలుగు", "fa": "فارسی, دری",
    "lv": "latviešu, latviešu valoda", "bn": "বাংলা", "sr": "српски, srpski, српски језик",
    "az": "azərbaycan, azərbaycan dili, azərbaycanca", "sl": "slovenščina, slovensko",
    "kn": "ಕನ್ನಡ", "et": "eesti, eesti keel", "mk": "македонски, македонски јазик",
    "br": "brezhoneg", "eu": "euskara, euskera", "is": "íslenska", "hy": "հայերեն",
    "ne": "नेपाली", "mn": "монгол, монгол хэл", "bs": "bosanski, босански",
    "kk": "қазақ тілі, қазақ, қазақша", "sq": "shqip", "sw": "Kiswahili", "gl": "galego",
    "mr": "मराठी", "pa": "ਪੰਜਾਬੀ, پنجابی", "si": "සිංහල", "km": "ខ្មែរ, ភាសាខ្មែរ",
    "sn": "chiShona", "yo": "Yorùbá, Èdè Yorùbá", "so": "Soomaali, af Soomaali",
    "af": "Afrikaans", "oc": "occitan, lenga d'òc", "ka": "ქართული, ქართული ენა",
    "be": "беларуская, беларуская мова", "tg": "тоҷикӣ, забони тоҷикӣ", "sd": "سنڌي, सिन्धी",
    "gu": "ગુજરાતી", "am": "አማርኛ", "yi": "ייִדיש, אידיש", "lo": "ລາວ, ພາສາລາວ",
    "uz": "o'zbek, o'zbekcha, o'zbek tili, ўзбек, ўзбекча", "fo": "føroyskt",
    "ht": "Kreyòl ayisyen, kreyòl", "ps": "پښتو", "tk": "türkmen dili, türkmençe, türkmen",
    "nn": "nynorsk, norsk nynorsk", "mt": "Malti", "sa": "संस्कृत, संस्कृतम्, संस्कृत भाषा",
    "lb": "Lëtzebuergesch", "my": "မြန်မာ, မြန်မာဘာသာ, ဗမာစာ", "bo": "བོད་སྐད, བོད་སྐད་, བོད་ཡིག",
    "tl": "Tagalog, Filipino, Pilipino, wikang Filipino", "mg": "Malagasy", "as": "অসমীয়া",
    "tt": "татар, татар теле, татарча", "haw": "'Ōlelo Hawai'i", "ln": "lingála", "ha": "Hausa",
    "ba": "башҡорт теле, башҡорт, башҡортса", "jw": "Jawa, basa Jawa, ꦧꦱꦗꦮ",
    "su": "Basa Sunda, Sunda", "yue": "粵語, 粤语, 廣東話, 广东话, 广州话, 廣州話",
}  # fmt: skip
"""Native names of each language."""

OTHER_CODES = {
    "en": "eng", "zh": "zho chi cmn", "de": "deu ger", "es": "spa", "ru": "rus", "ko": "kor",
    "fr": "fra fre", "ja": "jpn", "pt": "por", "tr": "tur", "pl": "pol", "ca": "cat",
    "nl": "nld dut", "ar": "ara arb", "sv": "swe", "it": "ita", "id": "ind in", "hi": "hin",
    "fi": "fin", "vi": "vie", "he": "heb iw", "uk": "ukr", "el": "ell gre", "ms": "msa may zsm",
    "cs": "ces cze", "ro": "ron rum mol mo", "da": "dan", "hu": "hun", "ta": "tam",
    "no": "nor nob nb", "th": "tha", "ur": "urd", "hr": "hrv scr", "bg": "bul", "lt": "lit",
    "la": "lat", "mi": "mri mao", "ml": "mal", "cy": "cym wel", "sk": "slk slo", "te": "tel",
    "fa": "fas per pes prs", "lv": "lav lvs", "bn": "ben", "sr": "srp scc", "az": "aze azj",
    "sl": "slv", "kn": "kan", "et": "est ekk", "mk": "mkd mac", "br": "bre", "eu": "eus baq",
    "is": "isl ice", "hy": "hye arm", "ne": "nep npi", "mn": "mon khk", "bs": "bos", "kk": "kaz",
    "sq": "sqi alb als", "sw": "swa swh", "gl": "glg", "mr": "mar", "pa": "pan pnb", "si": "sin",
    "km": "khm", "sn": "sna", "yo": "yor", "so": "som", "af": "afr", "oc": "oci", "ka": "kat geo",
    "be": "bel", "tg": "tgk", "sd": "snd", "gu": "guj", "am": "amh", "yi": "yid ydd ji",
    "lo": "lao", "uz": "uzb uzn", "fo": "fao", "ht": "hat", "ps": "pus pbu", "tk": "tuk",
    "nn": "nno", "mt": "mlt", "sa": "san", "lb": "ltz", "my": "mya bur", "bo": "bod tib",
    "tl": "tgl fil", "mg": "mlg plt", "as": "asm", "tt": "tat", "ln": "lin", "ha": "hau",
    "ba": "bak", "jw": "jav jv", "su": "sun",
}  # fmt: skip
"""ISO 639-2 and 639-3 codes of each language, and withdrawn ISO 639-1 codes."""

_UNDETERMINED = frozenset({"und", "mul", "mis", "zxx"})  # of ISO 639-2
# Codes of countries and dialects.
_WRITTEN_FOR = {
    "uk": "ua", "cs": "cz", "zh": "cn wuu nan hak", "ja": "jp", "ko": "kr", "el": "gr", "da": "dk",
    "sv": "se", "vi": "vn", "sr": "rs", "he": "il", "fa": "ir", "kk": "kz", "be": "by",
    "en": "us gb sco", "de": "at gsw bar ksh", "nl": "vls",
    "ar": "eg arz ary apc", "it": "scn nap vec lmo", "es": "mx",
}  # fmt: skip
CODES_INSTEAD = {name: code for code, names in _WRITTEN_FOR.items() for name in names.split()}
"""Codes by what is written in their place and is no code of a language here."""

# A language, an extended language of Chinese, a script and a region, as in BCP 47; then POSIX
# locale suffixes. Only scripts of these languages: `no-such` is not a tag.
_TAG = re.compile(
    r"(?P<code>[a-z]{2,3})(?:[-_](?P<extended>cmn|yue))?"
    r"(?:[-_](?:latn|cyrl|arab|hans|hant|hebr|deva|beng|guru|gujr|jpan|kore|mong|tibt|thaa|mlym))?"
    r"(?:[-_](?:[a-z]{2}|[0-9]{3}))?(?:\.[a-z0-9-]+)?(?:@[a-z]+)?"
)
_REMARK = re.compile(r"(.+?)\s*\(.*\)")
# As typed and as printed: U+02BB and U+02BC are letters of Hawaiian and Uzbek.
_APOSTROPHES = dict.fromkeys(map(ord, "'`\u2018\u2019\u02bb\u02bc"))
"""Name of each language by its code."""

ALIASES = {
    "burmese": "my", "valencian": "ca", "flemish": "nl", "haitian": "ht", "letzeburgesch": "lb",
    "pushto": "ps", "panjabi": "pa", "moldavian": "ro", "moldovan": "ro", "sinhalese": "si",
    "castilian": "es", "mandarin": "zh",
}  # fmt: skip
"""Codes by alternative names of languages."""

CODES_BY_NAME = {name: code for code, name in LANGUAGES.items()} | ALIASES
"""Codes by every English name."""

_CODES_BY_OWN_NAME = {
    name.strip().lower(): code for code, names in OWN_NAMES.items() for name in names.split(",")
}


def code_of(text: str) -> str:
    """Return the code for `en`, `English`, `<|en|>`, `en-US` or `eng`; other texts unchanged."""
    name = _plain(text)
    return "auto" if name == "auto" else _known_code(name) or text


def resolve_language(text: str, *, known: Collection[str] = LANGUAGES.keys()) -> str:
    """Return the code, among `known` ones, for `en`, `English`, `<|en|>`, `en-US` or `eng`."""
    name = _plain(text)
    code = name if name in known else _known_code(name)
    if code is not None and code in known:
        return code
    if code is not None:
        raise ValueError(
            f"choosing the language {text!r}: {LANGUAGES[code]} ({code}) is not among the "
            f"{len(known)} languages to choose from; nearest: {_nearest(name, known)}"
        )
    raise ValueError(
        f"choosing the language {text!r}: no such language, expected a code such as 'en' or a name "
        f"such as 'english'; nearest: {_nearest(name, known)}"
    )


def check_known(wanted: Iterable[str], known: Collection[str]) -> None:
    """Raise an error for codes that a checkpoint does not support; `auto` is not a code."""
    unknown = [code for code in wanted if code != "auto" and code not in known]
    if not unknown:
        return
    raise ConfigError(
        f"decoding.language: this checkpoint does not know {', '.join(unknown)}; "
        f"{advise_codes(unknown, known)}it knows {', '.join(sorted(known))}"
    )


def advise_codes(unknown: Iterable[str], known: Collection[str]) -> str:
    """Return what to write for unknown languages, with a space behind; empty if nothing is near."""
    meant = {text: _find_intended_code(text) for text in unknown}
    open_ones = [text for text, code in meant.items() if code == "auto"]
    names_none = f"{', '.join(open_ones)} names no language: leave it out, or write auto alone; "
    codes = [code for code in meant.values() if code is not None and code in known]
    return names_none * bool(open_ones) + f"did you mean {', '.join(codes)}? " * bool(codes)


def _find_intended_code(text: str) -> str | None:
    name = _plain(text)
    tag = _TAG.fullmatch(name)
    code = name if tag is None else tag["code"]
    if code in _UNDETERMINED:
        return "auto"
    if code in CODES_INSTEAD:
        return CODES_INSTEAD[code]
    names = CODES_BY_NAME | _CODES_BY_OWN_NAME
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
    return names[near[0]] if near else None


def _plain(text: str) -> str:
    return text.strip().lower().removeprefix("<|").removesuffix("|>")


def _known_code(name: str) -> str | None:
    if name in LANGUAGES:
        return name
    return CODES_BY_NAME[name] if name in CODES_BY_NAME else code_of_name(name)


def _nearest(name: str, known: Collection[str]) -> str:
    meant = _find_intended_code(name)
    if meant == "auto":
        return "none, as it names no language; leave it out"
    if meant is not None and meant in known:
        return f"{meant} ({LANGUAGES[meant]})"
    # A short word is a misspelled code, a long one a misspelled name.
    names = {language_name: code for language_name, code in CODES_BY_NAME.items() if code in known}
    candidates = list(known) if len(name) <= 3 else list(names)
    near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.0)
    if not near:
        return "none"
    code = names.get(near[0], near[0])
    return f"{code} ({LANGUAGES.get(code, 'unnamed')})"


@functools.cache
def _codes() -> Mapping[str, str]:
    names = ((code, name) for code, all_of_it in OWN_NAMES.items() for name in all_of_it.split(","))
    other_names = (
        (code, name) for code, all_of_it in OTHER_CODES.items() for name in all_of_it.split()
    )
    return {_folded(name): code for code, name in (*names, *other_names)}


def code_of_name(text: str) -> str | None:
    """Return Whisper's code for `Deutsch`, `deu`, `de-AT` or `Deutsch (Österreich)`; else None."""
    name = _folded(text)
    if known_code := _codes().get(name):
        return known_code
    if remark := _REMARK.fullmatch(name):
        return code_of_name(remark[1])
    tag = _TAG.fullmatch(name)
    if tag is None:
        return None
    code = tag["extended"] or tag["code"]
    return code if code in OWN_NAMES else _codes().get(code)


def _folded(text: str) -> str:
    # Accents are ignored as well: keyboards differ.
    split = unicodedata.normalize("NFKD", text.casefold().translate(_APOSTROPHES))
    letters = "".join(letter for letter in split if unicodedata.category(letter) != "Mn")
    return " ".join(letters.split())
