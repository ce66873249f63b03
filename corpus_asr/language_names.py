"""Native names of languages, and their codes in other standards.

Covers only the languages of Whisper, by its codes. Case, accents and apostrophes are ignored.
Source: CLDR 47 for the names, ISO 639-2 and 639-3 for three-letter codes.
"""

import functools
import re
import unicodedata
from collections.abc import Mapping

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


@functools.cache
def _codes() -> Mapping[str, str]:
    names = ((code, name) for code, all_of_it in OWN_NAMES.items() for name in all_of_it.split(","))
    other_names = (
        (code, name) for code, all_of_it in OTHER_CODES.items() for name in all_of_it.split()
    )
    return {_plain(name): code for code, name in (*names, *other_names)}


def code_of_name(text: str) -> str | None:
    """Return Whisper's code for `Deutsch`, `deu`, `de-AT` or `Deutsch (Österreich)`; else None."""
    name = _plain(text)
    if known_code := _codes().get(name):
        return known_code
    if remark := _REMARK.fullmatch(name):
        return code_of_name(remark[1])
    tag = _TAG.fullmatch(name)
    if tag is None:
        return None
    code = tag["extended"] or tag["code"]
    return code if code in OWN_NAMES else _codes().get(code)


def _plain(text: str) -> str:
    # Accents are ignored as well: keyboards differ.
    split = unicodedata.normalize("NFKD", text.casefold().translate(_APOSTROPHES))
    letters = "".join(letter for letter in split if unicodedata.category(letter) != "Mn")
    return " ".join(letters.split())
