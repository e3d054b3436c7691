"""Keys of the data: the source, how pictures and words become tokens, how batches are made."""

from __future__ import annotations

import dataclasses

from unicom_jax.config.key import NEUTRAL, RECORDED, Group, Key, each
from unicom_jax.config.keys.training import MIXTURE
from unicom_jax.core.image_policies import POLICIES, SQUARE

SOURCE = Group(
    "Where examples come from.",
    {
        "kind": Key(
            "scenes",
            "The kind of source; see docs/data.md.",
            choices=(
                "scenes",
                "array_record",
                "conversations",
                "datasets",
                "documents",
                "folder",
                "interleaved",
                "jsonl",
                "parquet",
                "pictures",
                "text",
                "tf_example",
                "tfds",
                "webdataset",
                "openmoji",
            ),
            resume=RECORDED,
        ),
        "path": Key(
            "",
            "A folder, files of records (glob and brace patterns too), the name of a prepared TFDS "
            "data set, or that of a data set of the Hugging Face Hub (datasets).",
            path=True,
            resume=NEUTRAL,
        ),
        "size": Key(20_000, "Scenes per epoch (scenes only).", least=1, resume=RECORDED),
        "held_out": Key(
            0.05,
            "Share of records held out for evaluation (all kinds except scenes, tfds and "
            "openmoji).",
            least=0,
            below=1,
            resume=RECORDED,
            before=0.0,
        ),
        "split": Key("train", "The split to train on (datasets, tfds).", resume=RECORDED),
        "eval_split": Key(
            "",
            'The split to evaluate on (datasets, tfds); "": the training split, of which datasets '
            "holds out data.source.held_out.",
            resume=RECORDED,
            before="",
        ),
        "subset": Key(
            "",
            'The configuration of a data set that has several (datasets); "": its default.',
            resume=RECORDED,
            before="",
        ),
        "revision": Key(
            "",
            'The branch, tag or commit of a data set of the Hub (datasets); "": the newest.',
            resume=RECORDED,
            before="",
        ),
        "image": Key(
            "image",
            "The feature or column that holds the picture (datasets, parquet, tfds, tf_example).",
            resume=RECORDED,
            before="image",
        ),
        "captions": Key(
            "",
            "The feature, column or field that holds the texts (datasets, parquet, text, tfds, "
            'tf_example); "": the first with one of the usual names.',
            resume=RECORDED,
            before="",
        ),
        "questions": Key(
            "",
            'The column that holds questions or conversations (datasets, parquet); "": the column '
            "questions.",
            resume=RECORDED,
            before="",
        ),
        "images": Key(
            "",
            "The folder to which names of pictures are relative (conversations, interleaved, "
            'jsonl); "": the folder of the file.',
            path=True,
            resume=NEUTRAL,
            before="",
        ),
        "draw": Key(
            False,
            "Whether pictures of interleaved pages are drawn, not only looked at (interleaved).",
            resume=RECORDED,
            before=False,
        ),
        "piece": Key(
            0,
            "Bytes of UTF-8 after which a document is cut (text); 0: 3 per slot of a row.",
            least=0,
            resume=RECORDED,
            before=0,
        ),
    },
)
SOURCES = Key(
    (),
    "Several weighted sources in place of data.source; see docs/data.md.",
    fields={
        **SOURCE.keys,
        "kind": dataclasses.replace(SOURCE.keys["kind"], required=True),
        "name": Key(
            "",
            'Name of the source in metrics and messages; "": the last part of its path, or its '
            "kind.",
            resume=RECORDED,
        ),
        "weight": Key(
            1.0,
            "Share of the source in what a stage reads, in data.weight_unit; the weights of a "
            "stage's sources are normalised to sum to 1.",
            above=0,
            resume=RECORDED,
        ),
        "tasks": Key(
            {},
            "Tasks that read the source: one, several with equal shares, or a dict of shares, "
            "which are normalised to sum to 1; {}: the tasks of STAGE.mixture.",
            choices=tuple(MIXTURE.keys),
            least=0,
            resume=RECORDED,
        ),
        "stages": Key((), "Stages that read the source; (): all.", item=str, resume=RECORDED),
    },
    resume=RECORDED,
    before=(),
)
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart", "letter")
LETTERS = ("A", "C", "E", "H", "L", "S", "T", "U")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
OBJECT_SIZES = ("small", "large")
BACKGROUNDS = ("white", "gray", "black", "sky", "night")
SCENES = Group(
    "Contents of the built-in data set Scenes.",
    each(
        {
            "sizes": Key(((64, 64),), "Sizes (height, width) in pixels, drawn equally often."),
            "object_weights": Key(
                (3.0, 3.0, 2.0, 2.0), "Relative frequencies of one, two, ... objects.", least=0
            ),
            "shapes": Key(SHAPES, "Shapes of objects.", choices=SHAPES),
            "letters": Key(LETTERS, "Letters that the shape letter draws.", choices=LETTERS),
            "colours": Key(COLOURS, "Colours of objects.", choices=COLOURS),
            "object_sizes": Key(OBJECT_SIZES, "Sizes of objects.", choices=OBJECT_SIZES),
            "backgrounds": Key(BACKGROUNDS, "Backgrounds.", choices=BACKGROUNDS),
            "alike_share": Key(
                0.3, "Share of scenes whose objects are all alike.", least=0, most=1
            ),
            "distinct_share": Key(
                0.5, "Share of scenes whose objects all differ.", least=0, most=1
            ),
            "jitter": Key(
                0.025,
                "Largest shift of an object from its place, as a share of the axis.",
                least=0,
                most=0.025,
                before=0.025,
            ),
            "long_captions": Key(
                False,
                "Give every scene, as its last caption, one of at least 60 words that describes "
                "everything.",
                before=False,
            ),
        },
        resume=RECORDED,
    ),
)
UNIT = {
    "weight_unit": Key(
        "documents",
        "What the weights of sources and the shares of tasks count: documents, or tokens (slots "
        "of packed rows, including those of pictures).",
        choices=("documents", "tokens"),
        resume=RECORDED,
        before="documents",
    ),
}
IDENTITY = {
    "fingerprint": Key(
        "",
        'Fingerprint of the data; "": computed when the run first starts. To resume a run after '
        "its data changed, set it to the new fingerprint.",
        resume=NEUTRAL,
        before="",
    ),
}
PICTURES = {
    "patch": Key(16, "Side of a patch in pixels.", least=1),
    "policy": Key(
        "fixed",
        "How pictures are resized; see docs/configurations.md.",
        choices=POLICIES,
    ),
    "understood_policy": Key(
        "same",
        "How pictures that the model only looks at are resized, if policy is fixed, crop or pad; "
        "same: like all others.",
        choices=("same", *SQUARE),
        before="same",
    ),
    "image_size": Key(
        64, "Side of a square picture in pixels (all policies except naflex).", least=1
    ),
    "max_tokens": Key(1024, "Largest number of patches of a picture (naflex).", least=1),
    "bucket_step": Key(64, "Pixels between neighbouring sizes (bucket and bucket_walk).", least=1),
    "decode_scale": Key(
        2.0,
        "Decode a JPEG at 1/2, 1/4 or 1/8 of its size if its sides are then still at least this "
        "many times as long as after resizing; 0: always decode it whole.",
        least=0,
        before=0.0,
    ),
}
WORDS = {
    "tokenizer": Key(
        "", 'A folder with tokenizer.json; "": train a tokenizer on the source.', path=True
    ),
    "vocab_size": Key(
        512,
        "Size of a tokenizer to train; the run replaces it with the actual size.",
        least=1,
        filled_in=True,
    ),
    "tokenizer_fingerprint": Key(
        "",
        "Fingerprint of the tokenizer; set by the run, which then refuses any other tokenizer.",
        filled_in=True,
    ),
    "padded_vocab_size": Key(0, "Smallest number of embedding rows (Qwen2.5-7B: 152064).", least=0),
    "prompt_open": Key("<|im_start|>", "Text that opens a user's turn."),
    "prompt_close": Key("<|im_end|>", "Text that closes a user's turn."),
    "response_close": Key("<|endoftext|>", "Text that ends a response; must not be empty."),
    "template_labels": Key(
        False,
        "Also predict the header of a response and, in prompts, newlines, marks of turns and the "
        "start marks of pictures.",
        resume=RECORDED,
        before=False,
    ),
    "unconditional": Key(
        "empty",
        "What documents without their words are, for guidance: empty: turns without text; masked: "
        "documents of full length in which each token is <no_mean>, except marks of pictures.",
        choices=("empty", "masked"),
        before="empty",
    ),
}
ROWS = {
    "balance_rows": Key(
        True,
        "Order the rows of a window so that devices predict about equally many tokens; False: "
        "keep the order of packing, as in older runs.",
        resume=RECORDED,
        before=False,
    ),
    "fill_rows": Key(
        True,
        "Fill the free ends of rows with further documents of the mixture, with texts cut where a "
        "row ends; False: leave them empty, as in older runs.",
        resume=RECORDED,
        before=False,
    ),
}
LOADING = each(
    {
        "packed": Key(
            "",
            'Folder written by `unicom data prepare packed`; "": rows are packed during training.',
            path=True,
            before="",
        ),
        "cache_mb": Key(
            512,
            "Memory for records in MB: with decoded pictures if the whole source fits, otherwise "
            "with picture files.",
            least=0,
        ),
        "threads": Key(2, "Threads that make batches if there are no workers.", least=1),
        "prefetch": Key(8, "Batches prepared ahead.", least=1),
        "workers": Key(0, "Processes that make batches; 0: threads make them.", least=0),
        "max_unreadable": Key(
            0.1,
            "Share of records that may be unreadable before a run stops.",
            least=0,
            most=1,
            before=0.1,  # older runs had no bound
        ),
    },
    resume=NEUTRAL,
)
DATA = Group(
    "The data of all stages.",
    {
        "source": SOURCE,
        "sources": SOURCES,
        **UNIT,
        "scenes": SCENES,
        **IDENTITY,
        **PICTURES,
        **WORDS,
        **ROWS,
        **LOADING,
    },
)
