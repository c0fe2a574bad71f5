"""`mmbalance completion`: a script by which bash or zsh completes verbs, options and files."""

from __future__ import annotations

import argparse
from typing import Any

from hf_mmbalance import console


COMPLETION = """Print a script for the shell: it completes verbs, options and file names.

example:
  mmbalance completion bash >> ~/.bashrc
  mmbalance completion zsh >> ~/.zshrc
"""
SCRIPT = """# Completion of `mmbalance`, made by `mmbalance completion`.
{zsh}_mmbalance() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" names=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    names="{verbs}"
  else
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  case "$word" in
    -*) COMPREPLY=($(compgen -W "$names" -- "$word")) ;;
    *)
      if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "$names" -- "$word"))
      else
        COMPREPLY=($(compgen -f -- "$word"))
      fi ;;
  esac
}}
complete -o filenames -F _mmbalance mmbalance
"""


def add_completion(verbs: Any) -> None:
    """Add the verb `completion`."""
    parser = console.add_verb(verbs, "completion", COMPLETION, run_completion)
    parser.add_argument("shell", choices=("bash", "zsh"), help="which shell")


def run_completion(arguments: argparse.Namespace) -> int:
    """Run `completion`; returns the exit status."""
    from hf_mmbalance.training.arguments import option_names

    options = {verb: sorted(parser._option_string_actions) for verb, parser in _verbs().items()}
    options["train"] = sorted({"--config", "--help", "--help_all", *(f"--{name}" for name in option_names())})
    cases = "\n".join(f'      {verb}) names="{" ".join(names)}" ;;' for verb, names in options.items())
    zsh = "autoload -Uz bashcompinit && bashcompinit\n" if arguments.shell == "zsh" else ""
    console.say(SCRIPT.format(zsh=zsh, verbs=" ".join(options), cases=cases))
    return console.DONE


def _verbs() -> dict[str, argparse.ArgumentParser]:
    from hf_mmbalance.cli import build_parser

    actions = build_parser()._actions
    return dict(next(action.choices for action in actions if isinstance(action, argparse._SubParsersAction)))
