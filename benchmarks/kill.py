"""20 training runs, each stopped three times at random moments, also while a checkpoint is written, against one left alone.

By turns with SIGKILL and SIGTERM; and beside each a second one is started in its folder, which has to be refused.

python benchmarks/kill.py              ten minutes on two CPU cores
"""

import sys
import tempfile

from common import ROOT, publish

sys.path.insert(0, str(ROOT / "tests"))
RUNS = 20

if __name__ == "__main__":
    from helpers import kill_and_compare

    with tempfile.TemporaryDirectory() as folder:
        results = [kill_and_compare(folder, times=3, seed=seed) for seed in range(1, RUNS + 1)]
    kills = [writing for _, killed in results for writing in killed]
    identical = sum(equal for equal, _ in results)
    columns = [
        "kills",
        "of them while a checkpoint was written",
        "training runs that end with the same weights, bit for bit",
    ]
    row = [len(kills), sum(kills), f"{identical} of {RUNS}"]
    summary = f"{row[2]} end with the same weights, bit for bit, after {len(kills)} kills."
    publish("Killed and carried on", columns, [row], summary=summary)
