"""Stable Diffusion 3, conditioned on features of a picture or the states of a language model
instead of text embeddings.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .modeling_unicom_codec import pack, unpack
from .modeling_unicom_layers import Mlp, in_type_of

Grid = tuple[int, int]


class SD3Decoder(nn.Module):
    """diffusers' Stable Diffusion 3 over the latents of an image, with the connector of UAE.

    Args:
      transformer: the configuration of an `SD3Transformer2DModel`.
      channels: numbers in a token, a square of its patch size.
      feature_dim, hidden_dim: the width of the features and that of the hidden layer of the
        projector from them to context tokens.

    Raises:
      ImportError: diffusers is not installed.
    """

    def __init__(
        self, channels: int, feature_dim: int, hidden_dim: int, transformer: dict[str, Any]
    ) -> None:
        super().__init__()
        try:
            from diffusers import SD3Transformer2DModel
        except ImportError as error:
            raise ImportError(
                "this model paints with Stable Diffusion 3; pip install diffusers"
            ) from error
        context_dim = transformer["joint_attention_dim"]
        self.projector = Mlp(feature_dim, hidden_dim, context_dim, activation="gelu")
        self.transformer = SD3Transformer2DModel.from_config(transformer)

    def velocity(self, noisy: Tensor, time: Tensor, condition: Tensor, grid: Grid) -> Tensor:
        """dx/dt (B, N, channels) fp32, from features (B, N, feature_dim)."""
        return self.speed(noisy, time, self.connect(condition), grid)

    def connect(self, condition: Tensor) -> Tensor:
        """Context tokens (B, T, W) of features or states (B, T, feature_dim)."""
        return self.projector(in_type_of(self.projector.fc1, condition))

    def speed(self, noisy: Tensor, time: Tensor, context: Tensor, grid: Grid) -> Tensor:
        """dx/dt (B, N, channels) fp32, from context tokens, all of which are seen.

        The network counts 1000 (1 - t) and gives noise - data.
        """
        network = self.transformer
        pooled = torch.zeros(len(noisy), network.config.pooled_projection_dim, device=noisy.device)
        out = network(
            hidden_states=unpack(noisy, grid, network.config.patch_size).to(network.dtype),
            encoder_hidden_states=context.to(network.dtype),
            pooled_projections=pooled.to(network.dtype),
            timestep=1000.0 * (1.0 - time),
            return_dict=False,
        )[0]
        return -pack(out.float(), network.config.patch_size)
