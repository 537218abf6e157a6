"""The masked-token decoder of IRRA and GA-DMS (section 4.3): masked text tokens are predicted from the picture."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from components.errors import ParameterError
from components.weight_files.reading import load_exactly, require_finite


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the activation of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class CrossModalDecoder(nn.Module):
    """Cross-attention (text queries, image keys and values), `depth` bidirectional blocks, and a head over the vocabulary.

    The paper's figure 3 draws the image as the query, but a prediction per text token needs text queries, as in the released code
    and in IRRA.
    """

    def __init__(self, width: int, vocab_size: int, *, depth: int = 4, heads: int | None = None) -> None:
        super().__init__()
        heads = heads or max(1, width // 64)
        if width % heads:
            raise ParameterError(f"decoder heads {heads}: must divide the embedding width {width}")
        self.text_norm = nn.LayerNorm(width)
        self.image_norm = nn.LayerNorm(width)
        self.cross_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation=QuickGELU(), batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.final_norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, width), QuickGELU(), nn.LayerNorm(width))
        self.vocabulary = nn.Linear(width, vocab_size)
        self._initialize(width, depth)

    @torch.no_grad()
    def _initialize(self, width: int, depth: int) -> None:
        """IRRA's deviations: attention D^-1/2, first layers (2D)^-1/2, back to the stream D^-1/2 (2 depth)^-1/2."""
        stream = width**-0.5 * (2 * max(depth, 1)) ** -0.5
        deviations = {
            "in_proj_weight": width**-0.5,
            "linear1.weight": (2 * width) ** -0.5,
            "head.0.weight": (2 * width) ** -0.5,
        }
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                matching = [std for ending, std in deviations.items() if name.endswith(ending)]
                nn.init.normal_(parameter, std=matching[0] if matching else stream)

    def continue_from(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights of a trained decoder. Raises ParameterError for another depth, DataError where it does not fit."""
        depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
        if depth != len(self.blocks):
            raise ParameterError(
                f"decoder_depth = {len(self.blocks)}: the decoder of the pretrained weights has {depth} blocks; set it to {depth}, "
                "or decoder_start to new"
            )
        source = "the decoder of the pretrained weights"
        require_finite(state, source)
        load_exactly(self, state, source, "the encoder")

    def forward(self, text: Tensor, image: Tensor, padding: Tensor | None, masked: Tensor) -> Tensor:
        """Compute logits at the masked positions only: the same loss with a fraction of the memory.

        text (B, L, D), image (B, P, D), masked (B, L) bool -> (N masked, vocabulary). padding (B, L) is True after the end token:
        left out of attention, so that a caption's predictions do not depend on its batch; None attends to every text token.
        """
        keys = self.image_norm(image)
        hidden = self.cross_attention(self.text_norm(text), keys, keys, need_weights=False)[0]
        for block in self.blocks:
            hidden = block(hidden, src_key_padding_mask=padding)
        return self.vocabulary(self.head(self.final_norm(hidden[masked])))


def padding_mask(ids: Tensor, length: int) -> Tensor:
    """True after the end token: ids (B, T) -> bool (B, length)."""
    return torch.arange(length, device=ids.device) > ids.argmax(dim=-1, keepdim=True)
