#!/bin/sh
# Find a Python that set-up can use, and hand over to it: start.sh TARGET [ARGUMENT...]
# Used is the first of $RAFTREG_SETUP_PYTHON, python3.14 .. python3.11, python3 that runs, has a supported version and
# can make virtual environments. -I keeps the caller's PYTHONPATH, PYTHONHOME and user packages out.
# Exit status 3: no such Python.

versions='3.14 3.13 3.12 3.11'

runs() { "$1" -I -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' >/dev/null 2>&1; }
can_make_environments() { "$1" -I -c 'import ssl, venv, ensurepip' >/dev/null 2>&1; }

candidates=$RAFTREG_SETUP_PYTHON
[ -n "$candidates" ] || candidates=$(for v in $versions; do echo "python$v"; done; echo python3)

found='' incomplete=''
IFS='
'
for python in $candidates; do
    if runs "$python"; then
        if can_make_environments "$python"; then found=$python; break; fi
        [ -n "$incomplete" ] || incomplete=$python
    fi
done
unset IFS

# deps can install what is missing, and clean needs no environment.
case $1 in deps | clean) [ -n "$found" ] || found=$incomplete ;; esac
[ -n "$found" ] && exec "$found" -I ops/dev/targets.py "$@"

{
    if [ -n "$incomplete" ]; then
        echo "$incomplete can't make virtual environments: its venv, ensurepip or ssl module is missing."
        echo 'Install it, then run make again:'
        version=$("$incomplete" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        echo "  Debian, Ubuntu:  apt-get install python$version-venv"
    elif [ -n "$RAFTREG_SETUP_PYTHON" ]; then
        echo "'$RAFTREG_SETUP_PYTHON' does not run, or is none of Python $versions."
        exit 3
    else
        echo "No Python of the versions $versions was found in PATH ($PATH)."
        echo 'Install one, then run make again:'
        echo '  Debian, Ubuntu:  apt-get install python3 python3-venv'
    fi
    echo '  Fedora, RHEL:    dnf install python3.12'
    echo '  Alpine:          apk add python3'
    echo '  macOS:           brew install python@3.13'
} >&2
exit 3
