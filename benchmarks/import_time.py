"""CPU seconds of ``import wxlab`` in fresh processes, beside those of an empty one.

    python benchmarks/import_time.py [--repeats 9]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys


def cpu_seconds(code: str) -> float:
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    cpu_seconds("import wxlab")
    pairs = [(cpu_seconds("pass"), cpu_seconds("import wxlab")) for _ in range(repeats)]
    empty, ours = (statistics.median(values) for values in zip(*pairs, strict=True))
    print(f"import wxlab: {ours - empty:.2f} CPU seconds above an empty interpreter's {empty:.2f}")


if __name__ == "__main__":
    main()
