"""Kill a training 20 times at random moments, also while it writes a checkpoint, and compare the end.

    python benchmarks/kill.py              three minutes on two CPU cores
"""

import sys
import tempfile

from common import ROOT, publish

sys.path.insert(0, str(ROOT / "tests"))

if __name__ == "__main__":
    from test_checkpoints import kill_and_compare

    with tempfile.TemporaryDirectory() as folder:
        killed = kill_and_compare(folder, times=20, seed=1)
    writing = sum(unfinished for _, unfinished in killed)
    publish("Killed and carried on", ["kills", "of them while a checkpoint was written", "same weights at the end, bit for bit"],
            [[len(killed), writing, "yes"]])  # fmt: skip
