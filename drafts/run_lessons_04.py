import sys
from pathlib import Path
sys.path.insert(0, "/work/main/tools")
import run_lessons
print(f"{run_lessons.run(Path('/root/note/drafts/04_training.ipynb')):.0f} s", flush=True)
