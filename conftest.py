"""Settings for all tests. What follows each lesson that nbval runs is in tests/after_lesson.py."""

import os
import tempfile

import matplotlib

pytest_plugins = ["after_lesson"]  # pyproject.toml puts tests/ on the path
os.environ["HF_HUB_OFFLINE"] = "1"  # before datasets and transformers are imported
CACHE = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
os.environ["HF_DATASETS_CACHE"] = CACHE.name  # small data sets by the dozen: not into the user's own
matplotlib.use("agg")
