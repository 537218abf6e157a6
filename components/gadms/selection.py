"""Selection of the best weights of a training run, by periodic validation.

Published code keeps the epoch that is best on the test split; here the validation split decides.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from components.errors import DataError, ParameterError
from components.evaluation.retrieval import retrieval_metrics
from components.gadms.embedding import embed_captions, embed_images
from components.gadms.model import DualEncoder


class BestWeights(nn.Module):
    """A copy of the weights of an encoder, and of the decoder trained with it, at the best validation so far.

    They are buffers of the task and so in its checkpoints: a killed run resumes with them. They take as much memory as the models.
    """

    score: Tensor
    step: Tensor

    def __init__(self, encoder: DualEncoder, decoder: nn.Module | None = None) -> None:
        super().__init__()
        # Not an attribute of its own for each module, because it would be registered here a second time.
        self.models = {"": encoder.clip} | ({"decoder/": decoder} if decoder is not None else {})
        self.register_buffer("score", torch.tensor(-torch.inf, dtype=torch.float64))
        self.register_buffer("step", torch.tensor(0))
        for prefix, model in self.models.items():
            for name, tensor in model.state_dict().items():
                self.register_buffer(_flat(prefix, name), tensor.detach().clone())

    @torch.no_grad()
    def update_if_better(self, score: float, step: int) -> None:
        """Copy the weights if `score` (percent) is above all before by more than rounding; the earlier of equal ones stays."""
        if score <= self.score.item() + 1e-9:
            return
        self.score.fill_(score)
        self.step.fill_(step)
        for prefix, model in self.models.items():
            for name, tensor in model.state_dict().items():
                self.get_buffer(_flat(prefix, name)).copy_(tensor)

    def restore(self) -> None:
        """Load the best weights into the models. Raises ParameterError where none was validated."""
        if not self.step:
            raise ParameterError("no weights were validated: validate_every must not be above steps")
        for prefix, model in self.models.items():
            model.load_state_dict({name: self.get_buffer(_flat(prefix, name)) for name in model.state_dict()})


def _flat(prefix: str, name: str) -> str:
    """The name of a weight's buffer, which may have no dots."""
    return prefix + name.replace(".", "/")


class PeriodicValidation:
    """Validate after reported steps (`fit`'s on_report): every `every` steps and after the last, return `val/R@1`, `val/mAP`
    and `val/tied_share`.

    Captions search pictures; captions, image_ids and identities have one entry per caption. Every rank computes all of it, because
    the others would wait for it anyway.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        best: BestWeights,
        captions: Sequence[str],
        image_ids: Sequence[int],
        identities: Sequence[int],
        pixels: Callable[[Sequence[int]], Tensor],
        *,
        every: int,
        steps: int,
    ) -> None:
        if not captions:
            raise DataError("validation: no captions in the val split")
        self.encoder, self.best, self.captions, self.pixels = encoder, best, captions, pixels
        self.every, self.steps = every, steps
        gallery = dict(zip(image_ids, identities, strict=True))
        self.gallery = list(gallery)
        self.gallery_ids = torch.tensor(list(gallery.values()))
        self.query_ids = torch.tensor(list(identities))

    def __call__(self, step: int) -> dict[str, float]:
        if step % self.every and step != self.steps:
            return {}
        pictures = embed_images(self.encoder, self.gallery, self.pixels)
        texts = embed_captions(self.encoder, self.captions)
        found = retrieval_metrics(texts, pictures, self.query_ids, self.gallery_ids)
        self.best.update_if_better(found["R@1"], step)
        return {f"val/{name}": found[name] for name in ("R@1", "mAP", "tied_share")}
