"""The golden cases: what each model looks like and what it is asked for."""

from dataclasses import dataclass

DEFAULT_NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)


@dataclass(frozen=True)
class Denoiser:
    heads: int
    head_dim: int
    ffn_dim: int
    layers: int
    freq_dim: int = 256


@dataclass(frozen=True)
class TextEncoder:
    d_model: int
    heads: int
    d_kv: int
    d_ff: int
    layers: int


@dataclass(frozen=True)
class Vae:
    base_dim: int
    dim_mult: tuple[int, int, int, int]
    res_blocks: int
    z_dim: int


@dataclass(frozen=True)
class Case:
    """One checkpoint and one request. `guidance` is (high, low) and `experts` 1 or 2."""

    name: str
    about: str
    prompt: str
    negative: str
    width: int
    height: int
    frames: int
    steps: int
    guidance: tuple[float, float]
    shift: float
    sampler: str
    schedule: str
    seed: int
    experts: int
    denoiser: Denoiser
    text: TextEncoder
    vae: Vae
    dtype: str = "f32"
    shard_size: str | None = None
    official_names: bool = False
    smooth: bool = False

    @property
    def latent_frames(self) -> int:
        return (self.frames - 1) // 4 + 1

    @property
    def boundary(self) -> float | None:
        return 0.875 if self.experts == 2 else None


CASES = [
    Case(
        name="two-experts",
        about="two experts, boundary crossed, UniPC, transformer in shards, curly quotes and ligatures in English",
        prompt="  A “red” fox crosses a snowy ﬁeld at dawn… camera slowly following from the left;\u00a0it’s ﬂuﬀy &amp; calm ",
        negative=DEFAULT_NEGATIVE,
        width=48,
        height=32,
        frames=5,
        steps=6,
        guidance=(4.0, 3.0),
        shift=5.0,
        sampler="unipc",
        schedule="diffusers",
        seed=42,
        experts=2,
        denoiser=Denoiser(heads=2, head_dim=12, ffn_dim=40, layers=2),
        text=TextEncoder(d_model=32, heads=4, d_kv=8, d_ff=48, layers=2),
        vae=Vae(base_dim=4, dim_mult=(1, 2, 2, 3), res_blocks=2, z_dim=16),
        shard_size="48KB",
    ),
    Case(
        name="no-guidance",
        about="one expert without guidance, 16 steps of DPM++ 2M, one latent frame, portrait, Chinese with full-width punctuation",
        prompt="一只红色的狐狸在黎明时分穿过雪地，镜头从左侧缓缓跟随。“玻璃”后面城市的灯光闪烁！",
        negative="",
        width=32,
        height=64,
        frames=1,
        steps=16,
        guidance=(1.0, 1.0),
        shift=3.0,
        sampler="dpmpp",
        schedule="diffusers",
        seed=7,
        experts=1,
        denoiser=Denoiser(heads=3, head_dim=10, ffn_dim=64, layers=3, freq_dim=64),
        text=TextEncoder(d_model=24, heads=3, d_kv=8, d_ff=32, layers=3),
        vae=Vae(base_dim=6, dim_mult=(1, 1, 1, 2), res_blocks=1, z_dim=8),
    ),
    Case(
        name="five-latent-frames",
        about="two experts in bf16, Euler, five latent frames, Japanese with full- and half-width characters",
        prompt="夜明けの雪原を赤い狐が横切り、ｶﾒﾗが左からゆっくり追いかける。ネオンが水たまりに映り、ＡＢＣ　１２３。",
        negative="静止、ぼやけ、文字",
        width=48,
        height=16,
        frames=17,
        steps=6,
        guidance=(2.5, 3.5),
        shift=5.0,
        sampler="euler",
        schedule="diffusers",
        seed=0,
        experts=2,
        denoiser=Denoiser(heads=2, head_dim=14, ffn_dim=48, layers=2, freq_dim=64),
        text=TextEncoder(d_model=24, heads=2, d_kv=16, d_ff=40, layers=2),
        vae=Vae(base_dim=4, dim_mult=(1, 2, 2, 3), res_blocks=1, z_dim=12),
        dtype="bf16",
    ),
    Case(
        name="wide-text-heads",
        about="one guided expert in f16, UniPC, three latent frames, text heads wider than the model, Spanish with entities",
        prompt="¿Dónde est&aacute; el coraz&oacute;n de la monta&ntilde;a? «¡Qué señal más extraña!» &amp;quot;La lluvia cae&amp;quot;",
        negative="borroso, estático,  niebla\tsin luz\n",
        width=32,
        height=48,
        frames=9,
        steps=5,
        guidance=(5.0, 5.0),
        shift=8.0,
        sampler="unipc",
        schedule="diffusers",
        seed=2**31,
        experts=1,
        denoiser=Denoiser(heads=4, head_dim=8, ffn_dim=56, layers=2),
        text=TextEncoder(d_model=28, heads=4, d_kv=10, d_ff=36, layers=2),
        vae=Vae(base_dim=4, dim_mult=(1, 2, 2, 2), res_blocks=2, z_dim=16),
        dtype="f16",
    ),
    Case(
        name="official-names",
        about="official tensor names for experts and VAE, official UniPC schedule with shift 12, boundary crossed",
        prompt="Two anthropomorphic cats in comfy boxing gear fight on a spotlighted stage. ＦＵＬＬ width &lt;b&gt; ½",
        negative="The train leaves the station",
        width=64,
        height=32,
        frames=5,
        steps=8,
        guidance=(4.0, 3.0),
        shift=12.0,
        sampler="unipc",
        schedule="official",
        seed=1,
        experts=2,
        denoiser=Denoiser(heads=2, head_dim=16, ffn_dim=48, layers=2, freq_dim=64),
        text=TextEncoder(d_model=24, heads=3, d_kv=8, d_ff=40, layers=2),
        vae=Vae(base_dim=3, dim_mult=(1, 2, 4, 4), res_blocks=2, z_dim=16),
        dtype="bf16",
        official_names=True,
    ),
    Case(
        name="moving-clip",
        about="a smooth clip of 17 frames that survives video coding, two experts, DPM++ 2M on the official schedule",
        prompt="A paper boat floats down a small river between mossy stones, soft morning light.",
        negative=DEFAULT_NEGATIVE,
        width=64,
        height=32,
        frames=17,
        steps=6,
        guidance=(4.0, 3.0),
        shift=5.0,
        sampler="dpmpp",
        schedule="official",
        seed=123456789,
        experts=2,
        denoiser=Denoiser(heads=3, head_dim=8, ffn_dim=48, layers=2, freq_dim=128),
        text=TextEncoder(d_model=24, heads=2, d_kv=12, d_ff=40, layers=2),
        vae=Vae(base_dim=4, dim_mult=(1, 2, 2, 2), res_blocks=1, z_dim=16),
        smooth=True,
    ),
    Case(
        name="four-steps",
        about="the distilled recipe: two experts without guidance, Euler, four steps of the official schedule, shift 5",
        prompt="雨滴落在窗户上，a paper boat &hellip; la lluvia cae、窓に雨が降り",
        negative="",
        width=48,
        height=32,
        frames=5,
        steps=4,
        guidance=(1.0, 1.0),
        shift=5.0,
        sampler="euler",
        schedule="official",
        seed=2**53 + 1,
        experts=2,
        denoiser=Denoiser(heads=1, head_dim=26, ffn_dim=40, layers=2, freq_dim=96),
        text=TextEncoder(d_model=24, heads=3, d_kv=8, d_ff=32, layers=2),
        vae=Vae(base_dim=4, dim_mult=(1, 2, 4, 4), res_blocks=1, z_dim=4),
        dtype="bf16",
        shard_size="40KB",
    ),
]
