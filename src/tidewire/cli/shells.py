"""Completion scripts for the shells, each whole: tables of words and a function that looks into them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from tidewire.cli.words import Option, Words

__all__ = ["bash", "fish", "zsh"]

_BASH = """\
# tidewire completion bash
_tidewire() {{
    local IFS=$'\\n'
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} at="" words="" files=""
    # The shell takes `--option=value` apart.
    if [[ $cur == "=" ]]; then cur=""; elif [[ $prev == "=" ]]; then prev=${{COMP_WORDS[COMP_CWORD-2]}}; fi
    if (( COMP_CWORD > 1 )); then at=${{COMP_WORDS[1]}}; fi
    if (( COMP_CWORD > 2 )); then
        case $at in {verbs}) at="$at ${{COMP_WORDS[2]}}" ;; esac
    fi
    case "$at $prev" in
{values}
    *)
        case $at in
{places}
        esac ;;
    esac
    COMPREPLY=( $(compgen -W "$words" -- "$cur") )
    if [[ -n $files ]]; then COMPREPLY+=( $(compgen -f -- "$cur") ); fi
}}
complete -o filenames -F _tidewire tidewire
"""

_ZSH = """\
#compdef tidewire
# tidewire completion zsh
_tidewire() {{
    local at="" prev=${{words[CURRENT-1]}}
    local -a told
    (( CURRENT > 2 )) && at=${{words[2]}}
    if (( CURRENT > 3 )); then
        case $at in ({verbs}) at="$at ${{words[3]}}" ;; esac
    fi
    case "$at $prev" in
{values}
    (*)
        case $at in
{places}
        esac ;;
    esac
    _describe -t words tidewire told
}}
if [[ ${{funcstack[1]}} == _tidewire ]]; then
    _tidewire "$@"
else
    (( ${{+functions[compdef]}} )) || {{ autoload -Uz compinit && compinit; }}
    compdef _tidewire tidewire
fi
"""

_FISH = """\
# tidewire completion fish
function __tidewire_at
    set -l words (commandline -opc)
    set -l at "$words[2]"
    if contains -- "$at" {verbs}; and set -q words[3]
        set at "$at $words[3]"
    end
    test "$at" = "$argv[1]"
end
complete -c tidewire -f
{lines}
"""


def bash(found: Sequence[Words]) -> str:
    """Return the script for bash 3.2 and newer."""
    values: dict[str, list[str]] = {}
    for at, option in _taking(found):
        then = "files=1" if option.files else f"words=$'{_lines(option.choices)}'" if option.choices else ":"
        values.setdefault(then, []).extend(f'"{at} {name}"' for name in option.names)
    places = [
        f"        \"{one.at}\") words=$'{_lines([*one.choices, *one.flags])}'{' files=1' * one.files} ;;"
        for one in found
    ]
    return _BASH.format(
        verbs=_verbs(found, "|"),
        values="\n".join(f"    {'|'.join(patterns)}) {then} ;;" for then, patterns in values.items()),
        places="\n".join(places),
    )


def zsh(found: Sequence[Words]) -> str:
    """Return the script for zsh, to be sourced, or kept as ``_tidewire`` on ``fpath``."""
    values: dict[str, list[str]] = {}
    for at, option in _taking(found):
        told = " ".join(_in_zsh(choice) for choice in option.choices)
        then = "_files; return" if option.files else f"told=({told})"
        values.setdefault(then, []).extend(f'"{at} {name}"' for name in option.names)
    places: list[str] = []
    for one in found:
        told = " ".join(_in_zsh(word, line) for word, line in _told(one))
        places.append(f'        ("{one.at}") told=({told}){"; _files" * one.files} ;;')
    return _ZSH.format(
        verbs=_verbs(found, "|"),
        values="\n".join(f"    ({'|'.join(patterns)}) {then} ;;" for then, patterns in values.items()),
        places="\n".join(places),
    )


def fish(found: Sequence[Words]) -> str:
    """Return the script for fish 3 and newer."""
    lines: list[str] = []
    for one in found:
        here = f"complete -c tidewire -n '__tidewire_at \"{one.at}\"'"
        lines += [f"{here} -a {_in_fish(word)} -d {_in_fish(line)}" for word, line in one.choices.items()]
        lines += [f"{here} -F"] * one.files
        for option in one.options:
            names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
            value = " -r -F" if option.files else f" -x -a {_in_fish(' '.join(option.choices))}" if option.takes else ""
            lines.append(f"{here} {names}{value} -d {_in_fish(option.line)}")
    return _FISH.format(verbs=_verbs(found, " "), lines="\n".join(lines))


def _taking(found: Sequence[Words]) -> Iterator[tuple[str, Option]]:
    return ((one.at, option) for one in found for option in one.options if option.takes)


def _told(one: Words) -> Iterator[tuple[str, str]]:
    yield from one.choices.items()
    yield from ((name, option.line) for option in one.options for name in option.names)


def _verbs(found: Sequence[Words], between: str) -> str:
    return between.join(one.at for one in found if one.verbs) or "''"


def _lines(words: Iterable[str]) -> str:
    return "\\n".join(words)


def _in_zsh(word: str, line: str = "") -> str:
    """Return a word and its line as `_describe` wants them, quoted."""
    told = word.replace(":", "\\:") + (f":{line}" if line else "")
    return "'" + told.replace("'", "'\\''") + "'"


def _in_fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
