"""The published training recipe, piece by piece, against its formulas; and the presets against it."""

import math

import pytest
import torch
from torch import nn

from components.errors import ParameterError
from components.gadms.methods import METHODS, RetrievalConfig
from components.gadms.tasks import RetrievalTask
from components.training.config import LoopConfig
from components.training.context import LocalContext
from components.training.loop import fit
from components.training.schedules import learning_rate_factor
from components.training.task import TrainingTask
from pipelines.graph import GADMS_ARMS
from pipelines.identity.closure import ROOT
from pipelines.params import load
from pipelines.presets import resolve

IRRA = {0: 0.10, 1: 0.28, 2: 0.46, 3: 0.64, 4: 0.82, 5: 1.0, 6: 0.9961, 15: 0.6545, 29: 0.0039}


@pytest.mark.parametrize("steps_an_epoch", [1, 7])
def test_the_schedule_has_the_published_rate_at_the_beginning_of_each_epoch(steps_an_epoch):
    for epoch, expected in IRRA.items():
        step, steps = epoch * steps_an_epoch, 30 * steps_an_epoch
        factor = learning_rate_factor(step, steps, 5 * steps_an_epoch, "cosine", 0.1)
        assert factor == pytest.approx(expected, abs=5e-5)


def test_without_a_start_warm_up_begins_one_share_above_zero():
    assert [learning_rate_factor(step, 9, 3, "constant") for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


class Quadratic(TrainingTask):
    """loss = sum of w^2 / 2, so that the gradient is w."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([[3.0, -0.5]]))

    def forward(self, batch, step):
        return {"loss": (self.w**2).sum() / 2}


@pytest.mark.parametrize(("optimizer", "b1"), [("adam", 0.9), ("adamw", 0.9), ("adamw", 0.5)])
def test_adam_adds_its_decay_to_the_gradient_and_adamw_to_the_weights(optimizer, b1):
    rate, decay, eps, b2 = 0.1, 0.3, 1e-3, 0.999
    task = Quadratic()
    loop = LoopConfig(
        steps=3,
        learning_rate=rate,
        weight_decay=decay,
        epsilon=eps,
        optimizer=optimizer,
        beta1=b1,
        beta2=b2,
        clip_norm=0.0,
    )
    fit(task, lambda step: None, loop, LocalContext(), decay="constant")
    w, m, v = torch.tensor([[3.0, -0.5]], dtype=torch.float64), 0, 0
    for step in range(1, 4):
        gradient = w + (decay * w if optimizer == "adam" else 0)
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        if optimizer == "adamw":
            w = w * (1 - rate * decay)
        w = w - rate * (m / (1 - b1**step)) / ((v / (1 - b2**step)).sqrt() + eps)
    torch.testing.assert_close(task.w.detach().double(), w, atol=1e-6, rtol=0)


def test_rates_fall_layer_by_layer_from_the_output_of_each_tower(encoder):
    config = RetrievalConfig(name="irra", decoder_depth=1, layer_decay=0.5, head_lr_factor=5.0, bias_lr_factor=2.0)
    task = RetrievalTask(encoder, config, captions=4, identities=4)
    rate = {id(p): group["lr"] for group in task.parameter_groups(1.0) for p in group["params"]}
    clip = encoder.clip  # 2 blocks see, 3 read
    assert rate[id(clip.text_projection)] == 1.0
    assert rate[id(clip.visual.proj)] == 1.0
    assert rate[id(clip.ln_final.bias)] == 2.0
    assert [rate[id(block.attn.in_proj_weight)] for block in clip.transformer.resblocks] == [0.125, 0.25, 0.5]
    assert [rate[id(block.mlp.c_fc.weight)] for block in clip.visual.transformer.resblocks] == [0.25, 0.5]
    assert rate[id(clip.token_embedding.weight)] == 0.0625
    assert rate[id(clip.visual.positional_embedding)] == 0.125
    assert rate[id(clip.visual.ln_pre.bias)] == 2 * 0.125
    assert rate[id(task.decoder.vocabulary.weight)] == 5.0
    assert set(rate) == {id(p) for p in task.parameters() if p.requires_grad}


def batch_of(ids, pixels):
    return {"pixels": pixels, "ids": ids, "identities": torch.arange(4), "caption_index": torch.arange(4)}


@pytest.mark.parametrize("method", ["gadms", "irra"])
def test_recomputed_activations_give_the_same_gradients(encoder, ids, pixels, method):
    batch = batch_of(ids, pixels)
    gradients = []
    for enable in (False, True):
        encoder.checkpoint_activations(enable)
        task = RetrievalTask(encoder, RetrievalConfig(name=method, decoder_depth=1), captions=4, identities=4)
        task.zero_grad()
        task.train()(batch, 0)["loss"].backward()
        gradients.append({name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None})
    assert encoder.clip.transformer.grad_checkpointing
    assert encoder.clip.visual.transformer.grad_checkpointing
    for name, plain in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], plain, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("method", ["gadms", "irra", "tal"])
def test_bfloat16_is_the_arithmetic_only_and_the_weights_stay_float32(encoder, ids, pixels, method):
    batch = batch_of(ids, pixels)
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    losses = {}
    for precision in ("fp32", "bf16"):
        encoder.load_state_dict(state)
        config = RetrievalConfig(name=method, decoder_depth=1, temperature=0.2)
        task = RetrievalTask(encoder, config, captions=4, identities=4)
        context = LocalContext()
        loop = LoopConfig(steps=2, learning_rate=1e-7, report_every=1, precision=precision)
        fit(task, lambda step: batch, loop, context, decay="constant")
        losses[precision] = [metrics["train/loss"] for _, metrics in context.history]
        moved = encoder.clip.text_projection - state["clip.text_projection"]
        assert 0 < moved.abs().max() < 1e-6  # steps that bfloat16 weights of this size would lose
        assert {p.dtype for p in task.parameters()} == {torch.float32}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.03)
    assert losses["bf16"] != losses["fp32"]


def test_the_method_is_the_arm_unless_the_settings_name_one():
    assert RetrievalConfig(tal_margin=0.3).for_arm("tal") == RetrievalConfig(name="tal", tal_margin=0.3)
    assert RetrievalConfig(name="irra").for_arm("gadms").name == "irra"
    with pytest.raises(ParameterError, match="name = 'taca'"):
        RetrievalConfig().for_arm("taca")


CAPTIONS = {"cuhk-pedes": 68126, "icfg-pedes": 34674, "rstpreid": 37010}


@pytest.mark.parametrize("name", [*CAPTIONS, "research"])
def test_fine_tuning_presets_hold_irras_recipe(name):
    chosen = resolve(ROOT, name)
    assert chosen.gadms_finetune.method.recipe == METHODS["irra"]
    loop = chosen.gadms_finetune.training
    assert (loop.optimizer, loop.epsilon, loop.weight_decay, loop.learning_rate) == ("adam", 1e-3, 4e-5, 1e-5)
    captions = CAPTIONS.get(name, CAPTIONS["cuhk-pedes"])
    assert loop.steps == math.ceil(60 * captions / chosen.gadms_finetune.training.batch)
    assert abs(loop.warmup_steps - 5 * captions / 64) < 1
    method = chosen.gadms_finetune.method
    assert (method.head_lr_factor, method.bias_lr_factor, method.decay_gains, method.decoder_depth) == (5, 2, True, 4)
    assert chosen.retrieval.pretrained == "openai"
    assert (chosen.gadms_finetune.training.validate_every is None) == (name == "icfg-pedes")  # it has no val split


def test_the_pretraining_preset_holds_the_papers_recipe():
    chosen = resolve(ROOT, "webperson-1m")
    settings, loop = chosen.gadms_pretrain, chosen.gadms_pretrain.training
    assert (settings.corpus, chosen.prepare.source) == ("people", "webperson-1m")
    assert (settings.training.batch, loop.learning_rate, loop.epsilon) == (512, 1e-4, 1e-3)
    assert (loop.steps, loop.warmup_steps) == (math.ceil(30 * 2_000_000 / 512), 5 * 2_000_000 // 512)
    assert (settings.method.mtp_weight, settings.method.scoring.layers) == (0.4, 8)


def test_the_default_run_masks_every_visit_by_a_score():
    """Few captions are visited twice, so scores of the visit before would not be there."""
    chosen = load(ROOT / "params.yaml")
    assert chosen.gadms_pretrain.method.score_timing == chosen.gadms_finetune.method.score_timing == "same-step"


def test_arms_of_the_default_run_differ_in_masks_alone():
    chosen = load(ROOT / "params.yaml")
    for method in (chosen.gadms_pretrain.method, chosen.gadms_finetune.method):
        assert method.warmup_steps == 0
        arms = [method.for_arm(arm) for arm in GADMS_ARMS]
        alike = {(a.recipe.matching, a.matching_temperature, a.recipe.mtp_weight, a.recipe.id_weight) for a in arms}
        assert alike == {("contrastive", 0.07, 0.4, 0.0)}
        assert [(a.recipe.masking, a.recipe.match_noise_copy) for a in arms] == [
            ("scores", True), ("random", True), ("random", False),
        ]  # fmt: skip
