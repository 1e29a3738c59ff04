# Shared set-up, to be sourced by bash:  source scripts/_venv.sh; need EXTRA...
#
# `need` makes sure that .venv holds this package with the named extras of pyproject.toml, goes to the
# repository root and puts .venv/bin first on PATH. It runs pip only if an extra is missing, or if
# pyproject.toml, constraints.txt, the version of Python or the place of the repository has changed.
# The variable PYTHON names the interpreter to make a new .venv with.

_root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

need() {
    cd -- "$_root" || return
    local present extra missing=()
    present=$(_present)
    for extra in "$@"; do
        [[ " $present " == *" $extra "* ]] || missing+=("$extra")
    done
    if ((${#missing[@]})); then
        _install "${present:+$present }${missing[*]}" || return
    fi
    export VIRTUAL_ENV="$_root/.venv" PATH="$_root/.venv/bin:$PATH"
}

# What an installation depends on; pyvenv.cfg names the version of Python.
_key() {
    { pwd -P; cat pyproject.toml constraints.txt .venv/pyvenv.cfg 2>/dev/null || true; } | cksum
}

# The extras that .venv holds, if its stamp has today's key.
_present() {
    local key='' extras=''
    if [[ -x .venv/bin/python && -f .venv/installed ]]; then
        { read -r key && read -r extras; } <.venv/installed || true
    fi
    if [[ $key == "$(_key)" ]]; then echo "$extras"; fi
}

# The stamp goes first and comes back last, so an interrupted installation leaves none.
_install() {
    rm -f .venv/installed
    _usable || _make || return
    echo "Installing torch, then optimfn[${1// /,}], into .venv" >&2
    # torch alone, so that no other package has a say in which build of it comes.
    _pip torch && _pip -e ".[${1// /,}]" && printf '%s\n' "$(_key)" "$1" >.venv/installed
}

# The programs in a .venv that was copied or moved here would run those of its old place.
_usable() {
    grep -qsF "$_root/.venv" .venv/bin/activate && .venv/bin/python -m pip --version >/dev/null 2>&1
}

_make() {
    local python
    python=$(_find_python) || return
    echo "Making .venv with $("$python" --version)" >&2
    "$python" -m venv --clear .venv
}

_pip() {
    .venv/bin/python -m pip install --disable-pip-version-check -q -c constraints.txt "$@"
}

_find_python() {
    local python candidates=(python3 python3.14 python3.13 python3.12 python3.11 python)
    if [[ -n ${PYTHON:-} ]]; then candidates=("$PYTHON"); fi
    for python in "${candidates[@]}"; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            echo "$python"
            return
        fi
    done
    echo "No Python 3.11 or newer among: ${candidates[*]}. Name one: PYTHON=/path/to/python3 $0" >&2
    return 1
}
