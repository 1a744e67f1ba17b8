"""Print the oldest versions that requirements.txt allows, as constraints for pip."""

from pathlib import Path

for line in Path(__file__).resolve().parent.parent.joinpath("requirements.txt").read_text().splitlines():
    if ">=" in line:
        print(line.replace(">=", "=="))
