"""Whole pipelines around the models of `tiny_transformers`: real classes, random, written by `save_pretrained` and read back.

    pipe = PIPELINES["z-image"].read_back(folder)
    PIPELINES["z-image"].draw(pipe, guidance=3.0)

With those of `small_pipelines`, whose words they know.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import small_pipelines
import torch
from picture_pipelines import (
    SIDE,
    picture,
    small_joyimage_edit_plus_pipeline,
    small_kontext_pipeline,
    small_qwen_edit_pipeline,
    small_references,
)
from small_pipelines import _read_back, _scheduler, _seeded, _t5, _tokenizer, small_vae
from tiny_transformers import TINY, WIDTH

TOKENS = 6
_CHAT = "{% for message in messages %}{{ message.content }}{% endfor %}"


@dataclass(frozen=True)
class TinyPipeline:
    """A pipeline class, its parts beside scheduler and transformer, and how it guides.

    - `guided`: for each call of the transformer in a step, which of its samples are conditional: "+" or unconditional: "-".
    - `unguided_calls`: the same for drawing without guidance. `unguided`: the scale of guidance at which it does not guide.
    - `size`: of the picture. `around`: what surrounds the drawing.
    - `transformer`: the name of its tiny transformer, and `config`: what differs from that one's.
    - `small`: the function of `small_pipelines` that makes it instead.
    """

    pipeline: str
    guided: tuple[str, ...]
    parts: Callable[[], dict[str, Any]] = dict
    transformer: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    size: int = 16
    unguided: float = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    unguided_calls: tuple[str, ...] = ("+",)
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    small: Callable[[Path], Any] | None = None

    def read_back(self, folder: Path) -> Any:
        """Write the pipeline to a folder, and read it."""
        if self.small:
            return self.small(folder)
        import diffusers

        tiny = TINY[self.transformer]
        transformer = replace(tiny, config=tiny.config | self.config).build()

        def build() -> Any:
            parts = {"scheduler": _scheduler(), "transformer": transformer} | self.parts()
            return getattr(diffusers, self.pipeline)(**parts)

        pipe = _read_back(_seeded(0, build), folder)
        if self.transformer == "hidream":
            pipe.default_sample_size = self.size // pipe.vae_scale_factor  # to which it enlarges pictures
        return pipe

    def draw(self, pipe: Any, guidance: float | None = None, **options: Any) -> torch.Tensor:
        """Draw one picture in two steps; return its latents. Without guidance unless a scale is given."""
        taken = inspect.signature(pipe.__call__).parameters
        scale = "true_cfg_scale" if "true_cfg_scale" in taken else "guidance_scale"
        given = {
            "prompt": "red hat",
            "negative_prompt": None if guidance is None else "blue",
            scale: self.unguided if guidance is None else guidance,
            "height": self.size,
            "width": self.size,
            "num_inference_steps": 2,
            "max_sequence_length": TOKENS,
            "output_type": "latent",
            "generator": torch.Generator().manual_seed(5),
            "return_dict": False,
        }
        given |= self.options | options
        with self.around():
            return pipe(**{name: value for name, value in given.items() if name in taken})[0]


def _words(max_length: int = TOKENS, prefix: str = "") -> Any:
    tokenizer = _tokenizer(max_length, framed=False)
    tokenizer.chat_template = prefix + _CHAT
    return tokenizer


def _language(name: str, width: int = WIDTH, layers: int = 2, **config: Any) -> Any:
    """A tiny language model of transformers: `name` is its class, e.g. "Qwen3Model"."""
    import transformers

    family = name.removesuffix("ForCausalLM").removesuffix("Model")
    return getattr(transformers, name)(
        getattr(transformers, f"{family}Config")(
            vocab_size=8,
            hidden_size=width,
            intermediate_size=width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=width // 2,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
            **config,
        )
    )


def _t5_parts(vae: Any) -> dict[str, Any]:
    return {"vae": vae, "text_encoder": _t5(), "tokenizer": _words()}


def _bria() -> dict[str, Any]:
    return _t5_parts(small_vae(2))


def _mochi() -> dict[str, Any]:
    from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler

    channels = (32, 32, 32, 32)
    vae = AutoencoderKLMochi(
        encoder_block_out_channels=channels, decoder_block_out_channels=channels, layers_per_block=(1, 1, 1, 1, 1)
    )
    return _t5_parts(vae) | {"scheduler": FlowMatchEulerDiscreteScheduler(shift=1.0, invert_sigmas=True)}


def _cogvideox() -> dict[str, Any]:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler

    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
    )
    return _t5_parts(vae) | {"scheduler": CogVideoXDDIMScheduler(timestep_spacing="trailing")}


def _lumina2() -> dict[str, Any]:
    return {"vae": small_vae(4), "text_encoder": _language("Gemma2Model"), "tokenizer": _words()}


def _cogview4() -> dict[str, Any]:
    return {"vae": small_vae(4), "text_encoder": _language("GlmModel"), "tokenizer": _words()}


def _z_image() -> dict[str, Any]:
    return {"vae": small_vae(4), "text_encoder": _language("Qwen3Model"), "tokenizer": _words()}


def _flux2_klein() -> dict[str, Any]:
    from diffusers import AutoencoderKLFlux2

    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    return {"vae": vae, "text_encoder": _language("Qwen3ForCausalLM", WIDTH // 3, layers=3), "tokenizer": _words()}


def _ernie_image() -> dict[str, Any]:
    return _flux2_klein() | {"text_encoder": _language("Qwen3Model")}


def _omnigen() -> dict[str, Any]:
    """Its prompts count a token of a picture for 16x16 pixels, so the VAE's scale is 8. Its tokenizer does not cut prompts."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, invert_sigmas=True)
    return {"vae": small_vae(4, blocks=4), "tokenizer": _words(100), "scheduler": scheduler}


@contextmanager
def _seeded_globally() -> Iterator[None]:
    """OmniGen samples the latents of a picture in the prompt from the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _ovis_image() -> dict[str, Any]:
    """Its instruction to the language model, which it cuts off, has 28 tokens: 19 words and, here, 9 more."""
    return {"vae": small_vae(2), "text_encoder": _language("Qwen3Model"), "tokenizer": _words(prefix="a " * 9)}


def _hidream() -> dict[str, Any]:
    from small_pipelines import CLIP_TOKENS, _clip
    from transformers import CLIPTextModelWithProjection

    return {
        "vae": small_vae(4),
        "text_encoder": CLIPTextModelWithProjection(_clip(8, 8)),
        "tokenizer": _tokenizer(CLIP_TOKENS, framed=True),
        "text_encoder_2": CLIPTextModelWithProjection(_clip(8, 4)),
        "tokenizer_2": _tokenizer(CLIP_TOKENS, framed=True),
        "text_encoder_3": _t5(),
        "tokenizer_3": _words(),
        "text_encoder_4": _language("LlamaForCausalLM", 20, layers=3),
        "tokenizer_4": _words(),
    }


ONE_BATCH, TWO_PASSES = ("-+",), ("+", "-")

PIPELINES = {
    "flux": TinyPipeline("FluxPipeline", TWO_PASSES, small=small_pipelines.small_flux_pipeline),
    "chroma": TinyPipeline("ChromaPipeline", TWO_PASSES, small=small_pipelines.small_chroma_pipeline),
    "sd3": TinyPipeline("StableDiffusion3Pipeline", ONE_BATCH, small=small_pipelines.small_sd3_pipeline),
    "flux-kontext": TinyPipeline(
        "FluxKontextPipeline",
        TWO_PASSES,
        small=small_kontext_pipeline,
        options={"image": picture(), "_auto_resize": False, "max_area": SIDE * SIDE},
    ),
    "qwen-image-edit": TinyPipeline(
        "QwenImageEditPipeline",
        TWO_PASSES,
        small=small_qwen_edit_pipeline,
        options={"image": picture()},
        around=small_references,
    ),
    "auraflow": TinyPipeline("AuraFlowPipeline", ONE_BATCH, small=small_pipelines.small_auraflow_pipeline),
    "qwen-image": TinyPipeline("QwenImagePipeline", TWO_PASSES, small=small_pipelines.small_qwen_pipeline),
    "bria": TinyPipeline("BriaPipeline", ONE_BATCH, _bria, "bria"),
    "cogvideox": TinyPipeline(
        "CogVideoXPipeline", ONE_BATCH, _cogvideox, "cogvideox", size=64, options={"num_frames": 5}
    ),
    "cogview4": TinyPipeline("CogView4Pipeline", TWO_PASSES, _cogview4, "cogview4"),
    "ernie-image": TinyPipeline("ErnieImagePipeline", ONE_BATCH, _ernie_image, "ernie-image"),
    "flux2-klein": TinyPipeline(
        "Flux2KleinPipeline", TWO_PASSES, _flux2_klein, "flux2", options={"text_encoder_out_layers": (1, 2, 3)}
    ),
    "joyimage-edit-plus": TinyPipeline(
        "JoyImageEditPlusPipeline", ONE_BATCH, small=small_joyimage_edit_plus_pipeline, size=64
    ),
    "hidream": TinyPipeline("HiDreamImagePipeline", ONE_BATCH, _hidream, "hidream"),
    "lumina2": TinyPipeline(
        "Lumina2Pipeline", TWO_PASSES, _lumina2, "lumina2", size=64, options={"system_prompt": "coat"}
    ),
    "mochi": TinyPipeline(
        "MochiPipeline", ONE_BATCH, _mochi, "mochi", {"in_channels": 12}, size=64, options={"num_frames": 1}
    ),
    "omnigen": TinyPipeline(  # which guides always
        "OmniGenPipeline", ("+-",), _omnigen, "omnigen", size=64, unguided_calls=("+-",)
    ),
    "omnigen-picture": TinyPipeline(
        "OmniGenPipeline",
        ("+--",),
        _omnigen,
        "omnigen",
        size=64,
        around=_seeded_globally,
        unguided_calls=("+--",),
        options={"prompt": "red <img><|image_1|></img> hat", "input_images": [picture(64)]},
    ),
    "ovis-image": TinyPipeline("OvisImagePipeline", TWO_PASSES, _ovis_image, "ovis-image", {"out_channels": 8}),
    "z-image": TinyPipeline("ZImagePipeline", ("+-",), _z_image, "z-image", unguided=0.0),
}
