from benchmarks.side_by_side.command import command
from berxit.runtime.console import run

if __name__ == "__main__":  # the contenders' processes import this module too
    run(command)
