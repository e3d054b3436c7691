"""PyTorch peers, if they are installed: Qwen3 blocks of transformers, and transfusion-pytorch."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable

from experiments.benchmarks.race import Contestant
from experiments.benchmarks.standard import (
    CLIP_NORM,
    FLOW_WEIGHT,
    LEARNING_RATE,
    TEXT_WEIGHT,
    WEIGHT_DECAY,
    Standard,
)

# name of the contestant -> (packages it needs, compiled, our target as a ratio of times)
PEERS: dict[str, tuple[tuple[str, ...], bool, float]] = {
    "Qwen3 blocks (torch eager)": (("torch", "transformers"), False, 1.0),
    "Qwen3 blocks (torch.compile)": (("torch", "transformers"), True, 1.0),
    "transfusion-pytorch (eager)": (("torch", "transfusion_pytorch"), False, 0.7),
}


def installed(packages: tuple[str, ...]) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)


def cores() -> int:
    """CPU cores that this process may use (`taskset` narrows them, for XLA too)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def training_step(model, loss: Callable[[], object]) -> Callable[[], float]:
    """Backward pass, clipping and the fused AdamW, which is torch's fastest on CPU."""
    import torch

    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(weights, CLIP_NORM)
        optimizer.step()
        return value.item()

    return run


def qwen3(sizes: Standard):
    """(model, loss function): Qwen3 blocks, the standard mask, a latent input and a flow head."""
    import torch
    from torch import nn
    from torch.nn import functional as F
    from transformers import Qwen3Config, Qwen3Model

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = Qwen3Model(
                Qwen3Config(
                    vocab_size=sizes.vocab_size,
                    hidden_size=sizes.width,
                    intermediate_size=sizes.mlp_dim,
                    num_hidden_layers=sizes.depth,
                    num_attention_heads=sizes.heads,
                    num_key_value_heads=sizes.kv_heads,
                    head_dim=sizes.head_dim,
                    use_cache=False,
                    attn_implementation="sdpa",
                )
            )
            self.latent_in = nn.Linear(sizes.latent_dim, sizes.width)
            self.time = nn.Sequential(
                nn.Linear(sizes.time_frequencies, sizes.width),
                nn.SiLU(),
                nn.Linear(sizes.width, sizes.width),
            )
            self.head = nn.Linear(sizes.width, sizes.latent_dim)
            hidden = torch.where(torch.from_numpy(sizes.visible()), 0.0, -torch.inf)
            self.register_buffer("mask", hidden[None, None].repeat(sizes.rows, 1, 1, 1))
            half = sizes.time_frequencies // 2
            rates = torch.exp(-math.log(10_000.0) * torch.arange(half) / half)
            self.register_buffer("rates", 1000.0 * rates)
            self.register_buffer("places", torch.from_numpy(sizes.places()))

        def forward(self, tokens, latents):
            time = torch.rand(len(latents), 1, 1)
            noise = torch.randn_like(latents)
            noisy = time * latents + (1 - time) * noise
            angles = time[:, 0] * self.rates
            when = self.time(torch.cat([angles.cos(), angles.sin()], -1))[:, None]
            text = self.blocks.embed_tokens(tokens)
            x = torch.cat([text, self.latent_in(noisy) + when + self.places], 1)
            x = self.blocks(inputs_embeds=x, attention_mask=self.mask).last_hidden_state
            logits = x[:, : sizes.text_tokens - 1] @ self.blocks.embed_tokens.weight.T
            text_loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            velocity = self.head(x[:, sizes.text_tokens :])
            flow = (velocity - (latents - noise)).square().mean()
            return FLOW_WEIGHT * flow + TEXT_WEIGHT * text_loss

    torch.manual_seed(0)
    model = Model()
    return model, model


def transfusion(sizes: Standard):
    """(model, loss function) of transfusion-pytorch at the same width and depth; its own blocks."""
    from transfusion_pytorch import Transfusion

    model = Transfusion(
        num_text_tokens=sizes.vocab_size,
        dim_latent=sizes.latent_dim,
        modality_default_shape=(sizes.image_tokens,),
        transformer={
            "dim": sizes.width,
            "depth": sizes.depth,
            "heads": sizes.heads,
            "dim_head": sizes.head_dim,
        },
    )

    def loss(tokens, latents):
        return model([[text, (0, image)] for text, image in zip(tokens, latents, strict=True)])

    return model, loss


def contestants(sizes: Standard) -> tuple[list[Contestant], list[str]]:
    """All peers whose packages are here, and one line for each that is left out."""
    ready, missing = [], []
    for name, (packages, compiled, target) in PEERS.items():
        if not installed(packages):
            missing.append(f"{name}: left out, needs pip install {' '.join(packages)}")
            continue
        import torch

        torch.set_num_threads(cores())  # as many as XLA takes
        model, loss = (qwen3 if "transformers" in packages else transfusion)(sizes)
        loss = torch.compile(loss) if compiled else loss
        data = torch.from_numpy(sizes.tokens()).long(), torch.from_numpy(sizes.latents())

        def value(loss=loss, data=data):
            return loss(*data)

        count = sum(p.numel() for p in model.parameters())
        ready.append(Contestant(name, training_step(model, value), count, target))
    return ready, missing
