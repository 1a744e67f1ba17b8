"""Settings for all tests. What follows each lesson that nbval runs is in tests/after_lesson.py."""

import os
import tempfile

import matplotlib
import pytest
import torch

pytest_plugins = ["after_lesson"]  # pyproject.toml puts tests/ on the path
os.environ["HF_HUB_OFFLINE"] = "1"  # before datasets and transformers are imported
CACHE = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
os.environ["HF_DATASETS_CACHE"] = CACHE.name  # small data sets by the dozen: not into the user's own
matplotlib.use("agg")


@pytest.fixture(autouse=True, scope="module")
def in_32_bits():
    """Unit tests compute alike on all CPUs. Lessons, which no fixture reaches, take what the CPU has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
        patch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        if torch.backends.mps.is_available():  # tests/test_hardware.py asks for Apple's GPU itself
            patch.setenv("ACCELERATE_USE_CPU", "1")
        yield
