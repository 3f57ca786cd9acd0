"""What commands read their options with: from the command line and a YAML file, with a help that ends with examples."""

from __future__ import annotations

from argparse import RawDescriptionHelpFormatter

from jsonargparse import ArgumentParser, DefaultHelpFormatter


class _Help(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Examples as they are written, where help would wrap them."""


def parser_of(command: str, about: str, examples: str) -> ArgumentParser:
    """A parser that knows `--config`; the command adds its own options.

    Args:
        command: after `recsys`.
        about: what it does, in a line.
        examples: what its help ends with.
    """
    parser = ArgumentParser(prog=f"recsys {command}", description=about, epilog=examples, formatter_class=_Help)
    parser.add_argument("--config", action="config", help="a YAML file with these options")
    return parser
