# The checks that tests/run makes beside the tests, for bash.

# Every source and document, but nothing that was generated or installed.
sources() {
    find . \( -name target -o -name .venv -o -name .git -o -path ./data -o -path ./blends \) -prune \
        -o -type f \( "$@" \) -print | sort
}

# user-http-actors knows no HTTP server and no command line.
check_actors_dependencies() {
    local found
    found=$(cargo tree --locked --package user-http-actors --edges normal --prefix none |
        grep --extended-regexp '^(actix-web|clap)(_[a-z]+)? ' || true)
    [[ -z $found ]] || fail "user-http-actors must depend on no HTTP server and no command line, but has: $found"
}

# No line has more than 120 characters. Exceptions: tables in Markdown, which cannot be wrapped, and string literals in
# Rust, which rustfmt does not wrap either.
check_line_lengths() {
    local found table='^[^:]*\.md:[0-9]+:\|' literal='^[^:]*\.rs:[0-9]+: *([^/ ]|/[^/]).*["\\]'
    found=$(sources -name '*.rs' -o -name '*.md' -o -name '*.py' -o -name '*.sh' -o -name '*.toml' \
        -o -path ./tests/run -o -path ./tests/mutants -o -path ./benches/run -o -path ./.ci/run |
        LC_ALL=C.UTF-8 xargs grep --line-number --extended-regexp '^.{121,}' |
        grep --invert-match --extended-regexp "$table|$literal" | cut --characters=-160 || true)
    [[ -z $found ]] || fail "lines of more than 120 characters:"$'\n'"$found"
}

# Every path that a document names exists: from the repository's root, or from the document's own folder. A file name
# without a folder, such as `delivery.rs` after `tests/integration/python/range.rs`, has to be that of some file.
check_document_paths() {
    local document path missing=()
    local names
    names=$(sources -name '*' | sed 's|.*/||' | sort --unique)
    while IFS= read -r document; do
        while IFS= read -r path; do
            [[ -e $path || -e $(dirname "$document")/$path ]] && continue
            [[ $path != */* ]] && grep --quiet --line-regexp --fixed-strings -- "$path" <<<"$names" && continue
            missing+=("$document: $path")
        done < <(document_paths "$document")
    done < <(sources -name '*.md' -not -name CHANGELOG.md)
    ((${#missing[@]} == 0)) || fail "$(printf '%s\n' 'documents name files that do not exist:' "${missing[@]}")"
}

# What looks like one of the repository's paths. The tests of the book check the targets of links.
document_paths() {
    local folders='actors|src|tests|docs|deploy|benches|clients|examples|fuzz|\.ci'
    grep --only-matching --extended-regexp '`[^` ]+`' "$1" | tr -d '`' |
        grep --extended-regexp "^((\./)?($folders)/[A-Za-z0-9_./-]+|[A-Za-z0-9_-]+\.(rs|sh))\$" |
        grep --invert-match --line-regexp 'tests/\.venv.*' | sort --unique
}

# All checks. "$@" chooses the profile; that of the tests shares what both compile.
check_all() {
    step "formatting"
    cargo fmt --all --check
    check_line_lengths
    step "paths in the documents"
    check_document_paths
    step "lints"
    cargo clippy --locked "$@" --workspace --all-targets -- --deny warnings
    step "documentation"
    RUSTDOCFLAGS='--deny warnings --allow rustdoc::private_intra_doc_links' \
        cargo doc --quiet --locked "$@" --workspace --no-deps --document-private-items
    step "dependencies of user-http-actors"
    check_actors_dependencies
}
