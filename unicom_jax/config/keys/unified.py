"""Keys of the unified model: its pathway, transformer and heads."""

from __future__ import annotations

import dataclasses

from unicom_jax.config.key import NEUTRAL, RECORDED, Group, Key
from unicom_jax.config.keys.codec import PREDICTIONS, SD3, TIMES
from unicom_jax.config.keys.encoder import ATTENTION_BACKEND, REMAT, tower

TRANSFORMER = Group(
    "The transformer that reads and writes.",
    {
        **tower(192, 6, 6, 512),
        "kv_heads": Key(2, "Heads of keys and values; divides heads.", least=1),
        "head_dim": Key(32, "Channels of a head; even.", least=2),
        "rope_theta": Key(10_000.0, "Base of the rotary frequencies.", above=0),
        "rope_scaling": Key(
            "none",
            "How rotary positions are scaled for longer texts than the weights were trained on.",
            choices=("none", "linear", "yarn"),
            before="none",
        ),
        "rope_factor": Key(1.0, "How many times longer those texts are.", least=1, before=1.0),
        "rope_sections": Key(
            (),
            "M-RoPE: how many frequencies rotate with time, row and column (Qwen2.5-VL: 16, 24, "
            "24); (): no M-RoPE.",
            least=1,
            before=(),
        ),
        "rope_length": Key(
            0, "yarn: length in tokens that the weights were trained on.", least=0, before=0
        ),
        "norm_eps": Key(
            1e-6,
            "Added to the mean square in RMSNorm; 1e-5 in Qwen2.5-14B and 32B.",
            above=0,
            before=1e-6,
        ),
        "qkv_bias": Key(True, "Biases on queries, keys and values, as in Qwen2."),
        "qk_norm": Key(False, "Normalise queries and keys, as in Qwen3."),
        "tied_head": Key(True, "Use the embedding table as the output layer as well."),
        "embedding_std": Key(
            0.02,
            "Standard deviation of new token embeddings; that of image vectors and block outputs "
            "is about 1.",
            above=0,
            before=0.02,
        ),
        "logit_softcap": Key(
            0.0,
            "Bound c of the text logits, which become c · tanh(logit / c); 0: none.",
            least=0,
            before=0.0,
        ),
        "remat": REMAT,
        "unroll": Key(
            1,
            "Blocks per iteration of the loop; more take longer to compile and may run faster.",
            least=1,
            resume=NEUTRAL,
            before=1,
        ),
        "attention_backend": ATTENTION_BACKEND,
    },
)


def _head_stage(meaning: str, depth: int, heads: int) -> Group:
    """A stage of Cheers' flow head."""
    keys = {
        "depth": Key(depth, "Blocks.", least=1),
        "heads": Key(heads, "Heads of queries; 2 · heads must divide the channels.", least=1),
        "kv_heads": Key(2, "Heads of keys and values; divides heads.", least=1),
        "remat": REMAT,
        "attention_backend": ATTENTION_BACKEND,
    }
    return Group(meaning, {n: dataclasses.replace(k, before=k.default) for n, k in keys.items()})


CHEERS = Group(
    "The image side of pathway cheers: tokenizer and cascaded flow head.",
    {
        "pixels": Key(
            True,
            "The encoder reads the pixels that a trained copy of the autoencoder's decoder paints "
            "from latents; False: it reads latents through a linear layer (the paper's ablation).",
            before=True,
        ),
        "pixel_range": Key(
            "signed",
            "Range of pixels for autoencoder and encoder: signed: -1 to 1; unit: 0 to 1, as for "
            "the released weights.",
            choices=("signed", "unit"),
            before="signed",
        ),
        "decoder_remat": Key(
            False,
            "Recompute that decoder's layers in the backward pass to save memory.",
            resume=NEUTRAL,
            before=False,
        ),
        "gate": Key(
            True, "Add gated details of the patches in the second stage of the head.", before=True
        ),
        "norm": Key(
            True,
            "Apply LayerNorm to the sum of semantics and details, as in the published code; the "
            "paper's formula has none.",
            before=True,
        ),
        "positions": Key(
            "plain",
            "Rotary positions of the second stage: plain: raster order; released: both halves of a "
            "picture's tokens count from 0, as in the published code.",
            choices=("plain", "released"),
            before="plain",
        ),
        "flow_over": Key(
            "drawn",
            "Pictures over which the flow loss is a mean: drawn: those that are drawn; all: also "
            "those that are read, at t = 1 with velocity 0, and dummies, as in the published code.",
            choices=("drawn", "all"),
            resume=RECORDED,
            before="drawn",
        ),
        "dummies": Key(
            False,
            "Let documents without pictures begin with the slots of a black picture at t = 0, as "
            "in the published code.",
            resume=RECORDED,
            before=False,
        ),
        "semantics": _head_stage("First stage of the head, as wide as the transformer.", 2, 6),
        "details": _head_stage("Second stage of the head, as wide as encoder.vision.", 1, 4),
    },
)
UAE = Group(
    "The image side of pathway uae: Qwen2.5-VL's image tower, and an MM-DiT with its connector.",
    {
        "vision": Group(
            "The image tower, which is not trained; a slot is unified.fold x unified.fold patches.",
            {
                name: dataclasses.replace(key, before=key.default)
                for name, key in {
                    **tower(192, 4, 4, 512),
                    "whole_layers": Key(
                        (3,), "The layers, from 0, that attend to the whole picture.", least=0
                    ),
                    "patch_size": Key(
                        16,
                        "Side of the tower's patches; pictures are scaled from data.patch.",
                        least=1,
                    ),
                    "window_size": Key(
                        64, "Side of a window in pixels of the tower; Qwen2.5-VL: 112.", least=1
                    ),
                    "remat": REMAT,
                    "attention_backend": ATTENTION_BACKEND,
                }.items()
            },
        ),
        "decoder": Group(
            "Stable Diffusion 3, which draws the autoencoder's latents.",
            {
                "init_from": Key(
                    "",
                    'A folder of a diffusers SD3 transformer to start from; "": random '
                    "initialisation.",
                    path=True,
                    before="",
                ),
                **SD3.keys,
            },
        ),
    },
)
UNIFIED = Group(
    "The unified model, which the stages align, pretrain, continue, sft, longcap, reca, g4u, u4g "
    "and jointly train.",
    {
        "init_from": Key(
            "",
            "A folder of Qwen2, Qwen2.5 or Qwen3 for the transformer (cheers: or of Cheers for the "
            'whole model; uae: Qwen2.5-VL with its image tower); "": random initialisation.',
            path=True,
            before="",
        ),
        "pathway": Key(
            "transfusion",
            "transfusion (UniCom, Pathway I), query (Pathway II), cheers (Cheers) or uae (UAE); "
            "see docs/configurations.md.",
            choices=("transfusion", "query", "cheers", "uae"),
        ),
        "fold": Key(
            1,
            "Latents on each side of a slot; 2: a picture takes a quarter of the slots (in "
            "pathways that support it).",
            least=1,
            before=1,
        ),
        "understanding": Key(
            "features",
            "How the model reads a picture that is asked about.",
            choices=("features", "latents", "channel_concat", "sequence_concat"),
        ),
        "edit_source": Key(
            "latents",
            "How the model reads a picture to edit.",
            choices=("latents", "features", "both"),
        ),
        "edit_words": Key(
            "after",
            "Where the words of an edit are: after or before the picture to edit. before: its "
            "slots can read the instruction.",
            choices=("after", "before"),
            before="after",
        ),
        "image_positions": Key(
            "grid",
            "Rotary positions of a picture's slots: grid: row and column around the diagonal; "
            "plain: one after the other, like text; mrope: those of Qwen2.5-VL, which reads a "
            "picture's slots like words (uae).",
            choices=("grid", "plain", "mrope"),
            before="grid",
        ),
        "transformer": TRANSFORMER,
        "head": Group(
            "The flow head (transfusion).",
            {
                "kind": Key("linear", "Kind of head.", choices=("linear", "mlp", "adaln")),
                "hidden_dim": Key(0, "Channels inside; 0: those of the transformer.", least=0),
                "depth": Key(3, "Blocks (adaln).", least=1),
                "remat": dataclasses.replace(REMAT, before="none"),
            },
        ),
        "prediction": Key(
            "velocity", "What the flow head or decoder predicts.", choices=PREDICTIONS
        ),
        "time_floor": Key(
            0.05,
            "Lower bound of 1 - t in the loss of data prediction.",
            above=0,
            most=1,
            resume=RECORDED,
        ),
        "connector": Group(
            "The connector between transformer and flow decoder (query).",
            {
                "depth": Key(2, "Blocks.", least=1),
                "remat": dataclasses.replace(REMAT, before="none"),
                "attention_backend": dataclasses.replace(ATTENTION_BACKEND, before="dense"),
            },
        ),
        "flow_decoder": Group(
            "The flow decoder (query).",
            {
                **tower(192, 4, 4, 768),
                "remat": Key(
                    False,
                    "Recompute blocks in the backward pass to save memory.",
                    resume=NEUTRAL,
                    before=False,
                ),
                "attention_backend": dataclasses.replace(ATTENTION_BACKEND, before="dense"),
            },
        ),
        "cheers": CHEERS,
        "uae": UAE,
        "time": Key("uniform", "Distribution of the flow time.", choices=TIMES, resume=RECORDED),
        "time_shift": Key(
            1.0,
            "Above 1: more of the flow times are near noise; 0: sqrt(tokens · channels / 4096).",
            least=0,
            resume=RECORDED,
        ),
        "tuned_at": Key(
            (),
            "Sizes of the smaller model for which learning rates, weight decay and eps were tuned, "
            'e.g. ("transformer.width=64", "transformer.heads=2"); initial weights and updates are '
            "rescaled for this one. (): nothing is rescaled. See docs/optimizer.md.",
            item=str,
            commas=True,
            before=(),
        ),
        "z_loss": Key(
            0.0,
            "Weight of log² Z in the text loss, which keeps logits near 0, e.g. 1e-4; 0: none.",
            least=0,
            resume=RECORDED,
            before=0.0,
        ),
        "text_chunk": Key(
            0,
            "Slots of a row whose logits are computed at once; 0: an eighth of the row, at least "
            "64.",
            least=0,
            resume=NEUTRAL,
        ),
    },
)
