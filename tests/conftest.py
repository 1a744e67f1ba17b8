import os

import matplotlib

os.environ["HF_HUB_OFFLINE"] = "1"  # before datasets and transformers are imported
matplotlib.use("agg")
