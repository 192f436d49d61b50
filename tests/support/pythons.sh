# Finds the Pythons of this machine, for bash.

# One line for each minor version from 3.9 on, except $1: the version, and the path of its interpreter.
other_pythons() {
    local python version seen=" $1 "
    for python in /usr/bin/python3.* /usr/local/bin/python3.* "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python3.* \
        "${XDG_DATA_HOME:-$HOME/.local/share}"/uv/python/*/bin/python3.*; do
        version=${python##*/python}
        [[ $version =~ ^3\.([0-9]+)$ && -x $python ]] || continue
        ((BASH_REMATCH[1] >= 9)) && [[ $seen != *" $version "* ]] || continue
        seen+="$version "
        echo "$version $python"
    done
}
