"""The command in processes of its own, which a test may kill."""

import multiprocessing
import os
import sys

import vlscore_cli

# Each process comes from one that has imported all before, and so starts at once.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["vlscore_cli", "vlscore", "vlscore_lib.evaluation.workers"])


def run_program(arguments: list[str], told: str) -> None:
    """Run the command, and end this process with its exit code; what it says goes into a file."""
    file = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.exit(vlscore_cli.main(arguments))


def start_program(arguments: list, told: str = os.devnull):
    """Start the command with arguments -> its process."""
    process = CONTEXT.Process(target=run_program, args=([str(each) for each in arguments], str(told)))
    process.start()
    return process
