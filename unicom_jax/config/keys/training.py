"""Keys that every stage has: length, batches, seed, optimiser, reports."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from unicom_jax.config.key import NEUTRAL, RECORDED, Group, Key, each

LENGTH = {
    "steps": Key(1000, "Length of the stage in steps.", least=1, resume=NEUTRAL),
    "batch_size": Key(
        32,
        "Packed rows per step; pictures in stages that do not read packed rows.",
        least=1,
        resume=RECORDED,
    ),
    "accumulate": Key(
        1,
        "Number of parts into which a batch is split to save memory; the gradient is that of the "
        "whole batch.",
        least=1,
        resume=NEUTRAL,
    ),
}
RANDOMNESS = {
    "seed": Key(
        -1,
        "Seed of this stage's data, initial weights and noise; -1: that of the run.",
        least=-1,
        most=1_000_000,  # below the seeds of held-out scenes (`data_pipelines.build`)
        before=-1,
    ),
}
OPTIMIZER = {
    "learning_rate": Key(1e-3, "Peak learning rate.", least=0, resume=RECORDED),
    "schedule": Key(
        "constant",
        "Course of the learning rate after the warm-up.",
        choices=("constant", "cosine", "linear", "wsd"),
        resume=RECORDED,
    ),
    "decay_share": Key(
        0.2,
        "Share of the steps, at the end, in which the rate falls to 0 (schedule wsd).",
        above=0,
        most=1,
        resume=RECORDED,
        before=0.2,
    ),
    "warmup_steps": Key(50, "Steps over which the rate rises.", least=0, resume=RECORDED),
    "tuned_steps": Key(
        0,
        "Length of the run for which learning_rate, weight_decay, eps, b1 and b2 were tuned; they "
        "are rescaled for this one (adamw). 0: they are used as they are.",
        least=0,
        resume=RECORDED,
        before=0,
    ),
    "optimizer": Key("adamw", "The optimiser; see docs/optimizer.md.", choices=("adamw", "muon")),
    "b1": Key(0.9, "Decay of the first moment.", least=0, below=1, resume=RECORDED),
    "b2": Key(0.95, "Decay of the second moment.", least=0, below=1, resume=RECORDED),
    "eps": Key(1e-6, "Added to the square root of the second moment.", above=0, resume=RECORDED),
    "mu_dtype": Key(
        "float32",
        "Type in which the first moments are stored.",
        choices=("float32", "bfloat16"),
        before="float32",
    ),
    "weight_decay": Key(0.01, "Decoupled decay of matrices.", least=0, resume=RECORDED),
    "clip_norm": Key(
        1.0,
        "Largest norm of the gradient; a larger gradient is scaled down to it.",
        above=0,
        resume=RECORDED,
    ),
    "offload_optimizer": Key(
        False,
        "Keep the optimiser's moments in host memory between updates.",
        resume=NEUTRAL,
        before=False,
    ),
    "ema_decay": Key(
        0.0,
        "Decay of the average of the weights, which is then used and exported; 0: no average.",
        least=0,
        below=1,
        resume=RECORDED,
        switch=True,
    ),
    "ema_warmup": Key(
        False,
        "Let the average forget the initial weights: the decay at update n is min(ema_decay, (1 + "
        "n) / (10 + n)).",
        resume=RECORDED,
        before=False,
    ),
    "freeze": Key(
        (),
        'Regular expressions over weight paths that are not trained, e.g. ("transformer/.*",).',
        item=str,
    ),
    "groups": Key(
        (),
        "Ordered groups of weights that have their own learning rate or decay, or are frozen, "
        'e.g. ({"match": "transformer/.*", "learning_rate": 0.1},); see docs/optimizer.md.',
        item=dict,
        before=(),
    ),
}
REPORTS = each(
    {
        "log_every": Key(20, "Steps between two reports.", least=1),
        "save_every": Key(1000, "Steps between two checkpoints; 0: only at the end.", least=0),
        "keep": Key(3, "Number of newest checkpoints that are kept.", least=1),
        "keep_every": Key(
            0, "Also keep each checkpoint whose step is a multiple of this; 0: none.", least=0
        ),
        "keep_best": Key(
            0,
            "Also keep this many checkpoints with the lowest held-out loss.",
            least=0,
            before=0,
        ),
        "eval_every": Key(
            0, "Steps between two evaluations of the held-out loss; 0: none.", least=0
        ),
        "eval_batches": Key(4, "Batches of each evaluation of the held-out loss.", least=1),
        "diagnostics": Key(
            False,
            "Report the norms of gradients, weights and updates for each group of weights.",
            before=False,
        ),
        "profile_start": Key(
            10, "First step of a profiler trace, counted from the start of the process.", least=0
        ),
        "profile_steps": Key(0, "Length of the trace in steps; 0: no trace.", least=0),
        "max_rollbacks": Key(
            0,
            "How often training may roll back to the last good checkpoint and skip bad data.",
            least=0,
            before=0,
        ),
    },
    resume=NEUTRAL,
)
GUARDS = {
    "spike_factor": Key(
        0.0,
        "Skip a step whose gradient norm is above this multiple of the recent median; 0: none.",
        least=0,
        resume=RECORDED,
        switch=True,
        before=0.0,
    ),
    "max_skipped": Key(
        20,
        "Skipped steps in a row after which training ends or rolls back (max_rollbacks).",
        least=1,
        resume=RECORDED,
    ),
}
TRAINING: dict[str, Key | Group] = LENGTH | RANDOMNESS | OPTIMIZER | REPORTS | GUARDS

MIXTURE = Group(
    "Shares of the tasks among the documents, normalised to sum to 1.",
    each(
        {
            "text": Key(0.0, "Captions and other text alone."),
            "text_to_image": Key(0.0, "Draw a picture from its caption."),
            "long_text_to_image": Key(
                0.0, "Draw a picture from its most detailed caption.", before=0.0
            ),
            "redraw": Key(
                0.0,
                "Draw a picture again from its understanding features (RecA).",
                before=0.0,
            ),
            "image_to_text": Key(0.0, "Describe a picture."),
            "visual_qa": Key(0.0, "One question about a picture."),
            "conversation": Key(0.0, "All questions about a picture, one after the other."),
            "questions": Key(
                0.0, "All questions about a picture, each as if it were the only one.", before=0.0
            ),
            "edit": Key(0.0, "Edit a picture according to an instruction."),
            "several_images": Key(0.0, "A question about one of several pictures."),
            "think_then_draw": Key(0.0, "Write a plan, then draw it."),
            "interleaved": Key(0.0, "Several turns with words and pictures."),
            "document": Key(
                0.0,
                "A finished document (sources of kind documents, conversations and interleaved).",
                before=0.0,
            ),
        },
        least=0,
        resume=RECORDED,
    ),
)
LORA = Group(
    "Low-rank adapters of linear layers, trained instead of the weights; see docs/optimizer.md.",
    {
        "rank": Key(0, "Rank of each adapter; 0: no adapters.", least=0, before=0),
        "alpha": Key(16.0, "The change is scaled by alpha / rank.", above=0, before=16.0),
        "targets": Key(
            ("transformer/blocks/attention/(query|key|value|out)",),
            "Regular expressions over the paths of the layers that get an adapter.",
            before=("transformer/blocks/attention/(query|key|value|out)",),
        ),
    },
)
INIT_FROM = Key(
    "",
    'WORKDIR:STAGE of another run whose weights the stage starts from; "": the previous stage.',
    path=True,
    before="",
)
SAMPLE_EVERY = Key(
    0,
    "Steps between two samplings during training: pictures and generation scores in TensorBoard "
    "and Weights & Biases; 0: none.",
    least=0,
    resume=NEUTRAL,
    before=0,
)
UNIFIED_STAGE: dict[str, Key | Group] = {
    **TRAINING,
    "lora": LORA,
    "init_from": INIT_FROM,
    "sequence_length": Key(256, "Slots of a packed row.", least=16, resume=RECORDED),
    "images_per_row": Key(
        8, "Largest number of pictures in a packed row.", least=1, resume=RECORDED
    ),
    "draws_per_row": Key(
        0,
        "Largest number of noisy copies of pictures in a packed row; 0: images_per_row.",
        least=0,
        resume=RECORDED,
        before=0,
    ),
    "views_per_row": Key(
        0,
        "Largest number of pictures that are read plus noisy copies in a packed row; the image "
        "tokenizer of pathway cheers runs for this many. 0: images_per_row plus draws_per_row.",
        least=0,
        resume=RECORDED,
        before=0,
    ),
    "window_rows": Key(
        8, "Rows that are packed together; must divide batch_size.", least=1, resume=RECORDED
    ),
    "window_documents": Key(
        0,
        "Documents in a window; 0: measured when the run first starts, then kept.",
        least=0,
        resume=RECORDED,
        before=0,
    ),
    "document_tokens": Key(
        (),
        "Mean number of slots of a document of each source and task, as pairs of SOURCE/TASK and "
        "number; measured when the run first starts if data.weight_unit=tokens, then kept.",
        item=tuple,
        filled_in=True,
        before=(),
    ),
    "overlong": Key(
        "error",
        "What to do with a document that is longer than a row.",
        choices=("error", "skip"),
        resume=RECORDED,
    ),
    "flow_weight": Key(
        5.0, "Weight of the flow loss; 0 trains on text alone.", least=0, resume=RECORDED
    ),
    "text_weight": Key(1.0, "Weight of the text loss.", least=0, resume=RECORDED),
    "noisy_copies": Key(
        1,
        "Noisy copies of a drawn picture, each with its own flow time; all share the prompt's "
        "slots.",
        least=1,
        resume=RECORDED,
        before=1,
    ),
    "cfg_dropout": Key(
        0.1,
        "Share of drawing documents trained without their words, for guidance.",
        least=0,
        most=1,
        resume=RECORDED,
    ),
    "image_dropout": Key(
        0.0,
        "Share of drawing documents that keep their words and lose their pictures, for image "
        "guidance; at most 1 - cfg_dropout.",
        least=0,
        most=1,
        resume=RECORDED,
        before=0.0,
    ),
    "sample_every": SAMPLE_EVERY,
    "mixture": MIXTURE,
    "eval_by_task": Key(
        False,
        "Also report the held-out losses of each task of the mixture, as eval/text/TASK; each task "
        "takes as long as the whole evaluation.",
        resume=NEUTRAL,
        before=False,
    ),
    "eval_by_source": Key(
        False,
        "Also report the held-out losses of each of data.sources, as eval/text/source/NAME; each "
        "source takes as long as the whole evaluation.",
        resume=NEUTRAL,
        before=False,
    ),
}


def _row_stage(meaning: str, mixture: Mapping[str, float], **changes: Any) -> Group:
    """The keys of `UNIFIED_STAGE` with other defaults."""
    tasks = {
        name: dataclasses.replace(key, default=mixture.get(name, 0.0))
        for name, key in MIXTURE.keys.items()
    }
    changed = {
        name: dataclasses.replace(UNIFIED_STAGE[name], default=default)
        for name, default in changes.items()
    }
    mixed = {"mixture": dataclasses.replace(MIXTURE, keys=tasks)}
    return Group(meaning, UNIFIED_STAGE | changed | mixed)


LONG_CAPTIONS = _row_stage(
    "The stage longcap: drawing is trained on long captions, and nothing on words; see docs/rl.md.",
    {"long_text_to_image": 1.0},
    text_weight=0.0,
    freeze=("transformer/(embedding|head)/.*",),
)
REDRAWING = _row_stage(
    "The stage reca: pictures are drawn again from what is understood of them; see docs/rl.md.",
    {"redraw": 1.0},
)
