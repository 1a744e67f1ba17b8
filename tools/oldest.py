"""Print the oldest versions that the requirements allow, as constraints for pip."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
for name in ("requirements.txt", "requirements-tests.txt"):
    for package, version in re.findall(r"^([\w-]+)>=([\d.]+)", (ROOT / name).read_text(), re.MULTILINE):
        print(f"{package}=={version}")
