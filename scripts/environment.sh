# Sourced by the scripts beside it: makes .venv with this package in it, once, and tells nothing when all is there.
# Needs python3 (3.11 or newer).  `prepare start` installs what runs, `prepare dev` what tests too.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

make_venv() {
    command -v python3 >/dev/null || fail "python3 is missing; on Debian: apt-get install python3 python3-venv"
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "python3 is older than 3.11: $(python3 --version)"
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
            fail "python3 has no venv module; run: sudo apt-get install python3-venv"
        fi
        echo "installing python3-venv" >&2
        { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y python3-venv; } >&2 ||
            fail "apt-get could not install python3-venv"
    fi
    rm -rf "$root/.venv"
    python3 -m venv "$root/.venv" || fail "no virtual environment could be made in $root/.venv"
}

prepare() {
    local kind=$1 what="$root" stamp wanted
    [ "$kind" = dev ] && what="$root[dev]"
    "$python" -c '' 2>/dev/null || make_venv
    stamp=$root/.venv/installed-$kind
    wanted="$root $(cksum <"$root/pyproject.toml")"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "installing into $root/.venv" >&2
        "$python" -m pip install --quiet --disable-pip-version-check -e "$what" >&2 || fail "pip could not install $what"
        echo "$wanted" >"$stamp"
        [ "$kind" = start ] || cp "$stamp" "$root/.venv/installed-start"
    fi
    # Compiled here, so that the first start is as quick as the others.
    if [ ! -e "$root/.venv/compiled" ] || [ -n "$(find "$root/trio_rmq" -name '*.py' -newer "$root/.venv/compiled" -print -quit)" ]; then
        "$python" -m compileall -q "$root/trio_rmq" && touch "$root/.venv/compiled"
    fi
}
