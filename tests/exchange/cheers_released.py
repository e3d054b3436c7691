"""A small checkpoint in the layout of Cheers' release, made of plain torch modules."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.models import cheers_torch as parts
from tests.models.cheers_head_torch import Head
from tests.models.torch_weights import randomise

PATCH, SIDE, WIDTH, CHANNELS = 4, 4, 32, 8  # 16 pixels, 4 x 4 tokens of 4 * 8 channels
LEVELS, GROUPS, VOCABULARY = (32, 64), 32, 300
CONFIG = {
    "architectures": ["Cheers"],
    "model_type": "umm",
    "vae_encoder_config": {"resolution": 16, "ch": 32, "ch_mult": [1, 2], "z_channels": 8},
    "vae_decoder_config": {"resolution": 16, "ch": 32, "ch_mult": [1, 2], "z_channels": 8},
    "vision_representation_config": {
        "hidden_size": WIDTH,
        "image_size": PATCH * SIDE,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "patch_size": PATCH,
    },
    "text_config": {
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
        "vocab_size": VOCABULARY,
    },
}
# What the run has to be.
OVERRIDES = {
    "stages": ("sft",),
    "data__image_size": PATCH * SIDE,
    "data__patch": PATCH,
    "data__scenes__sizes": ((PATCH * SIDE, PATCH * SIDE),),
    "autoencoder__latent_channels": CHANNELS,
    "autoencoder__widths": LEVELS,
    "autoencoder__resnets": 2,
    "autoencoder__norm_groups": GROUPS,
    "data__unconditional": "masked",
    "unified__image_positions": "plain",
    "unified__pathway": "cheers",
    "unified__fold": 2,
    "unified__transformer__rope_theta": 1e6,
    "unified__cheers__pixel_range": "unit",
    "unified__cheers__positions": "released",
    "unified__cheers__semantics__depth": 7,
    "unified__cheers__details__depth": 3,
}
# The parts of `cheers_torch.Images` and their tensors, to the release's names.
NAMES = (
    (r"^decoder\.", "vae_decoder_projector."),
    (r"^vae\.", "vae_model."),
    (r"(projector|model)\.statistics\.mean", r"\1.bn.running_mean"),
    (r"(projector|model)\.statistics\.variance", r"\1.bn.running_var"),
    (r"(projector|model)\.quant_conv", r"\1.encoder.quant_conv"),
    (r"(projector|model)\.post_quant_conv", r"\1.decoder.post_quant_conv"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_(.)", r"mid.attn_1.\1"),
    (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.0\.(resnets)", r"up.1.block"),  # two resolutions, here from below
    (r"up_blocks\.1\.(resnets)", r"up.0.block"),
    (r"up_blocks\.0\.upsamplers\.0", r"up.1.upsample"),
    (r"^vision\.embedding\.", "vision_representation.embeddings.patch_embedding."),
    (r"^vision\.positions", "vision_representation.embeddings.position_embedding.weight"),
    (r"^vision\.norm", "vision_representation.post_layernorm"),
    (r"^vision\.blocks", "vision_representation.encoder.layers"),
    (r"(layers\.\d)\.attention_norm", r"\1.layer_norm1"),
    (r"(layers\.\d)\.mlp_norm", r"\1.layer_norm2"),
    (r"(layers\.\d)\.attention\.out", r"\1.self_attn.out_proj"),
    (r"(layers\.\d)\.attention\.(query|key|value)", r"\1.self_attn.\2"),
    (r"self_attn\.(q|k|v)[a-z]+", r"self_attn.\1_proj"),
    (r"(layers\.\d)\.mlp\.up", r"\1.mlp.fc1"),
    (r"(layers\.\d)\.mlp\.down", r"\1.mlp.fc2"),
    (r"^projector\.norm", "und_projector.layernorm"),
    (r"^projector\.mlp\.up", "und_projector.mlp.0"),
    (r"^projector\.mlp\.down", "und_projector.mlp.2"),
    (r"^head\.semantics_time\.up", "time_embed.mlp_1.0"),
    (r"^head\.semantics_time\.down", "time_embed.mlp_1.2"),
    (r"^head\.details_time\.up", "time_embed.mlp_2.0"),
    (r"^head\.details_time\.down", "time_embed.mlp_2.2"),
    (r"^head\.gate\.up", "hi_gate.gate.0"),
    (r"^head\.gate\.down", "hi_gate.gate.2"),
    (r"^head\.norm", "hi_gate.layer_norm"),
    (r"^head\.semantics\.", "gen_projector."),
    (r"^head\.details\.", "hi_projector."),
    (r"^((gen|hi)_projector)\.blocks\.(\d)", r"\1.diffusion_head_a.\3"),
    (r"^((gen|hi)_projector)\.(norm|modulation|output)", r"\1.diffusion_head_b.\3"),
    (r"head_b\.norm", "head_b.norm_final"),
    (r"head_b\.output", "head_b.linear"),
    (r"(head_.*)\.modulation", r"\1.adaLN_modulation.1"),
    (r"(head_a\.\d)\.attention_norm", r"\1.input_layernorm"),
    (r"(head_a\.\d)\.mlp_norm", r"\1.post_attention_layernorm"),
    (r"(head_a\.\d)\.attention\.out", r"\1.attn.o_proj"),
    (r"(head_a\.\d)\.attention\.(q|k|v)[a-z]+", r"\1.attn.\2_proj"),
    (r"(head_a\.\d)\.mlp\.(gate|up|down)", r"\1.mlp.\2_proj"),
)


class Model(nn.Module):
    """Frozen autoencoder's encoder, image side and language model."""

    def __init__(self) -> None:
        super().__init__()
        self.vae = parts.Encoder(CHANNELS, LEVELS, 2, GROUPS)
        self.images = parts.Images(
            parts.Decoder(CHANNELS, LEVELS[::-1], 3, GROUPS),
            parts.Vision(PATCH, WIDTH, 1, 2, 32, SIDE),
            parts.Projector(WIDTH, WIDTH),
            Head((WIDTH, 4 * WIDTH, 7, 2, 1), (WIDTH, 4 * CHANNELS, 3, 2, 1), halves=True),
        )
        sizes = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "head_dim": 16}
        self.language = Qwen2ForCausalLM(Qwen2Config(**CONFIG["text_config"], **sizes))

    def forward(self, pictures, noise, time, words):
        """(latents, logits at `words`, velocity) of words with the noisy picture behind them."""
        clean = self.vae(pictures)
        noisy = time[:, None, None] * clean + (1 - time[:, None, None]) * noise
        embedded, features = self.images.vision(self.images.decoder(noisy))
        table = self.language.get_input_embeddings()
        hidden = torch.cat([table(words), self.images.projector(features)], 1)
        count, first = hidden.shape[1], words.shape[1]
        sees = torch.tril(torch.ones(count, count, dtype=torch.bool))
        sees[first:, first:] = True
        states = self.language.model(inputs_embeds=hidden, attention_mask=sees[None, None])[0]
        logits = self.language.lm_head(states[:, :first])
        return clean, logits, self.images.head(states[:, first:], time, embedded)


def write(folder: Path) -> Model:
    """A checkpoint with random weights, and the model that it is of."""
    model = Model().eval()
    randomise(model, std=0.1)
    frozen = parts.Decoder(CHANNELS, LEVELS[::-1], 3, GROUPS)
    randomise(frozen, seed=1, std=0.1)
    statistics = [model.vae.statistics, model.images.decoder.statistics]
    for one in statistics:
        one.mean.normal_(0.0, 0.3)
        one.variance.uniform_(0.5, 2.0)
    tensors = {f"model.{foreign(n)}": v for n, v in model.images.state_dict().items()}
    for part in (model.vae, frozen):
        named = {f"vae.{n}": v for n, v in part.state_dict().items()}
        tensors = {**{f"model.{foreign(n)}": v for n, v in named.items()}, **tensors}
    for name, value in model.vae.state_dict().items():
        tensors[f"model.{foreign(f'vae.{name}')}"] = value
    for name, value in model.language.state_dict().items():
        tensors[re.sub(r"^model\.", "model.language_model.", name)] = value
    tensors = {name: shaped(name, value).detach().numpy() for name, value in tensors.items()}
    tensors |= pooling()
    for part in ("vae_model", "vae_decoder_projector"):
        tensors[f"model.{part}.bn.num_batches_tracked"] = np.array(9, np.int64)
    folder.mkdir(parents=True)
    save_file(
        {n: np.ascontiguousarray(v) for n, v in tensors.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return model


def foreign(name: str) -> str:
    for pattern, theirs in NAMES:
        name = re.sub(pattern, theirs, name)
    return name


def shaped(name: str, value: torch.Tensor) -> torch.Tensor:
    """Some linear layers are convolutions there; ours of patches counts (row, column, channel)."""
    if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name):
        return value[:, :, None, None]
    if name.endswith("patch_embedding.weight"):
        return value.unflatten(1, (PATCH, PATCH, 3)).permute(0, 3, 1, 2)
    return value.flatten(0, 1) if name.endswith("position_embedding.weight") else value


def pooling() -> dict[str, np.ndarray]:
    """SigLIP's attention pooling, which is stored and read by nothing."""
    shapes = {
        "probe": (1, 1, WIDTH),
        "attention.in_proj_weight": (3 * WIDTH, WIDTH),
        "attention.in_proj_bias": (3 * WIDTH,),
        "attention.out_proj.weight": (WIDTH, WIDTH),
        "attention.out_proj.bias": (WIDTH,),
        "layernorm.weight": (WIDTH,),
        "layernorm.bias": (WIDTH,),
        "mlp.fc1.weight": (32, WIDTH),
        "mlp.fc1.bias": (32,),
        "mlp.fc2.weight": (WIDTH, 32),
        "mlp.fc2.bias": (WIDTH,),
    }
    rng, prefix = np.random.default_rng(3), "model.vision_representation.head."
    return {prefix + n: rng.normal(size=shape).astype(np.float32) for n, shape in shapes.items()}
