"""`python -m lipverify`, and the command `lipverify`."""

import sys


def main() -> None:
    """`cli.main`, with its exit code also for an interrupt while it is imported: without that, the signal ends the process."""
    try:
        from lipverify import cli
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    cli.main()


if __name__ == "__main__":
    main()
