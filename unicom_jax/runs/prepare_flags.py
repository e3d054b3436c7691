"""The flags of `unicom data prepare`. Imports nothing heavy, so that `--help` answers at once."""

from __future__ import annotations

import argparse

PREPARE = "Fetch and convert a data set, or pack a stage's rows before training."
PREPARE_EXAMPLES = """\
convert a data set, for --config.data.source:
  unicom data prepare openmoji --out=data/openmoji                   # downloads the npm package
  unicom data prepare openmoji --out=data/openmoji --package=openmoji-17.0.0.tgz
  unicom data prepare scenes --out=data/scenes --size=96             # a TFDS data set
  unicom data prepare folder --package=album --out=data/album        # your own pictures
  unicom data prepare webdataset --package='shards/{000..099}.tar' --out=data/shards
  unicom data prepare parquet --package=tables --out=data/tables     # jsonl: the same
  unicom data prepare parquet --package=tables --out=data/tables --workers=8   # with Apache Beam

  Broken records are left out, and OUT/left_out.txt lists them. If they are more than a tenth
  (--max-broken) and more than three, or all, the command fails and writes nothing.

pack rows, for --config.data.packed:
  unicom data prepare packed --config=experiments/quickstart.py --out=data/q --workers=2
  unicom train --config=experiments/quickstart.py --workdir=runs/q --config.data.packed=data/q

  This reads, tokenises, resizes and packs the data of one stage in advance; the losses of training
  do not change. It is an Apache Beam pipeline: pip install 'unicom_jax[prepare]'. Run the same
  command again to resume a stopped preparation; complete files are kept. Run it once for each stage
  with a mixture, and for each repetition of one in config.stages.

  With --features=RUN the frozen encoder of a run encodes every picture now, not in each step:
  unicom data prepare packed --config=experiments/quickstart.py --out=data/q --features=runs/q

  On a cluster, --runner=NAME and the flags of that runner are passed to Beam; --out and the path of
  the data source must be on a file system that its workers share:
  unicom data prepare packed --config=my.py --out=/shared/rows \\
      --runner=FlinkRunner --flink_master=host:8081 --parallelism=256"""


FILES = ("folder", "jsonl", "parquet", "webdataset")


def add_prepare_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", choices=(*FILES, "openmoji", "scenes", "packed"))
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    sets = parser.add_argument_group("data sets")
    sets.add_argument(
        "--package",
        metavar="PATH",
        help="folder: the folder with captions.jsonl; jsonl, parquet, webdataset: files, a folder "
        "or a pattern; openmoji: the npm package (folder or .tgz)",
    )
    sets.add_argument(
        "--size",
        type=_at_least(8),
        metavar="PIXELS",
        help="openmoji, scenes: size of a side of the pictures; default 64",
    )
    sets.add_argument(
        "--max-broken",
        type=_share,
        metavar="SHARE",
        help="folder, jsonl, parquet, webdataset: share of the records that may be broken and are "
        "left out, besides the first three; default 0.1",
    )
    packed = parser.add_argument_group("packed")
    packed.add_argument(
        "--config", metavar="FILE", help="as for unicom train, with --config.KEY=VALUE as there"
    )
    packed.add_argument(
        "--stage", metavar="NAME", help="stage to pack; default: the first with a mixture"
    )
    packed.add_argument(
        "--rows",
        type=_at_least(1),
        metavar="N",
        help="rows to write; default: the stage's steps times its batch_size",
    )
    packed.add_argument(
        "--features",
        metavar="RUN",
        help="store the features that this run's encoder computes, instead of pictures",
    )
    packed.add_argument(
        "--features-dtype",
        metavar="TYPE",
        help="float32 (default), or bfloat16 or float16 (half the size, rounded once)",
    )
    beam = parser.add_argument_group("packed, folder, jsonl, parquet, webdataset: with Apache Beam")
    beam.add_argument(
        "--workers", type=_at_least(1), metavar="N", help="local processes; packed: 1 by default"
    )
    beam.add_argument(
        "--runner",
        metavar="NAME",
        help="a Beam runner, with its own flags; default: the local runner",
    )


def _share(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return float(text)


def _at_least(least: int):
    def parse(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return int(text)

    parse.__name__ = "number"  # argparse's name for the type in errors
    return parse
