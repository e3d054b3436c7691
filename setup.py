"""Package metadata: what is installed, what it needs, and the `unicom` command.

In a checkout `data_pipelines` and `experiments` are packages beside `unicom_jax`. These names are
too general to claim in somebody's environment, so a wheel has them as `unicom_jax.data_pipelines`
and `unicom_jax.experiments` (the configurations alone), and the imports of its files say so. An
editable installation has them as they are.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

EDITABLE = {"editable_wheel", "develop"} & set(sys.argv)
MOVED = ("data_pipelines", "experiments")
IMPORTS = re.compile(rf"^(\s*from )({'|'.join(MOVED)})(?=[. ])", re.MULTILINE)


def packages() -> list[str]:
    ours = find_packages(include=["unicom_jax*"])
    if EDITABLE:
        return ours + find_packages(include=[f"{name}*" for name in MOVED])
    moved = [*find_packages(include=["data_pipelines*"]), "experiments"]
    return ours + [f"unicom_jax.{name}" for name in moved]


class MovedImports(build_py):
    """Copies the files and writes the imports of moved packages under their new name."""

    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        """Leaves out the scripts beside the configurations: they import what a wheel lacks."""
        found = super().find_package_modules(package, package_dir)
        if package != "unicom_jax.experiments":
            return found
        return [one for one in found if one[1] == "__init__" or _is_configuration(Path(one[2]))]

    def run(self) -> None:
        super().run()
        if EDITABLE:
            return
        for path in Path(self.build_lib).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            moved = IMPORTS.sub(r"\1unicom_jax.\2", text)
            if moved != text:
                path.write_text(moved, encoding="utf-8")


def _is_configuration(path: Path) -> bool:
    return "\ndef get_config(" in path.read_text(encoding="utf-8")


RUNTIME = [
    "absl-py>=2.1",
    "array_record>=0.8; sys_platform != 'win32'",
    "etils[epath]>=1.10",
    "flax>=0.12",
    "fsspec>=2025.3",
    "grain>=0.2.12",
    "huggingface_hub>=1.0",
    "importlib_resources>=6.0",  # tensorflow-datasets imports it without asking for it
    "jax>=0.10,<0.13",
    "jaxtyping>=0.3",
    "jinja2>=3.1",
    "matplotlib>=3.9",
    "ml_collections>=1.0",
    "msgpack>=1.0",
    "numpy>=2.0",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11.30",
    "pillow>=11.0",
    "pyarrow>=18.0",
    "resvg_py>=0.5",
    "rich>=13.0",
    "safetensors>=0.5",
    "scipy>=1.14",
    "tensorboardX>=2.6",
    "tensorflow-datasets>=4.9.9",
    "tokenizers>=0.21",
    "transformers>=5.0",
]
TORCH = ["diffusers>=0.42", "torch==2.13.0"]
EXTRAS = {
    "torch": TORCH,
    "test": [
        *TORCH,
        "accelerate>=1.10",
        "beartype>=0.20",
        "chex>=0.1.90",
        "flask>=3.0",  # moto's server
        "flask-cors>=5.0",
        "gcp-storage-emulator>=2026.7",
        "gcsfs>=2025.3",
        "hypothesis>=6.100",
        "moto[s3]>=5.0",
        "pytest>=8.3",
        "pytest-xdist>=3.6",
        "ruff>=0.14",
        "s3fs>=2025.3",
        "submitit>=1.5",
    ],
    "bench": [*TORCH, "datasets>=3.0", "transfusion-pytorch==0.20.0", "webdataset>=1.0"],
    # Beam asks for older protobuf and pillow than constraints.txt pins: see constraints-beam.txt.
    "prepare": ["apache-beam>=2.70"],
    "datasets": ["datasets>=3.0"],  # the Hugging Face Hub, and what `save_to_disk` wrote
    "gcs": ["gcsfs>=2025.3"],  # paths in gs://
    "s3": ["s3fs>=2025.3"],  # paths in s3://
    "ray": ["ray>=2.40"],  # `unicom sweep run --engine=ray`
    "slurm": ["submitit>=1.5"],  # `unicom sweep run --engine=slurm`
    "tpu": ["jax[tpu]>=0.10,<0.13"],
    "cuda12": ["jax[cuda12]>=0.10,<0.13"],
    "wandb": ["wandb>=0.19"],
}

setup(
    name="unicom_jax",
    version="0.1.0",
    description="Unified multimodal models of the UniCom family in JAX",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=packages(),
    package_dir={} if EDITABLE else {f"unicom_jax.{name}": name for name in MOVED},
    package_data={f"unicom_jax.{name}": ["templates/*"] for name in ("evaluation", "sweeps")},
    cmdclass={"build_py": MovedImports},
    install_requires=RUNTIME,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["unicom = unicom_jax.cli:main"]},
)
