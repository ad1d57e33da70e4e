"""A small Unigram tokenizer with the special ids of umT5, made from a few sentences in four languages.

The vocabulary is counted, not trained: every character of the sentences and prompts, and the substrings of the
sentences that save the most tokens. The result depends on the texts alone, so a second run gives the same file.
"""

import json
import math
from collections import Counter
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "</s>", "<s>", "<unk>"]
UNKNOWN_ID = SPECIAL.index("<unk>")
VOCABULARY_SIZE = 720
LONGEST_PIECE = 4
MAX_TOKENS = 512

SENTENCES = [
    "A red fox crosses a snowy field at dawn, camera slowly following from the left.",
    "Two anthropomorphic cats in comfy boxing gear fight on a spotlighted stage.",
    "Close up of rain falling on a window while city lights glow behind the glass.",
    "An old sailor looks at the sea, the wind moves his white beard, golden hour.",
    "A paper boat floats down a small river between mossy stones, soft morning light.",
    "The train leaves the station and disappears into the fog, wide shot, slow motion.",
    "Children fly kites on a hill above the bay; clouds move quickly over the water.",
    "A potter shapes a bowl on a turning wheel, hands covered with wet clay.",
    "Neon signs reflect in puddles as people walk with umbrellas through the night market.",
    "Macro shot of a bee landing on a lavender flower, shallow depth of field.",
    "一只红色的狐狸在黎明时分穿过雪地，镜头从左侧缓缓跟随。",
    "两只拟人化的猫穿着舒适的拳击装备，在聚光灯下的舞台上激烈对打。",
    "雨滴落在窗户上，玻璃后面城市的灯光闪烁。",
    "老水手望着大海，海风吹动他的白胡子，黄昏的金色阳光。",
    "纸船顺着小河漂流，两边是长满青苔的石头，柔和的晨光。",
    "火车离开车站，消失在浓雾中，远景，慢动作。",
    "孩子们在海湾上方的山坡上放风筝，白云快速飘过水面。",
    "陶艺师在转盘上塑造一只碗，双手沾满湿润的泥土。",
    "霓虹灯倒映在水洼里，人们打着雨伞走过夜市。",
    "夜明けの雪原を赤い狐が横切り、カメラが左からゆっくり追いかける。",
    "窓に雨が降り、ガラスの向こうで街の灯りが光っている。",
    "老いた船乗りが海を見つめ、風が白いひげを揺らす、夕暮れの金色の光。",
    "紙の舟が苔むした石の間の小川を流れていく、やわらかな朝の光。",
    "列車が駅を離れ、霧の中へ消えていく、ワイドショット、スローモーション。",
    "子供たちが湾の上の丘で凧を揚げ、雲が水面を速く流れていく。",
    "陶芸家が回るろくろの上で器を作る、手は濡れた粘土だらけ。",
    "ネオンが水たまりに映り、人々が傘をさして夜市を歩く。",
    "Un zorro rojo cruza un campo nevado al amanecer, la cámara lo sigue despacio desde la izquierda.",
    "La lluvia cae sobre la ventana mientras las luces de la ciudad brillan detrás del cristal.",
    "Un viejo marinero mira el mar, el viento mueve su barba blanca, hora dorada.",
    "Un barco de papel flota por un río pequeño entre piedras con musgo, luz suave de la mañana.",
    "El tren sale de la estación y desaparece en la niebla, plano general, cámara lenta.",
    "Los niños vuelan cometas en una colina sobre la bahía; las nubes pasan rápido sobre el agua.",
    "El alfarero da forma a un cuenco en el torno, las manos cubiertas de arcilla mojada.",
    "¿Dónde está el corazón de la montaña? ¡Qué señal más extraña!",
]


def build(texts: list[str]) -> Tokenizer:
    """The tokenizer whose characters cover `SENTENCES` and the cleaned `texts`."""
    tokenizer = Tokenizer(Unigram(vocabulary(texts), unk_id=UNKNOWN_ID, byte_fallback=False))
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", SPECIAL.index("</s>"))]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def vocabulary(texts: list[str]) -> list[tuple[str, float]]:
    """Special tokens, every character, then the substrings that save most tokens; scores are log frequencies."""
    counts: Counter[str] = Counter()
    for word in words(SENTENCES):
        for start in range(len(word)):
            counts.update(word[start:end] for end in range(start + 1, min(len(word), start + LONGEST_PIECE) + 1))
    counts.update(set("".join(words(texts))))
    characters = sorted(piece for piece in counts if len(piece) == 1)
    longer = [piece for piece in counts if len(piece) > 1 and counts[piece] > 1]
    longer.sort(key=lambda piece: (-counts[piece] * (len(piece) - 1), piece))
    pieces = characters + longer[: VOCABULARY_SIZE - len(SPECIAL) - len(characters)]
    assert len(pieces) + len(SPECIAL) == VOCABULARY_SIZE
    total = sum(counts[piece] for piece in pieces)
    return [(token, 0.0) for token in SPECIAL] + [(piece, math.log(counts[piece] / total)) for piece in pieces]


def words(texts: list[str]) -> list[str]:
    return ["▁" + word for text in texts for word in text.split()]


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes `tokenizer.json` and the two files transformers wants beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=2) + "\n")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_TOKENS,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        **names,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load(folder: Path) -> PreTrainedTokenizerFast:
    """The folder's `tokenizer.json` as it stands: transformers 5 rebuilds T5 classes, which can change the ids."""
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def ids(folder: Path, cleaned: str) -> list[int]:
    """Ids of a cleaned text by the raw `tokenizer.json`, cut to 512 with `</s>` kept, without padding."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer.encode(cleaned).ids
