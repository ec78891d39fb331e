from benchmarks.side_by_side.command import command
from berxit.runtime.console import run

if __name__ == "__main__":  # the processes of the contenders import this module, too
    run(command)
