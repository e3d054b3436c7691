"""FLUX.1 as the pixel decoder: features of the picture take the place of the text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .modeling_unicom_layers import Mlp, grid_places, in_type_of

Grid = tuple[int, int]


class FluxDecoder(nn.Module):
    """diffusers' FLUX over the packed latents of an image, as in UniWorld-V1 (Lin et al. 2025).

    Args:
      transformer: the configuration of a `FluxTransformer2DModel`.
      hidden_dim: of the two-layer projector from features to context tokens.
      guidance: scale that is passed to the network, where it takes one.

    Raises:
      ImportError: diffusers is not installed.
    """

    def __init__(
        self,
        channels: int,
        feature_dim: int,
        hidden_dim: int,
        guidance: float,
        transformer: dict[str, Any],
    ) -> None:
        super().__init__()
        try:
            from diffusers import FluxTransformer2DModel
        except ImportError as error:
            raise ImportError("this model paints with FLUX; pip install diffusers") from error
        self.guidance = guidance
        context_dim = transformer["joint_attention_dim"]
        self.projector = Mlp(feature_dim, hidden_dim, context_dim, activation="silu")
        self.transformer = FluxTransformer2DModel.from_config(transformer)

    def velocity(self, noisy: Tensor, time: Tensor, condition: Tensor, grid: Grid) -> Tensor:
        """dx/dt (B, N, channels) fp32; FLUX counts sigma = 1 - t and gives noise - data."""
        flux, batch = self.transformer, len(noisy)
        places = nn.functional.pad(grid_places(*grid, device=noisy.device), (1, 0))
        guidance = noisy.new_full((batch,), self.guidance) if flux.config.guidance_embeds else None
        context = self.projector(in_type_of(self.projector.fc1, condition))
        pooled = torch.zeros(batch, flux.config.pooled_projection_dim, device=noisy.device)
        out = flux(
            hidden_states=noisy.to(flux.dtype),
            encoder_hidden_states=context.to(flux.dtype),
            pooled_projections=pooled.to(flux.dtype),
            timestep=1.0 - time,
            img_ids=places.float(),
            txt_ids=torch.zeros(context.shape[1], 3, device=noisy.device),
            guidance=guidance,
            return_dict=False,
        )[0]
        return -out.float()
