"""Installs the packages `tf_dlrm` and `pipelines` and the command `tf-dlrm`."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'__version__ = "([^"]+)"', (ROOT / "tf_dlrm" / "version.py").read_text()
).group(1)

setup(
    name="tf-dlrm",
    version=VERSION,
    description="DLRM for TensorFlow and Keras 3: row-sparse, sharded, servable.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(
        include=["tf_dlrm", "tf_dlrm.*", "pipelines", "pipelines.*"]
    ),
    package_data={"tf_dlrm": ["py.typed"]},
    install_requires=[
        "tensorflow>=2.21,<2.22",
        "keras>=3.15.1,<3.16",
        "tensorboard>=2.21",
        "tensorflow-recommenders>=0.7.7",
        "numpy>=1.26.4",
        "pandas>=2.2.3",
        "pyarrow>=17",
        "matplotlib>=3.8",
        "rich>=13.9",
        "tyro>=1.0",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "scikit-learn>=1.5",
            "polars>=1",
            "ruff>=0.8",
            "mypy>=2.4,<2.5",
            "nbclient>=0.10",
            "nbformat>=5",
            "ipykernel>=6",
            "tensorflow-serving-api>=2.19",
            "openvino>=2025.0",
        ],
        "notebooks": ["jupyterlab>=4"],
        "profile": ["xprof>=2.20"],
        "bench": ["torch>=2.6", "torchrec>=1", "keras-rs>=0.2"],
        "serving": ["tensorflow-serving-api>=2.19", "openvino>=2025.0"],
    },
    entry_points={"console_scripts": ["tf-dlrm = pipelines.cli:entry"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
