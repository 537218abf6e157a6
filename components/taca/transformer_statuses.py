"""What TACA is for each transformer class of diffusers: supported, without meaning, or not supported for a reason.

The supported ones are the families (`registry.FAMILIES`); every other class of `diffusers.models.transformers`, and of the UNets
and ControlNets that users would try, is named here with the reason. A class that a newer diffusers adds needs a family or a line.
"""

from typing import Literal

Status = Literal["joint", "image queries only", "no text in the softmax", "not supported"]

_CROSS_ATTENTION = "its text comes through a cross-attention of its own"
_NO_TEXT = "it takes no text"
_SOUND = "it makes sound: no picture's tokens meet the text's"
_SEVERAL_LEVELS = "one softmax holds text, pictures and sound, each token at a noise level of its own"
_NOT_A_DENOISER = "it predicts one embedding, and has no image tokens"
_CONTROLNET = "it only steers another transformer; enable TACA on that one"

_NO_TEXT_IN_THE_SOFTMAX: dict[str, tuple[str, ...]] = {
    _CROSS_ATTENTION: (
        "AllegroTransformer3DModel", "AnyFlowFARTransformer3DModel", "AnyFlowTransformer3DModel", "ChronoEditTransformer3DModel",
        "CosmosTransformer3DModel", "DreamLiteTransformer2DModel", "DreamLiteUNetModel",
        "DualTransformer2DModel", "HeliosTransformer3DModel",
        "HunyuanDiT2DModel", "I2VGenXLUNet", "Kandinsky3UNet", "Kandinsky5Transformer3DModel", "Kandinsky6Transformer3DModel",
        "LTX2VideoTransformer3DModel", "LTXVideoTransformer3DModel", "LatteTransformer3DModel", "LuminaNextDiT2DModel",
        "PixArtTransformer2DModel", "SanaTransformer2DModel", "SanaVideoTransformer3DModel", "SanaWMLTX2RefinerTransformer3DModel",
        "SanaWMTransformer3DModel", "SkyReelsV2Transformer3DModel", "StableCascadeUNet", "Transformer2DModel",
        "TransformerTemporalModel", "UNet2DConditionModel", "UNet3DConditionModel",
        "UNetControlNetXSModel", "UNetMotionModel", "UNetSpatioTemporalConditionModel", "UVit2DModel",
        "WanAnimate2Transformer3DModel", "WanAnimateTransformer3DModel", "WanTransformer3DModel", "WanVACETransformer3DModel",
    ),
    f"{_CROSS_ATTENTION}; what joins the image is a learned summary": ("BriaFibo2Transformer2DModel",),
    _NO_TEXT: (
        "DiTTransformer2DModel", "Kandinsky6SRTransformer3DModel", "RFD4ProteinaTransformer", "UNet1DModel", "UNet2DModel",
    ),
    _SOUND: (
        "AceStepTransformer1DModel", "LongCatAudioDiTTransformer", "MiniMaxMusic3RVQDepthDecoder",
        "MiniMaxMusic3Transformer1DModel", "StableAudio3DiTModel", "StableAudioDiTModel", "T5FilmDecoder",
    ),
}  # fmt: skip
_NOT_SUPPORTED: dict[str, tuple[str, ...]] = {
    _SEVERAL_LEVELS: ("Cosmos3OmniTransformer", "MiniMaxH3Transformer3DModel"),
    _NOT_A_DENOISER: ("PriorTransformer",),
    _CONTROLNET: (
        "FluxControlNetModel", "QwenImageControlNetModel", "SD3ControlNetModel", "ZImageControlNetModel",
    ),
}  # fmt: skip

_REASONS: tuple[tuple[Status, dict[str, tuple[str, ...]]], ...] = (
    ("no text in the softmax", _NO_TEXT_IN_THE_SOFTMAX),
    ("not supported", _NOT_SUPPORTED),
)
OTHERS: dict[str, tuple[Status, str]] = {
    name: (status, reason) for status, reasons in _REASONS for reason, names in reasons.items() for name in names
}
"""Class name -> its status and the reason for it, of every class that is no family."""
