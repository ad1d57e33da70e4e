"""Texts for the prompt cleaner, paired with what diffusers makes of them (ftfy, unescape twice, whitespace)."""

from diffusers.pipelines.wan.pipeline_wan import prompt_clean

from .cases import CASES, DEFAULT_NEGATIVE

# Read in a wrong encoding, each of these becomes mojibake that ftfy may or may not recognise.
READABLE = [
    "café",
    "naïve façade",
    "¿Dónde está el corazón?",
    "“curly” — it’s",
    "Ünïcödé",
    "雪地里的狐狸",
    "夜明けの雪原",
    "привет мир",
    "Ελληνικά",
    "✔ done…",
    "🦊 fox",
    "50 € or 20 £",
    "Þórður á Íslandi",
    "młody żółw",
    "a\u00a0b",
]
WRONG_ENCODINGS = [
    "latin-1",
    "sloppy-windows-1252",
    "sloppy-windows-1250",
    "sloppy-windows-1251",
    "sloppy-windows-1253",
    "sloppy-windows-1254",
    "iso-8859-2",
    "macroman",
    "cp437",
]

WHITESPACE = [
    "",
    " ",
    "\t\n",
    "  leading and trailing  ",
    "many     spaces\t\ttabs",
    "line one\nline two\n\nline four",
    "windows\r\nline\rends",
    "no\u00a0break\u202fthin\u2009space",
    "ideographic\u3000space",
    "line\u2028separator\u2029paragraph",
    "next\u0085line",
    "vertical\x0btab and form\x0cfeed",
    "file\x1cgroup\x1drecord\x1eunit\x1fseparators",
    "en\u2002em\u2003figure\u2007punctuation\u2008hair\u200aspaces",
    "ogham\u1680mathematical\u205fspace",
    "mongolian\u180evowel separator",
    "zero\u200bwidth\u200bspace",
    "word\u2060joiner",
]

INVISIBLE = [
    "\ufeffbyte order mark first",
    "byte order \ufeffmark inside",
    "soft\u00adhyphen",
    "zero\u200cwidth\u200dnon joiner",
    "left\u200eright\u200fmarks",
    "embedding \u202babc\u202c override \u202edef\u202c",
    "isolates \u2066abc\u2069",
    "bell\x07 null\x00 backspace\x08 delete\x7f",
    "escape\x1b alone",
    "\x1b[31mred\x1b[0m terminal \x1b[1;32mcolours\x1b[m",
    "\x1b[2J\x1b[Hcleared \x1b[38;5;208morange\x1b[39m",
    "\x1b]0;title\x07 osc",
    "interlinear \ufff9a\ufffab\ufffb",
    "deprecated \u206aformat\u206f",
    "object \ufffc replacement \ufffd",
    "variation ❤\ufe0f ❤\ufe0e selectors",
    "tags \U000e0041\U000e007f",
    "musical \U0001d173beam\U0001d174",
    "private \ue000 use and \U000f0000 plane",
    "noncharacter \ufdd0 and \uffff",
]

C1_CONTROLS = [
    "\x93quoted\x94 in C1",
    "it\x92s 5\x96 10\x85",
    "euro \x80 and bullet \x95",
    "undefined \x81\x8d\x8f\x90\x9d controls",
    "C1 \x99 mark",
    "mixed \x93curly” end",
]

ENTITIES = [
    "a &amp; b",
    "a &amp;amp; b",
    "a &amp;amp;amp; b",
    "a &amp;amp;amp;amp; b",
    "&lt;b&gt;bold&lt;/b&gt;",
    "<b>tag &amp; entity</b>",
    "1 < 2 &amp; 3 > 2",
    "line with < here &eacute;\nline without &eacute;",
    "line without &eacute;\nline with < here &eacute;",
    "&quot;double&quot; &#39;single&#39; &apos;apos&apos;",
    "&ldquo;curly&rdquo; &lsquo;single&rsquo;",
    "&hellip; &mdash; &ndash; &nbsp; end",
    "&eacute;&Eacute;&EACUTE;&ntilde;&NTILDE;",
    "&ampersand without semicolon &amp end",
    "&copy 2024 &reg &notit; &notin; &not",
    "&lt without &gt semicolons",
    "&#65;&#x42;&#X43;&#0067;",
    "&#128; &#130; &#146; &#150; &#159;",
    "&#0; &#xD800; &#x110000; &#xFFFF;",
    "&#1; &#11; &#x1c; &#x7f; &#xad; &#xfeff;",
    "&#x1F98A; &#129418;",
    "&#12345 no semicolon &#x3042 end",
    "&bogus; &; &#; &#x; &#xg;",
    "&CounterClockwiseContourIntegral; &fjlig; &NotEqualTilde;",
    "&amp;lt;script&amp;gt;",
    "&amp;#39;nested&amp;#39;",
    "&ensp;&emsp;&thinsp;&zwnj;&zwj;&lrm;",
    "&Tab;tab&NewLine;line",
    "a&nbsp;&nbsp;b",
    "Jack &amp Jill &LT tag &GT",
    "&aacutex &aacute;x",
    "&frac12; &sup2; &deg; &micro; &times; &divide;",
    "AT&T R&D Q&A",
    "?a=1&b=2&copy=3&amp;d=4&lang=en",
]

QUOTES = [
    "“double” ‘single’",
    "„low” ‚low‘",
    "‟reversed‟ ‛reversed‛",
    "«angle» ‹single›",
    "ʼmodifierʼ ʹprimeʹ ′prime″",
    "`back´ ˝",
    "「日本語」『引用』",
    "＂full＂ ＇width＇",
    "it’s the dogs’ “best‘s” day",
]

WIDTHS_AND_LIGATURES = [
    "ＦＵＬＬ　ＷＩＤＴＨ",
    "ｆｕｌｌ，ｗｉｄｔｈ！？（）［］｛｝：；～",
    "０１２３４５６７８９％＆＃＠",
    "ﾊﾝｶｸ ｶﾀｶﾅ",
    "ｶﾞｷﾞｸﾞ ﾊﾟﾋﾟﾌﾟ ｳﾞ",
    "ｶ ﾞ と ゙ ゚",
    "｡｢｣､･ｰ",
    "ﾡﾢﾣ halfwidth hangul",
    "￠￡￢￣￤￥￦",
    "￨￩￪￫￬￭￮ halfwidth symbols",
    "　",
    "ﬀ ﬁ ﬂ ﬃ ﬄ ﬅ ﬆ",
    "ĳ Ĳ ŉ ǆ ǅ ǄǇǈǉ Ǌǋǌ Ǳǲǳ",
    "ﬓ ﬔ armenian ligatures stay",
    "① ⑳ ㈱ ㍿ ㌔ ℡ ™ ℃ №",
    "x² a³ ½ ¼ ª º",
    "𝕬𝖇𝖈 𝒹ℯ𝒻 letters",
    "Ⅷ ⅳ numerals",
    "︵vertical︶ ﹁forms﹂ ﹐small﹑",
]

NORMALISATION = [
    "cafe\u0301",
    "n\u0303 u\u0308 A\u030a",
    "か\u3099 は\u309a",
    "\u1112\u1161\u11ab\u1100\u1173\u11af jamo",
    "\u00c5 \u212b \u03a9 \u2126 K \u212a",
    "q\u0307\u0323 q\u0323\u0307",
    "한글 조합",
    "\uf900 \uf901 compatibility ideographs",
    "\u0958 \u0929\u093c devanagari",
    "\ufb2c \ufb33 hebrew presentation",
    "ﷺ ﷲ ﺍﻟﻌﺮﺑﻴﺔ arabic presentation",
    "العربية نص عادي",
    "ไทย ภาษา",
    "हिन्दी में पाठ",
    "Tiếng Việt có dấu",
    "a\u0315\u0300\u05ae\u0062 reordering",
]

EMOJI_AND_RARE = [
    "🦊🐱 plain emoji",
    "👩‍👩‍👧‍👦 family joined",
    "🇯🇵🇪🇸 flags 🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "👍🏽 skin tone ☺️",
    "𠮷野家 𩸽 supplementary ideographs",
    "𐍈 gothic 𓀀 hieroglyph",
    "\\ud83d\\ude00 escaped text stays",
    "\\u00e9 \\xe9 &#xe9; \\n",
    "%E2%9C%94 percent",
    "=?utf-8?q?caf=C3=A9?=",
    "U+1F600 :smile:",
]

BROKEN = [
    "âœ” No problems",
    "l’humanitÃ©",
    "Ã perturber la rÃ©flexion",
    "schÃ¶n Ã¼ber StraÃŸe",
    "The Mona Lisa doesnÃƒÂ¢Ã¢â€šÂ¬Ã¢â€žÂ¢t have eyebrows.",
    "voilÃ le travail",
    "Ã\xa0 la carte",
    "Ã la carte",
    "a la mode Ã  paris",
    "ÃƒÂ©clair",
    "HÃƒÂ©ros â€œquotesâ€\x9d",
    "fiancÃ©e â€” â€“ â€¦",
    "æ–‡å­—åŒ–ã‘",
    "ã\x83\x84 in C1",
    "¯\\_(ã\x83\x84)_/¯",
    "&macr;\\_(ã\x83\x84)_/&macr;",
    "Broken text&hellip; it&#x2019;s ﬂubberiﬁc!",
    "ðŸ¦Š and ðŸ˜‚",
    "í\xa0½í¸\x80 surrogates as bytes",
    "â€� lossy quote",
    "Ã� lossy Ã©",
    "├⌐clair in cp437",
    "Ð¿Ñ€Ð¸Ð²ÐµÑ‚",
    "РїСЂРёРІРµС‚",
    "ÐŸÑ€Ð¸Ð²ÐµÑ‚ мир",
    "Å‚Ã³dÅº Å¼aba",
    "IL Y MARQUÃ‰…",
    "Â©2024 Â®",
    "10Â°C Â± 5Â%",
    "Â£50 Â¥100 Â§3",
    "not mojibake: Ã is a letter, Å too",
    "ÀÉÎÕÜ upper case run",
    "AHÅ™, the new sofa from IKEA®",
    "P.E.I.®—CHÂTEAU",
    "El Niño — año 2024 ±5 º",
    "CÃ\u00b4te d'Ivoire & cÃ\u00b4tÃ©",
    "sÃ³ lamentÃ¡vel, nÃ£o?",
    "ESSÃO Ã¡ MÃO",
    "”quoted“ Ã± 'x' â‚¬5",
    "(-1/2)! = √π ∞ ≠ Ω",
]

PROMPTS = [
    'A  “cat”\u3000ＦＵＬＬ & dog &amp;amp; ½ 🦙',
    DEFAULT_NEGATIVE,
    "A cinematic shot, 4K — “golden hour”,  35mm;  f/1.8",
    "一只猫,在弹钢琴。 镜头：特写；光线：柔和……",
    "映画のような映像、「夕焼け」・スローモーション〜",
    "영화 같은 장면, 눈 내리는 밤",
    "Кинематографичный кадр — «золотой час»",
    "a\\b/c\td|e~f`g^h_i{j}k[l]",
    "UPPER lower MiXeD 123,456.78",
]


def pairs() -> list[list[str]]:
    """`[raw, cleaned]`, each raw text once; texts with lone surrogates have no place in UTF-8 and are left out."""
    raw = [
        *WHITESPACE,
        *INVISIBLE,
        *C1_CONTROLS,
        *ENTITIES,
        *QUOTES,
        *WIDTHS_AND_LIGATURES,
        *NORMALISATION,
        *EMOJI_AND_RARE,
        *BROKEN,
        *PROMPTS,
        *(text for case in CASES for text in (case.prompt, case.negative)),
        *mojibake(),
    ]
    cleaned = {text: prompt_clean(text) for text in raw if utf8(text)}
    kept = [[text, result] for text, result in cleaned.items() if utf8(result)]
    assert len(kept) >= 150
    return kept


def mojibake() -> list[str]:
    """Each readable text as UTF-8 bytes read in each wrong encoding, and some twice."""
    once = [reread(text, encoding) for text in READABLE for encoding in WRONG_ENCODINGS]
    twice = [reread(text, "sloppy-windows-1252") for text in once[:: len(WRONG_ENCODINGS) + 1] if text]
    return [text for text in [*once, *twice] if text]


def reread(text: str, encoding: str) -> str | None:
    try:
        return text.encode("utf-8").decode(encoding)
    except UnicodeDecodeError:
        return None


def utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
