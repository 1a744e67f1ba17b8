"""Does it cost quality to train in 16 bits? Lesson 04's training in both, from three seeds each.

    python benchmarks/precision.py         a quarter of an hour on two CPU cores

Equal images, in equal order. Pixel distance and kernel distance (lesson 07) to 1,000 held-out faces,
each the mean of three times 200 samples, drawn in 32 bits.
"""

from statistics import mean

from common import fresh, middle, publish, spread
from equal_time import NETWORKS, lesson

if __name__ == "__main__":
    rows = []
    for name, precision in (("32 bits", "no"), ("bfloat16", "bf16")):
        runs = [fresh(lesson, next(iter(NETWORKS)), precision=precision, seed=seed)[3] for seed in range(3)]
        pixels, kernels = ([mean(distances[i]) for distances in runs] for i in (0, 1))
        rows.append([name, spread(pixels), spread(kernels)])
    pixels, kernels = (f"{middle(rows[0][i])} and {middle(rows[1][i])}" for i in (1, 2))
    columns = ["lesson 04's training run in", "pixel distance, three training runs", "kernel distance"]
    summary = f"Pixel distance {pixels}, kernel distance {kernels}."
    publish("Precision", columns, rows, summary=summary)
